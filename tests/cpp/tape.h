// Gradients of the naive loops: numbers that write down how they were made, and the chain rule backwards over what was
// written. The kernels' backward passes are derived by hand; this is where theirs and the formula can disagree.
#pragma once

#include <cmath>
#include <vector>

#include "kernels.h"

namespace lec7::test {

struct Var {
  double value = 0;
  int node = -1;  // none: a constant

  Var() = default;
  Var(double v) : value(v) {}
  Var(double v, int n) : value(v), node(n) {}
};
using Vars = std::vector<Var>;

class Tape {
 public:
  Tape() { current_ = this; }
  ~Tape() { current_ = nullptr; }

  template <class T>
  Vars variables(const Array<T>& array) {
    Vars vars;
    for (const double v : array.values()) vars.push_back(record(v, {}, 0, {}, 0));
    return vars;
  }

  // Adds sum dy[i] y[i] to what is differentiated.
  template <class T>
  void add(const Vars& y, const Array<T>& dy) {
    gradients_.resize(nodes_.size());
    for (Index i = 0; i < dy.size(); ++i) {
      if (y[i].node >= 0) gradients_[y[i].node] += dy[i];
    }
  }

  void differentiate() {
    for (std::size_t i = nodes_.size(); i-- > 0;) {
      const Node& n = nodes_[i];
      if (n.a >= 0) gradients_[n.a] += n.da * gradients_[i];
      if (n.b >= 0) gradients_[n.b] += n.db * gradients_[i];
    }
  }

  std::vector<double> gradient(const Vars& x) const {
    std::vector<double> result;
    for (const Var& v : x) result.push_back(gradients_[v.node]);
    return result;
  }

  static Var record(double value, Var a, double da, Var b, double db) {
    current_->nodes_.push_back({a.node, b.node, da, db});
    return {value, static_cast<int>(current_->nodes_.size()) - 1};
  }
  static Var record(double value, Var a, double da) { return record(value, a, da, {}, 0); }

 private:
  struct Node {
    int a, b;
    double da, db;
  };
  static inline Tape* current_ = nullptr;
  std::vector<Node> nodes_;
  std::vector<double> gradients_;
};

inline Var operator+(Var a, Var b) { return Tape::record(a.value + b.value, a, 1, b, 1); }
inline Var operator-(Var a, Var b) { return Tape::record(a.value - b.value, a, 1, b, -1); }
inline Var operator*(Var a, Var b) { return Tape::record(a.value * b.value, a, b.value, b, a.value); }
inline Var operator/(Var a, Var b) {
  return Tape::record(a.value / b.value, a, 1 / b.value, b, -a.value / (b.value * b.value));
}
inline Var& operator+=(Var& a, Var b) { return a = a + b; }
inline Var exp(Var x) { return Tape::record(std::exp(x.value), x, std::exp(x.value)); }
inline Var log(Var x) { return Tape::record(std::log(x.value), x, 1 / x.value); }
inline Var relu(Var x) { return Tape::record(x.value > 0 ? x.value : 0, x, x.value > 0 ? 1 : 0); }
inline Var tanh(Var x) {
  const double y = std::tanh(x.value);
  return Tape::record(y, x, 1 - y * y);
}
inline Var sigmoid(Var x) { return 1.0 / (1.0 + exp(0.0 - x)); }

inline std::vector<double> values(const Vars& vars) {
  std::vector<double> result;
  for (const Var& v : vars) result.push_back(v.value);
  return result;
}

}  // namespace lec7::test
