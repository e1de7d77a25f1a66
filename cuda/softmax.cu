// softmax and the losses: bound by memory. A row is read once, 4 bytes a number, and its largest number and the sum of
// exponentials are found in one pass (Milakov, Gimelshein 2018): one exp a number, and one more where y or dx needs it.
//
//   softmax, log_softmax         forward 8 bytes a number, backward 12
//   softmax_cross_entropy        forward 4 bytes a logit, backward 8; the probabilities are never stored
//   binary_cross_entropy, mean_squared_error    forward 8 bytes a number, backward 12
//
// A loss is summed in float64, at most once a number; a mean over labels that count is divided by their weight, which
// backward adds up again: 8 bytes a row.
#include "lec7/softmax.h"

#include "activation.h"
#include "kernel.h"
#include "row.h"
#include "sum.h"
#include "values.h"

namespace lec7::cuda {
namespace {

// sum exp(x) = sum exp(largest); of no numbers: -inf and 0.
struct ExpSum {
  float largest, sum;

  __device__ void add(float x) {
    if (x > largest) {
      sum = sum * expf(largest - x) + 1;
      largest = x;
    } else if (x != -INFINITY) {  // or NaN: exp of it, then
      sum += expf(x - largest);
    }
  }
  // As an infinite largest number makes each term NaN, so does it here.
  __device__ float total() const { return sum + (largest - largest); }
};
__device__ inline ExpSum from_lane_xor(const ExpSum& v, int bits) {
  return {__shfl_xor_sync(kAllLanes, v.largest, bits), __shfl_xor_sync(kAllLanes, v.sum, bits)};
}
struct MergeExpSums {
  __device__ ExpSum operator()(const ExpSum& a, const ExpSum& b) const {
    const float largest = fmaxf(a.largest, b.largest);
    const auto part = [&](const ExpSum& v) { return v.largest == largest ? v.sum : v.sum * expf(v.largest - largest); };
    return {largest, part(a) + part(b)};
  }
};

template <class Team>
__device__ ExpSum exp_sum(const Row<Team>& row) {
  ExpSum mine{-INFINITY, 0};
  row.for_each([&](Index, float x) { mine.add(x); });
  return Team::reduce(mine, MergeExpSums{});
}

template <class Team>
__global__ void __launch_bounds__(Team::block)
    softmax_forward_kernel(SoftmaxShape s, bool logarithm, const float* x, float* y) {
  const Row<Team> row(x, s.rows, s.classes);
  const ExpSum all = exp_sum(row);
  float* const out = y + Team::row() * s.classes;
  if (logarithm) {
    const float log_sum = logf(all.total());
    row.for_each([&](Index k, float v) { out[k] = v - all.largest - log_sum; });
  } else {
    const float scale = 1 / all.total();
    row.for_each([&](Index k, float v) { out[k] = expf(v - all.largest) * scale; });
  }
}

template <class Team>
__global__ void __launch_bounds__(Team::block)
    softmax_backward_kernel(SoftmaxShape s, bool logarithm, const float* dy, const float* y, float* dx) {
  const Row<Team> row(y, s.rows, s.classes), gradient(dy, s.rows, s.classes);
  float* const out = dx + Team::row() * s.classes;
  float sum = 0;
  if (logarithm) {
    gradient.for_each([&](Index, float g) { sum += g; });
    sum = Team::sum(sum);
    row.for_each([&](Index k, float v, float g) { out[k] = g - expf(v) * sum; }, gradient);
  } else {
    row.for_each([&](Index, float v, float g) { sum += g * v; }, gradient);
    sum = Team::sum(sum);
    row.for_each([&](Index k, float v, float g) { out[k] = v * (g - sum); }, gradient);
  }
}

void forward(const char* name, bool logarithm, const SoftmaxShape& s, const float* x, float* y) {
  with_team(s.rows, s.classes, [&]<class Team>(const Grid& grid) {
    launch(name, softmax_forward_kernel<Team>, grid, s, logarithm, x, y);
  });
}
void backward(const char* name, bool logarithm, const SoftmaxShape& s, const float* dy, const float* y, float* dx) {
  with_team(s.rows, s.classes, [&]<class Team>(const Grid& grid) {
    launch(name, softmax_backward_kernel<Team>, grid, s, logarithm, dy, y, dx);
  });
}

}  // namespace

template <>
void softmax_forward(const SoftmaxShape& s, const float* x, float* y) {
  forward("softmax_forward_kernel", false, s, x, y);
}
template <>
void softmax_backward(const SoftmaxShape& s, const float* dy, const float* y, float* dx) {
  backward("softmax_backward_kernel", false, s, dy, y, dx);
}
template <>
void log_softmax_forward(const SoftmaxShape& s, const float* x, float* y) {
  forward("log_softmax_forward_kernel", true, s, x, y);
}
template <>
void log_softmax_backward(const SoftmaxShape& s, const float* dy, const float* y, float* dx) {
  backward("log_softmax_backward_kernel", true, s, dy, y, dx);
}

// ---- softmax cross-entropy ----

namespace {

// The parts of t[k] = class_weight[k] * ((1 - s) * [k = label] + s / K).
struct Target {
  Index rows, classes, ignored;
  bool ignores;
  float keep, every;  // 1 - s and s / K
  Indices labels;
  const float* class_weight;

