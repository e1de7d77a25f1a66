// Fused updates against the formulas, one element at a time; the norm.
#include "lec7/optimizer.h"

#include "kernels.h"

namespace lec7::test {
namespace {

const Index kSizes[] = {0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 100003};

struct Element {
  double param, grad, first, second;  // first and second: the states
};
using Rule = void (*)(const void* options, double g, Element& e);

double sgd_gradient(const Sgd& o, const Element& e) { return o.grad_scale.value * e.grad + o.weight_decay * e.param; }

void sgd_rule(const Sgd& o, bool has_buffer, Element& e) {
  const double g = sgd_gradient(o, e);
  if (!has_buffer) {
    e.param -= o.lr.value * g;
    return;
  }
  e.first = o.momentum * e.first + g;
  e.param -= o.lr.value * (o.nesterov ? g + o.momentum * e.first : e.first);
}

void rmsprop_rule(const RmsProp& o, Element& e) {
  const double g = o.grad_scale.value * e.grad + o.weight_decay * e.param;
  e.first = o.decay * e.first + (1 - o.decay) * g * g;
  e.param -= o.lr.value * g / (std::sqrt(e.first) + o.eps);
}

void adam_rule(const Adam& o, Element& e) {
  double g = o.grad_scale.value * e.grad;
  if (o.decoupled) e.param *= 1 - o.lr.value * o.weight_decay;
  else g += o.weight_decay * e.param;
  e.first = o.beta1 * e.first + (1 - o.beta1) * g;
  e.second = o.beta2 * e.second + (1 - o.beta2) * g * g;
  const double mean = e.first / (1 - std::pow(o.beta1, static_cast<double>(o.step.value)));
  const double variance = e.second / (1 - std::pow(o.beta2, static_cast<double>(o.step.value)));
  e.param -= o.lr.value * mean / (std::sqrt(variance) + o.eps);
}

// run(n, params, grads, first, second) on arrays does what rule(element) does.
template <class T, class Rule, class Run>
void check_update(Rule&& rule, Run&& run) {
  Random random;
  for (const Index n : kSizes) {
    const Trying size(text("n=", n));
    const Array<T> params = random.array<T>(n), grads = random.array<T>(n);
    const Array<T> first = random.array<T>(n, 0.1, 1), second = random.array<T>(n, 0.1, 1);
    std::vector<double> new_params, new_first, new_second;
    for (Index i = 0; i < n; ++i) {
      Element e{params[i], grads[i], first[i], second[i]};
      rule(e);
      new_params.push_back(e.param);
      new_first.push_back(e.first);
      new_second.push_back(e.second);
    }
    on_every_isa([&] {
      const Array<T> p(params.values()), a(first.values()), b(second.values());
      run(n, p.data(), grads.data(), a.data(), b.data());
      check_close(p, new_params, 8);
      check_close(a, new_first, 8);
      check_close(b, new_second, 8);
    });
  }
}

TEST(sgd) {
  with_types([]<class T> {
    struct Case {
      Sgd options;
      bool has_buffer;
    };
    for (const auto& [options, has_buffer] :
         {Case{{0.1, 0, false, 0, 1}, false}, Case{{0.1, 0, false, 0.2, 0.5}, false}, Case{{0.1, 0, false, 0, 1}, true},
          Case{{0.1, 0.9, false, 0.01, 1}, true}, Case{{0.1, 0.9, true, 0.01, 0.3}, true}}) {
      const Trying what(text("momentum=", options.momentum, ", nesterov=", options.nesterov, ", buffer=", has_buffer));
      check_update<T>([&](Element& e) { sgd_rule(options, has_buffer, e); },
                      [&](Index n, T* params, const T* grads, T* buffer, T*) {
                        LEC7_PICK(sgd_update<T>)(options, n, params, grads, has_buffer ? buffer : nullptr);
                      });
    }
  });
}

TEST(rmsprop) {
  with_types([]<class T> {
    for (const RmsProp& options : {RmsProp{0.01, 0.99, 1e-8, 0, 1}, RmsProp{0.1, 0.5, 1e-3, 0.1, 0.25}}) {
      check_update<T>([&](Element& e) { rmsprop_rule(options, e); },
                      [&](Index n, T* params, const T* grads, T* average, T*) {
                        LEC7_PICK(rmsprop_update<T>)(options, n, params, grads, average);
                      });
    }
  });
}

TEST(adam) {
  with_types([]<class T> {
    for (const bool decoupled : {false, true}) {
      for (const Index step : {1, 2, 1000, 1 << 30}) {
        const Trying what(text("step=", step, decoupled ? ", decoupled" : ""));
        const Adam options{0.01, step, 0.9, 0.999, 1e-8, 0.1, decoupled, 0.5};
        check_update<T>([&](Element& e) { adam_rule(options, e); },
                        [&](Index n, T* params, const T* grads, T* mean, T* variance) {
                          LEC7_PICK(adam_update<T>)(options, n, params, grads, mean, variance);
                        });
      }
    }
  });
}

TEST(norm_and_scale) {
  with_types([]<class T> {
    Random random;
    for (const Index n : kSizes) {
      const Trying size(text("n=", n));
      const Array<T> x = random.array<T>(n);
      long double squares = 0;
      std::vector<double> scaled;
      for (Index i = 0; i < n; ++i) {
        squares += static_cast<long double>(x[i]) * x[i];
        scaled.push_back(static_cast<T>(x[i] * T{0.75}));
      }
      on_every_isa([&] {
        const Array<double> norm(1);
        LEC7_PICK(global_norm<T>)(n, x.data(), norm.data());
        check_close(norm, {static_cast<double>(std::sqrt(squares))}, 64);
        const Array<T> y(x.values());
        LEC7_PICK(scale<T>)(n, y.data(), 0.75);
        check_same(y, scaled);
      });
    }
  });
}

TEST(norm_does_not_overflow_float32) {
  const Array<float> x(std::vector<double>(1000, 1e30));
  on_every_isa([&] {
    const Array<double> norm(1);
    LEC7_PICK(global_norm<float>)(1000, x.data(), norm.data());
    check_close(norm, {static_cast<double>(1e30f) * std::sqrt(1000)}, 64);
  });
}

}  // namespace
}  // namespace lec7::test
