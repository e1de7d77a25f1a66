// softmax and the losses: bound by exp (about one cycle a number in AVX-512) while a row stays in the cache, so a row
// is read twice (the largest, then the sum) and nothing but the result is written.
#include "lec7/softmax.h"

#include <algorithm>
#include <cmath>

#include "lec7/memory.h"
#include "lec7/parallel.h"
#include "reduce.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kGrain = 1 << 15;  // numbers a task

// Runs body(row) on every row of a (rows, n) array.
template <class Body>
void for_rows(Index rows, Index n, Body&& body) {
  parallel_ranges(rows, std::max<Index>(1, kGrain / n), [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) body(row);
  });
}

// The sum over [0, n) of sum(begin, end) on ranges, each in float64, added in their order.
template <class SumRange>
double sum_ranges(Index n, Index grain, SumRange&& sum) {
  const Index ranges = (n + grain - 1) / grain;
  memory::Buffer<double> partial(ranges);
  parallel_ranges(n, grain, [&](Index begin, Index end) { partial[begin / grain] = sum(begin, end); });
  double total = 0;
  for (Index i = 0; i < ranges; ++i) total += partial[i];
  return total;
}

template <class T>
struct LogSumExp {
  T largest, log_sum;
};

// log sum exp(x) = largest + log sum exp(x - largest).
template <class T>
LEC7_INLINE LogSumExp<T> log_sum_exp(const T* x, Index n) {
  const T largest = row_max(x, n);
  const T sum =
      row_sum<T>(n, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE { return exp<T>(load_lanes(x + i, lanes) - largest); });
  return {largest, std::log(sum)};
}

// log(1 + e) for e in [0, 1], with small relative error: 2 atanh z = 2 (z + z^3/3 + ...), z = e / (2 + e) <= 1/3. The
// polynomial interpolates (atanh(z)/z - 1) / z^2 at Chebyshev's points: 4e-10.
template <class T>
LEC7_INLINE Vec<T> log1p_of_unit(Vec<T> e) {
  if constexpr (std::is_same_v<T, double>) {
    return each_lane<T>(e, [](T v) { return std::log1p(v); });
  } else {
    const Vec<T> z = e / (e + 2.0f);
    const Vec<T> s = z * z;
    Vec<T> p = broadcast(0.116121642f);
    p = p * s + 0.10853288f;
    p = p * s + 0.14296179f;
    p = p * s + 0.199998532f;
    p = p * s + 0.333333337f;
    return (z + z) * (p * s + 1.0f);
  }
}

}  // namespace

template <class T>
void softmax_forward(const SoftmaxShape& s, const T* x, T* y) {
  for_rows(s.rows, s.classes, [&](Index row) {
    const T* const in = x + row * s.classes;
    T* const out = y + row * s.classes;
    const T largest = row_max(in, s.classes);
    const T sum = row_sum<T>(s.classes, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
      const Vec<T> e = exp<T>(load_lanes(in + i, lanes) - largest);
      store_lanes(out + i, e, lanes);
      return e;
    });
    const T scale = 1 / sum;
    for_lanes<T>(s.classes,
                 [&](Index i, auto lanes) { store_lanes(out + i, load_lanes(out + i, lanes) * scale, lanes); });
  });
}

template <class T>
void softmax_backward(const SoftmaxShape& s, const T* dy, const T* y, T* dx) {
  for_rows(s.rows, s.classes, [&](Index row) {
    const Index at = row * s.classes;
    const T dot = row_sum<T>(s.classes, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
      return load_lanes(dy + at + i, lanes) * load_lanes(y + at + i, lanes);
    });
    for_lanes<T>(s.classes, [&](Index i, auto lanes) {
      const Index k = at + i;
      store_lanes(dx + k, load_lanes(y + k, lanes) * (load_lanes(dy + k, lanes) - dot), lanes);
    });
  });
}

template <class T>
void log_softmax_forward(const SoftmaxShape& s, const T* x, T* y) {
  for_rows(s.rows, s.classes, [&](Index row) {
    const T* const in = x + row * s.classes;
    T* const out = y + row * s.classes;
    const auto [largest, log_sum] = log_sum_exp(in, s.classes);
    for_lanes<T>(s.classes, [&](Index i, auto lanes) {
      store_lanes(out + i, load_lanes(in + i, lanes) - largest - log_sum, lanes);
    });
  });
}

template <class T>
void log_softmax_backward(const SoftmaxShape& s, const T* dy, const T* y, T* dx) {
  for_rows(s.rows, s.classes, [&](Index row) {
    const Index at = row * s.classes;
    const T sum =
        row_sum<T>(s.classes, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE { return load_lanes(dy + at + i, lanes); });
    for_lanes<T>(s.classes, [&](Index i, auto lanes) {
      const Index k = at + i;
      store_lanes(dx + k, load_lanes(dy + k, lanes) - exp<T>(load_lanes(y + k, lanes)) * sum, lanes);
    });
  });
}

