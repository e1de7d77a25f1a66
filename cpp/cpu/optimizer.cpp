// Updates: each array is read once and written once, in place; memory is the limit (a square root and a division cost
// two cycles a number in AVX-512, reading and writing Adam's 28 bytes more). Non-temporal stores would halve the speed
// here: the lines are in the cache because they were just read.
#include "lec7/optimizer.h"

#include <cmath>

#include "lec7/memory.h"
#include "lec7/parallel.h"
#include "reduce.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kGrain = 1 << 14;  // numbers a task

// update(i, lanes) over [0, n) on all threads.
template <class T, class Update>
void for_parameters(Index n, Update&& update) {
  parallel_ranges(n, kGrain, [&](Index begin, Index end) {
    for_lanes<T>(end - begin, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE { update(begin + i, lanes); });
  });
}

template <class T>
LEC7_INLINE Vec<T> square_root(Vec<T> x) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return (Vec<T>)_mm512_sqrt_ps((__m512)x);
  else return (Vec<T>)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) return (Vec<T>)_mm256_sqrt_ps((__m256)x);
  else return (Vec<T>)_mm256_sqrt_pd((__m256d)x);
#else
  return each_lane<T>(x, [](T v) { return std::sqrt(v); });
#endif
}

}  // namespace

template <class T>
void sgd_update(const Sgd& o, Index n, T* params, const T* grads, T* momentum_buffer) {
  const T lr = static_cast<T>(o.lr.value), momentum = static_cast<T>(o.momentum);
  const T decay = static_cast<T>(o.weight_decay), scale = static_cast<T>(o.grad_scale.value);
  const auto update = [&]<bool has_buffer, bool nesterov> {
    for_parameters<T>(n, [=](Index i, auto lanes) LEC7_LAMBDA_INLINE {
      const Vec<T> p = load_lanes(params + i, lanes);
      Vec<T> step = scale * load_lanes(grads + i, lanes) + decay * p;
      if constexpr (has_buffer) {
        const Vec<T> buffer = momentum * load_lanes(momentum_buffer + i, lanes) + step;
        store_lanes(momentum_buffer + i, buffer, lanes);
        step = nesterov ? step + momentum * buffer : buffer;
      }
      store_lanes(params + i, p - lr * step, lanes);
    });
  };
  if (momentum_buffer == nullptr) update.template operator()<false, false>();
  else if (o.nesterov) update.template operator()<true, true>();
  else update.template operator()<true, false>();
}

template <class T>
void rmsprop_update(const RmsProp& o, Index n, T* params, const T* grads, T* square_average) {
  const T lr = static_cast<T>(o.lr.value), eps = static_cast<T>(o.eps);
  const T keep = static_cast<T>(o.decay), take = static_cast<T>(1 - o.decay);
  const T decay = static_cast<T>(o.weight_decay), scale = static_cast<T>(o.grad_scale.value);
  for_parameters<T>(n, [=](Index i, auto lanes) LEC7_LAMBDA_INLINE {
    const Vec<T> p = load_lanes(params + i, lanes);
    const Vec<T> g = scale * load_lanes(grads + i, lanes) + decay * p;
    const Vec<T> average = keep * load_lanes(square_average + i, lanes) + take * (g * g);
    store_lanes(square_average + i, average, lanes);
    store_lanes(params + i, p - lr * g / (square_root<T>(average) + eps), lanes);
  });
}

template <class T>
void adam_update(const Adam& o, Index n, T* params, const T* grads, T* mean, T* variance) {
  // lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) with the corrections moved to constants.
  const double steps = static_cast<double>(o.step.value);
  const T lr = static_cast<T>(o.lr.value / (1 - std::pow(o.beta1, steps)));
  const T correct = static_cast<T>(1 / std::sqrt(1 - std::pow(o.beta2, steps)));
  const T keep1 = static_cast<T>(o.beta1), take1 = static_cast<T>(1 - o.beta1);
  const T keep2 = static_cast<T>(o.beta2), take2 = static_cast<T>(1 - o.beta2);
  const T eps = static_cast<T>(o.eps), scale = static_cast<T>(o.grad_scale.value);
  const T decay = static_cast<T>(o.decoupled ? 0 : o.weight_decay);
  const T shrink = static_cast<T>(o.decoupled ? 1 - o.lr.value * o.weight_decay : 1);
  for_parameters<T>(n, [=](Index i, auto lanes) LEC7_LAMBDA_INLINE {
    const Vec<T> p = load_lanes(params + i, lanes);
    const Vec<T> g = scale * load_lanes(grads + i, lanes) + decay * p;
    const Vec<T> m = keep1 * load_lanes(mean + i, lanes) + take1 * g;
    const Vec<T> v = keep2 * load_lanes(variance + i, lanes) + take2 * (g * g);
    store_lanes(mean + i, m, lanes);
    store_lanes(variance + i, v, lanes);
    store_lanes(params + i, shrink * p - lr * m / (square_root<T>(v) * correct + eps), lanes);
  });
}

template <class T>
void global_norm(Index n, const T* x, double* norm) {
  const Index ranges = (n + kGrain - 1) / kGrain;
  memory::Buffer<double> partial(ranges);
  parallel_ranges(n, kGrain, [&](Index begin, Index end) {
    Sum64 sums[4];
    Index i = begin;
    for (; i + 4 * W<T> <= end; i += 4 * W<T>) {
      LEC7_UNROLL
      for (int j = 0; j < 4; ++j) sums[j].add_square(load(x + i + j * W<T>));
    }
    for_lanes<T>(end - i, [&](Index k, auto lanes) { sums[0].add_square(load_lanes(x + i + k, lanes)); });
    partial[begin / kGrain] = (sums[0].total() + sums[1].total()) + (sums[2].total() + sums[3].total());
  });
  double total = 0;
  for (Index i = 0; i < ranges; ++i) total += partial[i];
  *norm = std::sqrt(total);
}

template <class T>
void scale(Index n, T* x, double factor) {
  const T f = static_cast<T>(factor);
  for_parameters<T>(
      n, [=](Index i, auto lanes) LEC7_LAMBDA_INLINE { store_lanes(x + i, f * load_lanes(x + i, lanes), lanes); });
}

#define LEC7_INSTANTIATE(T)                                              \
  template void sgd_update(const Sgd&, Index, T*, const T*, T*);         \
  template void rmsprop_update(const RmsProp&, Index, T*, const T*, T*); \
  template void adam_update(const Adam&, Index, T*, const T*, T*, T*);   \
  template void global_norm(Index, const T*, double*);                   \
  template void scale(Index, T*, double);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
