// Updates: one launch and one pass over memory, which bounds them: sgd 12 bytes a parameter (20 with momentum), rmsprop
// 20, adam 28; scale 8. global_norm reads 4 and multiplies in float64, one product a number.
#include "lec7/optimizer.h"

#include <cmath>

#include "sum.h"

namespace lec7::cuda {
namespace {

struct SgdUpdate {
  float lr, momentum, decay, scale;
  bool nesterov;
  float* params;
  const float* grads;
  float* momentum_buffer;

  template <int width>
  __device__ void operator()(Index i) const {
    Floats<width> p = load<width>(params + i), buffer{};
    const Floats<width> g = load<width>(grads + i);
    if (momentum_buffer != nullptr) buffer = load<width>(momentum_buffer + i);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      float step = scale * g.at[j] + decay * p.at[j];
      if (momentum_buffer != nullptr) {
        buffer.at[j] = momentum * buffer.at[j] + step;
        step = nesterov ? step + momentum * buffer.at[j] : buffer.at[j];
      }
      p.at[j] -= lr * step;
    }
    if (momentum_buffer != nullptr) store(momentum_buffer + i, buffer);
    store(params + i, p);
  }
};

struct RmsPropUpdate {
  float lr, eps, keep, take, decay, scale;
  float* params;
  const float* grads;
  float* square_average;

  template <int width>
  __device__ void operator()(Index i) const {
    Floats<width> p = load<width>(params + i), average = load<width>(square_average + i);
    const Floats<width> grad = load<width>(grads + i);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const float g = scale * grad.at[j] + decay * p.at[j];
      average.at[j] = keep * average.at[j] + take * (g * g);
      p.at[j] -= lr * g / (sqrtf(average.at[j]) + eps);
    }
    store(square_average + i, average);
    store(params + i, p);
  }
};

struct AdamUpdate {
  float lr, correct, keep1, take1, keep2, take2, eps, decay, shrink, scale;
  float* params;
  const float* grads;
  float *mean, *variance;

  template <int width>
  __device__ void operator()(Index i) const {
    Floats<width> p = load<width>(params + i), m = load<width>(mean + i), v = load<width>(variance + i);
    const Floats<width> grad = load<width>(grads + i);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const float g = scale * grad.at[j] + decay * p.at[j];
      m.at[j] = keep1 * m.at[j] + take1 * g;
      v.at[j] = keep2 * v.at[j] + take2 * (g * g);
      p.at[j] = shrink * p.at[j] - lr * m.at[j] / (sqrtf(v.at[j]) * correct + eps);
    }
    store(mean + i, m);
    store(variance + i, v);
    store(params + i, p);
  }
};

struct Scale {
  float factor;
  float* x;

  template <int width>
  __device__ void operator()(Index i) const {
    Floats<width> v = load<width>(x + i);
#pragma unroll
    for (int j = 0; j < width; ++j) v.at[j] *= factor;
    store(x + i, v);
  }
};

struct Squares {
  const float* x;

  template <int width>
  __device__ double operator()(Index i) const {
    const Floats<width> v = load<width>(x + i);
    double sum = 0;
#pragma unroll
    for (int j = 0; j < width; ++j) sum += static_cast<double>(v.at[j]) * v.at[j];
    return sum;
  }
};
struct FinishNorm {
  double* norm;
  __device__ void operator()(double squares) const { *norm = sqrt(squares); }
};

}  // namespace

template <>
void sgd_update(const Sgd& o, Index n, float* params, const float* grads, float* momentum_buffer) {
  elementwise("sgd_update_kernel", n, {params, grads, momentum_buffer},
              SgdUpdate{static_cast<float>(o.lr), static_cast<float>(o.momentum), static_cast<float>(o.weight_decay),
                        static_cast<float>(o.grad_scale), o.nesterov, params, grads, momentum_buffer});
}

template <>
void rmsprop_update(const RmsProp& o, Index n, float* params, const float* grads, float* square_average) {
  elementwise("rmsprop_update_kernel", n, {params, grads, square_average},
              RmsPropUpdate{static_cast<float>(o.lr), static_cast<float>(o.eps), static_cast<float>(o.decay),
                            static_cast<float>(1 - o.decay), static_cast<float>(o.weight_decay),
                            static_cast<float>(o.grad_scale), params, grads, square_average});
}

template <>
void adam_update(const Adam& o, Index n, float* params, const float* grads, float* mean, float* variance) {
  // lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) with the corrections moved to constants.
  const double steps = static_cast<double>(o.step);
  AdamUpdate update;
  update.lr = static_cast<float>(o.lr / (1 - std::pow(o.beta1, steps)));
  update.correct = static_cast<float>(1 / std::sqrt(1 - std::pow(o.beta2, steps)));
  update.keep1 = static_cast<float>(o.beta1);
  update.take1 = static_cast<float>(1 - o.beta1);
  update.keep2 = static_cast<float>(o.beta2);
  update.take2 = static_cast<float>(1 - o.beta2);
  update.eps = static_cast<float>(o.eps);
  update.decay = static_cast<float>(o.decoupled ? 0 : o.weight_decay);
  update.shrink = static_cast<float>(o.decoupled ? 1 - o.lr * o.weight_decay : 1);
  update.scale = static_cast<float>(o.grad_scale);
  update.params = params;
  update.grads = grads;
  update.mean = mean;
  update.variance = variance;
  elementwise("adam_update_kernel", n, {params, grads, mean, variance}, update);
}

template <>
double global_norm(Index n, const float* x) {
  Buffer<double> norm(1);
  const Squares squares{x};
  const FinishNorm finish{norm.data()};
  if (in_fours({x})) sum_all<double, 4>("global_norm_kernel", n, squares, finish);
  else sum_all<double>("global_norm_kernel", n, squares, finish);
  double result;
  copy_to_host(&result, norm.data(), sizeof result);
  return result;
}

template <>
void scale(Index n, float* x, double factor) {
  elementwise("scale_kernel", n, {x}, Scale{static_cast<float>(factor), x});
}

}  // namespace lec7::cuda