// ---- softmax cross-entropy ----

namespace {

// The parts of t[k] = class_weight[k] * ((1 - s) * [k = label] + s / K).
template <class T>
struct Target {
  const CrossEntropy& shape;
  const Indices& labels;
  const T* class_weight;
  double every = shape.label_smoothing / static_cast<double>(shape.classes);  // s / K
  double every_sum = every * weight_sum();

  bool ignored(Index label) const { return shape.ignore_index && label == *shape.ignore_index; }
  double weight(Index label) const { return class_weight == nullptr ? 1.0 : class_weight[label]; }
  double on_label(Index label) const { return (1 - shape.label_smoothing) * weight(label); }

  // What "mean" divides by: the weights of the labels that count.
  double divisor() const {
    if (shape.reduction != Reduction::mean) return 1;
    double sum = 0;
    for (Index row = 0; row < shape.rows; ++row) {
      const Index label = labels[row];
      if (!ignored(label)) sum += weight(label);
    }
    return sum;
  }

 private:
  double weight_sum() const {
    if (class_weight == nullptr) return static_cast<double>(shape.classes);
    double sum = 0;
    for (Index k = 0; k < shape.classes; ++k) sum += class_weight[k];
    return sum;
  }
};

}  // namespace

template <class T>
void softmax_cross_entropy_forward(const CrossEntropy& s, const T* logits, const Indices& labels, const T* class_weight,
                                   T* loss, T* lse) {
  const Target<T> target{s, labels, class_weight};
  const double total = sum_ranges(s.rows, std::max<Index>(1, kGrain / s.classes), [&](Index begin, Index end) {
    double sum = 0;
    for (Index row = begin; row < end; ++row) {
      const T* const x = logits + row * s.classes;
      const auto [largest, log_sum] = log_sum_exp(x, s.classes);
      lse[row] = largest + log_sum;
      double term = 0;
      if (const Index label = labels[row]; !target.ignored(label)) {
        const auto cost = [&](Vec<T> logit) LEC7_LAMBDA_INLINE { return (largest - logit) + log_sum; };
        // A class of no weight costs nothing, even with a logit of -inf.
        const double on_label = target.on_label(label);
        if (on_label != 0) term = on_label * cost(broadcast(x[label]))[0];
        if (target.every != 0) {
          const T all = row_sum<T>(s.classes, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
            if (class_weight == nullptr) return cost(load_lanes(x + i, lanes));
            const Vec<T> weight = load_lanes(class_weight + i, lanes);
            return weight != 0 ? weight * cost(load_lanes(x + i, lanes)) : Vec<T>{};
          });
          term += target.every * all;
        }
      }
      if (s.reduction == Reduction::none) loss[row] = static_cast<T>(term);
      sum += term;
    }
    return sum;
  });
  if (s.reduction == Reduction::none) return;
  const double divisor = target.divisor();
  loss[0] = static_cast<T>(divisor == 0 ? 0 : total / divisor);
}

template <class T>
void softmax_cross_entropy_backward(const CrossEntropy& s, const T* dy, const T* logits, const Indices& labels,
                                    const T* lse, const T* class_weight, T* dlogits) {
  const Target<T> target{s, labels, class_weight};
  const double divisor = target.divisor();
  for_rows(s.rows, s.classes, [&](Index row) {
    const T* const x = logits + row * s.classes;
    T* const dx = dlogits + row * s.classes;
    const Index label = labels[row];
    if (target.ignored(label) || divisor == 0) {
      std::fill(dx, dx + s.classes, T{0});
      return;
    }
    const double scale = s.reduction == Reduction::none ? dy[row] : dy[0] / divisor;
    const T on_label = static_cast<T>(scale * target.on_label(label));
    const T on_every = static_cast<T>(scale * target.every);
    const T on_probability = static_cast<T>(scale * (target.on_label(label) + target.every_sum));
    const T log_sum = lse[row];
    const auto slope = [&](Index i, auto lanes)
                           LEC7_LAMBDA_INLINE { return on_probability * exp<T>(load_lanes(x + i, lanes) - log_sum); };
    if (on_every == 0) {
      for_lanes<T>(s.classes, [&](Index i, auto lanes) { store_lanes(dx + i, slope(i, lanes), lanes); });
    } else if (class_weight == nullptr) {
      for_lanes<T>(s.classes, [&](Index i, auto lanes) { store_lanes(dx + i, slope(i, lanes) - on_every, lanes); });
    } else {
      for_lanes<T>(s.classes, [&](Index i, auto lanes) {
        store_lanes(dx + i, slope(i, lanes) - on_every * load_lanes(class_weight + i, lanes), lanes);
      });
    }
    dx[label] -= on_label;
  });
}