  Target(const CrossEntropy& s, const Indices& label_values, const float* weight)
      : rows(s.rows),
        classes(s.classes),
        ignored(s.ignore_index.value_or(0)),
        ignores(s.ignore_index.has_value()),
        keep(static_cast<float>(1 - s.label_smoothing)),
        every(static_cast<float>(s.label_smoothing / static_cast<double>(s.classes))),
        labels(label_values),
        class_weight(weight) {}

  // The label of a row, or -1: the row is ignored. A label outside is, too, until the host hears of it.
  __device__ Index label(Index row) const {
    const Index label = row < rows ? index_at(labels, row) : -1;
    return label >= 0 && label < classes && !(ignores && label == ignored) ? label : -1;
  }
  __device__ float weight(Index k) const { return class_weight == nullptr ? 1.0f : class_weight[k]; }
};

template <class Team>
__global__ void __launch_bounds__(Team::block)
    softmax_cross_entropy_forward_kernel(Target target, const float* logits, float* terms, float* lse) {
  const Row<Team> row(logits, target.rows, target.classes);
  const ExpSum all = exp_sum(row);
  const float log_sum = logf(all.total());
  const auto cost = [&](float x) { return (all.largest - x) + log_sum; };
  float on_every = 0;
  if (target.every != 0) {
    // A class of no weight costs nothing, even with a logit of -inf.
    row.for_each([&](Index k, float x) {
      const float weight = target.weight(k);
      if (weight != 0) on_every += weight * cost(x);
    });
    on_every = target.every * Team::sum(on_every);
  }
  const Index r = Team::row();
  if (Team::rank() != 0 || r >= target.rows) return;
  lse[r] = all.largest + log_sum;
  float term = 0;
  if (const Index label = target.label(r); label >= 0) {
    const float on_label = target.keep * target.weight(label);
    term = on_every;
    if (on_label != 0) term += on_label * cost(logits[r * target.classes + label]);
  }
  terms[r] = term;
}

// scale: one number, or each row's; weight_sum: of all classes, or null without class_weight.
template <class Team>
__global__ void __launch_bounds__(Team::block)
    softmax_cross_entropy_backward_kernel(Target target, bool scale_each, const float* scale, const float* weight_sum,
                                          const float* logits, const float* lse, float* dlogits) {
  const Row<Team> row(logits, target.rows, target.classes);
  const Index r = Team::row(), label = target.label(r);
  if (r >= target.rows) return;
  float* const out = dlogits + r * target.classes;
  if (label < 0) {
    row.for_each([&](Index k, float) { out[k] = 0; });
    return;
  }
  const float g = scale[scale_each ? r : 0], log_sum = lse[r];
  const float on_label = g * (target.keep * target.weight(label)), on_every = g * target.every;
  const float weights = weight_sum == nullptr ? static_cast<float>(target.classes) : *weight_sum;
  const float on_probability = on_label + on_every * weights;
  row.for_each([&](Index k, float x) {
    float slope = on_probability * expf(x - log_sum);
    if (on_every != 0) slope -= on_every * target.weight(k);
    out[k] = k == label ? slope - on_label : slope;
  });
}

struct TermsAndWeights {
  Target target;
  const float* terms;
  template <int width>
  __device__ Pair<double> operator()(Index row) const {
    const Index label = target.label(row);
    return {terms[row], label < 0 ? 0.0 : target.weight(label)};
  }
};
struct FinishLoss {
  bool mean;
  float* loss;
  __device__ void operator()(const Pair<double>& sum) const {
    const double divisor = mean ? sum.second : 1.0;
    *loss = static_cast<float>(divisor == 0 ? 0 : sum.first / divisor);
  }
};

struct Weights {
  Target target;
  template <int width>
  __device__ double operator()(Index row) const {
    const Index label = target.label(row);
    return label < 0 ? 0.0 : target.weight(label);
  }
};
struct FinishScale {
  const float* dy;
  float* scale;
  __device__ void operator()(double divisor) const { *scale = static_cast<float>(divisor == 0 ? 0 : *dy / divisor); }
};

struct ClassWeights {
  const float* class_weight;
  template <int width>
  __device__ double operator()(Index k) const {
    return class_weight[k];
  }
};
struct FinishSum {
  float* sum;
  __device__ void operator()(double total) const { *sum = static_cast<float>(total); }
};

}  // namespace

template <>
void softmax_cross_entropy_forward(const CrossEntropy& s, const float* logits, const Indices& labels,
                                   const float* class_weight, float* loss, float* lse) {
  const Target target(s, labels, class_weight);
  const bool each = s.reduction == Reduction::none;
  Buffer<float> buffer(each ? 0 : s.rows);
  float* const terms = each ? loss : buffer.data();
  with_team(s.rows, s.classes, [&]<class Team>(const Grid& grid) {
    launch("softmax_cross_entropy_forward_kernel", softmax_cross_entropy_forward_kernel<Team>, grid, target, logits,
           terms, lse);
  });
  if (each) return;
  sum_all<Pair<double>>("softmax_cross_entropy_sum_kernel", s.rows, TermsAndWeights{target, terms},
                        FinishLoss{s.reduction == Reduction::mean, loss});
}

template <>
void softmax_cross_entropy_backward(const CrossEntropy& s, const float* dy, const float* logits, const Indices& labels,
                                    const float* lse, const float* class_weight, float* dlogits) {
  const Target target(s, labels, class_weight);
  const bool mean = s.reduction == Reduction::mean, weighted = target.every != 0 && class_weight != nullptr;
  Buffer<float> scale(mean ? 1 : 0), weight_sum(weighted ? 1 : 0);
  if (mean) {
    sum_all<double>("softmax_cross_entropy_weights_kernel", s.rows, Weights{target}, FinishScale{dy, scale.data()});
  }
  if (weighted) {
    sum_all<double>("softmax_cross_entropy_classes_kernel", s.classes, ClassWeights{class_weight},
                    FinishSum{weight_sum.data()});
  }
  with_team(s.rows, s.classes, [&]<class Team>(const Grid& grid) {
    launch("softmax_cross_entropy_backward_kernel", softmax_cross_entropy_backward_kernel<Team>, grid, target,
           s.reduction == Reduction::none, mean ? scale.data() : dy, weight_sum.data(), logits, lse, dlogits);
  });
}

// ---- pointwise losses ----

namespace {

struct BinaryCrossEntropy {
  static __device__ float loss(float x, float t) { return fmaxf(x, 0.0f) - x * t + log1pf(expf(-fabsf(x))); }
  static __device__ float slope(float x, float t) { return sigmoid(x) - t; }
};
struct SquaredError {
  static __device__ float loss(float x, float t) { return (x - t) * (x - t); }
  static __device__ float slope(float x, float t) { return 2 * (x - t); }
};

template <class Loss>
struct EachLoss {
  const float *x, *targets;
  float* loss;
  template <int width>
  __device__ void operator()(Index i) const {
    const Floats<width> v = load<width>(x + i), t = load<width>(targets + i);
    Floats<width> terms;
#pragma unroll
    for (int j = 0; j < width; ++j) terms.at[j] = Loss::loss(v.at[j], t.at[j]);
    store(loss + i, terms);
  }
};

template <class Loss>
struct LossTerms {
  const float *x, *targets;
  template <int width>
  __device__ double operator()(Index i) const {
    const Floats<width> v = load<width>(x + i), t = load<width>(targets + i);
    float sum = 0;  // of four: float64 additions are the dearest
#pragma unroll
    for (int j = 0; j < width; ++j) sum += Loss::loss(v.at[j], t.at[j]);
    return sum;
  }
};
struct FinishQuotient {
  double divisor;
  float* loss;
  __device__ void operator()(double total) const { *loss = static_cast<float>(total / divisor); }
};

template <class Loss>
struct LossGradient {
  bool each;      // dy is one number otherwise,
  float divisor;  // over this
  const float *dy, *x, *targets;
  float* dx;
  template <int width>
  __device__ void operator()(Index i) const {
    const Floats<width> v = load<width>(x + i), t = load<width>(targets + i);
    Floats<width> g;
    if (each) {
      g = load<width>(dy + i);
    } else {
      const float scale = *dy / divisor;
#pragma unroll
      for (int j = 0; j < width; ++j) g.at[j] = scale;
    }
#pragma unroll
    for (int j = 0; j < width; ++j) g.at[j] *= Loss::slope(v.at[j], t.at[j]);
    store(dx + i, g);
  }
};

double divisor_of(Reduction reduction, Index n) {
  return reduction == Reduction::mean && n > 0 ? static_cast<double>(n) : 1.0;
}

template <class Loss>
void pointwise_forward(const KernelName& name, Index n, const float* x, const float* targets, Reduction reduction,
                       float* loss) {
  if (reduction == Reduction::none) {
    elementwise(name, n, {x, targets, loss}, EachLoss<Loss>{x, targets, loss});
  } else {
    const LossTerms<Loss> terms{x, targets};
    const FinishQuotient finish{divisor_of(reduction, n), loss};
    if (in_fours({x, targets})) sum_all<double, 4>(name, n, terms, finish);
    else sum_all<double>(name, n, terms, finish);
  }
}

template <class Loss>
void pointwise_backward(const KernelName& name, Index n, const float* dy, const float* x, const float* targets,
                        Reduction reduction, float* dx) {
  const bool each = reduction == Reduction::none;
  const auto divisor = static_cast<float>(divisor_of(reduction, n));
  elementwise(name, n, {each ? dy : nullptr, x, targets, dx}, LossGradient<Loss>{each, divisor, dy, x, targets, dx});
}

}  // namespace

template <>
void binary_cross_entropy_forward(Index n, const float* logits, const float* targets, Reduction reduction,
                                  float* loss) {
  pointwise_forward<BinaryCrossEntropy>("binary_cross_entropy_forward_kernel", n, logits, targets, reduction, loss);
}
template <>
void binary_cross_entropy_backward(Index n, const float* dy, const float* logits, const float* targets,
                                   Reduction reduction, float* dlogits) {
  pointwise_backward<BinaryCrossEntropy>("binary_cross_entropy_backward_kernel", n, dy, logits, targets, reduction,
                                         dlogits);
}
template <>
void mean_squared_error_forward(Index n, const float* x, const float* targets, Reduction reduction, float* loss) {
  pointwise_forward<SquaredError>("mean_squared_error_forward_kernel", n, x, targets, reduction, loss);
}
template <>
void mean_squared_error_backward(Index n, const float* dy, const float* x, const float* targets, Reduction reduction,
                                 float* dx) {
  pointwise_backward<SquaredError>("mean_squared_error_backward_kernel", n, dy, x, targets, reduction, dx);
}

}  // namespace lec7::cuda
