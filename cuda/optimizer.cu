// Updates: one launch and one pass over memory, which bounds them: sgd 12 bytes a parameter (20 with momentum), rmsprop
// 20, adam 28; scale 8. global_norm reads 4 and multiplies in float64, one product a number.
//
// Where a number lies on the device, the same kernel reads it; what Adam makes of its own, one thread computes before.
#include "lec7/optimizer.h"

#include <cmath>

#include "clip.h"
#include "sum.h"

namespace lec7::cuda {
namespace {

// A factor that the host rounded, or one on the device.
struct Factor {
  float known;
  const double* on_device;

  explicit Factor(const Number<double>& number)
      : known(static_cast<float>(number.value)), on_device(number.on_device) {}
  __device__ float get() const { return on_device == nullptr ? known : static_cast<float>(*on_device); }
};

struct SgdUpdate {
  Factor rate, factor;
  float momentum, decay;
  bool nesterov;
  float* params;
  const float* grads;
  float* momentum_buffer;

  template <int width>
  __device__ void operator()(Index i) const {
    Floats<width> p = load<width>(params + i), buffer{};
    const Floats<width> g = load<width>(grads + i);
    const float lr = rate.get(), scale = factor.get();
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
  Factor rate, factor;
  float eps, keep, take, decay;
  float* params;
  const float* grads;
  float* square_average;

  template <int width>
  __device__ void operator()(Index i) const {
    Floats<width> p = load<width>(params + i), average = load<width>(square_average + i);
    const Floats<width> grad = load<width>(grads + i);
    const float lr = rate.get(), scale = factor.get();
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

// a * b, never fused with a sum that follows: the host and the device get the same bits.
__host__ __device__ inline double product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  volatile double result = a * b;
  return result;
#endif
}

__host__ __device__ inline double power(double base, Index exponent) {
  double result = 1;
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 == 1) result = product(result, base);
    base = product(base, base);
  }
  return result;
}

// lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) with the corrections moved to constants.
struct AdamFactors {
  float lr, correct, shrink, scale;

  __host__ __device__ static AdamFactors of(const Adam& o) {
    const double lr = o.lr.get();
    const Index step = o.step.get();
    AdamFactors f;
    f.lr = static_cast<float>(lr / (1 - power(o.beta1, step)));
    f.correct = static_cast<float>(1 / sqrt(1 - power(o.beta2, step)));
    f.shrink = static_cast<float>(o.decoupled ? 1 - product(lr, o.weight_decay) : 1);
    f.scale = static_cast<float>(o.grad_scale.get());
    return f;
  }
};

__global__ void __launch_bounds__(1) adam_factors_kernel(Adam o, AdamFactors* factors) {
  *factors = AdamFactors::of(o);
}

struct AdamUpdate {
  AdamFactors known;
  const AdamFactors* on_device;  // or null
  float keep1, take1, keep2, take2, eps, decay;
  float* params;
  const float* grads;
  float *mean, *variance;

  template <int width>
  __device__ void operator()(Index i) const {
    Floats<width> p = load<width>(params + i), m = load<width>(mean + i), v = load<width>(variance + i);
    const Floats<width> grad = load<width>(grads + i);
    const AdamFactors f = on_device == nullptr ? known : *on_device;
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const float g = f.scale * grad.at[j] + decay * p.at[j];
      m.at[j] = keep1 * m.at[j] + take1 * g;
      v.at[j] = keep2 * v.at[j] + take2 * (g * g);
      p.at[j] = f.shrink * p.at[j] - f.lr * m.at[j] / (sqrtf(v.at[j]) * f.correct + eps);
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

__global__ void __launch_bounds__(1) clip_scale_kernel(const double* norm, double limit, double* scale) {
  *scale = *norm <= limit ? 1 : limit / *norm;
}

}  // namespace

template <>
void sgd_update(const Sgd& o, Index n, float* params, const float* grads, float* momentum_buffer) {
  elementwise("sgd_update_kernel", n, {params, grads, momentum_buffer},
              SgdUpdate{Factor(o.lr), Factor(o.grad_scale), static_cast<float>(o.momentum),
                        static_cast<float>(o.weight_decay), o.nesterov, params, grads, momentum_buffer});
}

template <>
void rmsprop_update(const RmsProp& o, Index n, float* params, const float* grads, float* square_average) {
  elementwise("rmsprop_update_kernel", n, {params, grads, square_average},
              RmsPropUpdate{Factor(o.lr), Factor(o.grad_scale), static_cast<float>(o.eps), static_cast<float>(o.decay),
                            static_cast<float>(1 - o.decay), static_cast<float>(o.weight_decay), params, grads,
                            square_average});
}

template <>
void adam_update(const Adam& o, Index n, float* params, const float* grads, float* mean, float* variance) {
  if (o.step.on_device == nullptr) refuse_recording("adam_update_", "step");
  const bool known = o.lr.on_device == nullptr && o.step.on_device == nullptr && o.grad_scale.on_device == nullptr;
  Buffer<AdamFactors> factors(known ? 0 : 1);
  if (!known) launch("adam_factors_kernel", adam_factors_kernel, {1, 1}, o, factors.data());
  const AdamUpdate update{known ? AdamFactors::of(o) : AdamFactors{},
                          factors.data(),
                          static_cast<float>(o.beta1),
                          static_cast<float>(1 - o.beta1),
                          static_cast<float>(o.beta2),
                          static_cast<float>(1 - o.beta2),
                          static_cast<float>(o.eps),
                          static_cast<float>(o.decoupled ? 0 : o.weight_decay),
                          params,
                          grads,
                          mean,
                          variance};
  elementwise("adam_update_kernel", n, {params, grads, mean, variance}, update);
}

template <>
void global_norm(Index n, const float* x, double* norm) {
  const Squares squares{x};
  const FinishNorm finish{norm};
  if (in_fours({x})) sum_all<double, 4>("global_norm_kernel", n, squares, finish);
  else sum_all<double>("global_norm_kernel", n, squares, finish);
}

void clip_scale(const double* norm, double limit, double* scale) {
  launch("clip_scale_kernel", clip_scale_kernel, {1, 1}, norm, limit, scale);
}

template <>
void scale(Index n, float* x, double factor) {
  elementwise("scale_kernel", n, {x}, Scale{static_cast<float>(factor), x});
}

}  // namespace lec7::cuda