// ---- pointwise losses ----

namespace {

// loss = the reduction of term(i, lanes) over [0, n).
template <class T, class Term>
void pointwise_forward(Index n, Reduction reduction, T* loss, Term&& term) {
  if (reduction == Reduction::none) {
    parallel_ranges(n, kGrain, [&](Index begin, Index end) {
      for_lanes<T>(end - begin,
                   [&](Index i, auto lanes) { store_lanes(loss + begin + i, term(begin + i, lanes), lanes); });
    });
    return;
  }
  const double total = sum_ranges(n, kGrain, [&](Index begin, Index end) {
    Sum64 sum;
    for_lanes<T>(end - begin,
                 [&](Index i, auto lanes) { sum.add(first_lanes<T>(term(begin + i, lanes), lanes, T{0})); });
    return sum.total();
  });
  const double divisor = reduction == Reduction::mean ? static_cast<double>(std::max<Index>(n, 1)) : 1.0;
  loss[0] = static_cast<T>(total / divisor);
}

// dx = (dy, over n for the mean) * slope(i, lanes)
template <class T, class Slope>
void pointwise_backward(Index n, Reduction reduction, const T* dy, T* dx, Slope&& slope) {
  const double divisor = reduction == Reduction::mean ? static_cast<double>(std::max<Index>(n, 1)) : 1.0;
  const T scale = reduction == Reduction::none ? T{1} : static_cast<T>(dy[0] / divisor);
  parallel_ranges(n, kGrain, [&](Index begin, Index end) {
    for_lanes<T>(end - begin, [&](Index k, auto lanes) {
      const Index i = begin + k;
      const Vec<T> g = reduction == Reduction::none ? load_lanes(dy + i, lanes) : broadcast(scale);
      store_lanes(dx + i, g * slope(i, lanes), lanes);
    });
  });
}

}  // namespace

template <class T>
void binary_cross_entropy_forward(Index n, const T* logits, const T* targets, Reduction reduction, T* loss) {
  pointwise_forward(n, reduction, loss, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
    const Vec<T> x = load_lanes(logits + i, lanes), t = load_lanes(targets + i, lanes);
    const Vec<T> positive = max<T>(Vec<T>{}, x), negative = min<T>(Vec<T>{}, x);
    return positive - x * t + log1p_of_unit<T>(exp<T>(negative - positive));
  });
}

template <class T>
void binary_cross_entropy_backward(Index n, const T* dy, const T* logits, const T* targets, Reduction reduction,
                                   T* dlogits) {
  pointwise_backward(n, reduction, dy, dlogits, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
    return sigmoid<T>(load_lanes(logits + i, lanes)) - load_lanes(targets + i, lanes);
  });
}

template <class T>
void mean_squared_error_forward(Index n, const T* x, const T* targets, Reduction reduction, T* loss) {
  pointwise_forward(n, reduction, loss, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
    const Vec<T> error = load_lanes(x + i, lanes) - load_lanes(targets + i, lanes);
    return error * error;
  });
}

template <class T>
void mean_squared_error_backward(Index n, const T* dy, const T* x, const T* targets, Reduction reduction, T* dx) {
  pointwise_backward(n, reduction, dy, dx, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
    const Vec<T> error = load_lanes(x + i, lanes) - load_lanes(targets + i, lanes);
    return error + error;
  });
}

#define LEC7_INSTANTIATE(T)                                                                                       \
  template void softmax_forward(const SoftmaxShape&, const T*, T*);                                               \
  template void softmax_backward(const SoftmaxShape&, const T*, const T*, T*);                                    \
  template void log_softmax_forward(const SoftmaxShape&, const T*, T*);                                           \
  template void log_softmax_backward(const SoftmaxShape&, const T*, const T*, T*);                                \
  template void softmax_cross_entropy_forward(const CrossEntropy&, const T*, const Indices&, const T*, T*, T*);   \
  template void softmax_cross_entropy_backward(const CrossEntropy&, const T*, const T*, const Indices&, const T*, \
                                               const T*, T*);                                                     \
  template void binary_cross_entropy_forward(Index, const T*, const T*, Reduction, T*);                           \
  template void binary_cross_entropy_backward(Index, const T*, const T*, const T*, Reduction, T*);                \
  template void mean_squared_error_forward(Index, const T*, const T*, Reduction, T*);                             \
  template void mean_squared_error_backward(Index, const T*, const T*, const T*, Reduction, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
