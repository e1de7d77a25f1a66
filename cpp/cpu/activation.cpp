// Activations: one pass over memory; sigmoid and tanh cost about one cycle a number in AVX-512.
#include "activation.h"

#include "lec7/parallel.h"

namespace lec7::cpu::LEC7_ISA {

namespace {
constexpr Index kGrain = 1 << 15;  // numbers a task: 128 KiB in, 128 KiB out
}

template <class T>
void activation_forward(Activation activation, Index n, const T* x, T* y) {
  with_activation(activation, [&]<Activation a> {
    parallel_ranges(n, kGrain, [&](Index begin, Index end) {
      for_lanes<T>(end - begin, [&](Index i, auto lanes) {
        store_lanes(y + begin + i, activate<T, a>(load_lanes(x + begin + i, lanes)), lanes);
      });
    });
  });
}

template <class T>
void activation_backward(Activation activation, Index n, const T* dy, const T* y, T* dx) {
  with_activation(activation, [&]<Activation a> {
    parallel_ranges(n, kGrain, [&](Index begin, Index end) {
      for_lanes<T>(end - begin, [&](Index i, auto lanes) {
        const Index at = begin + i;
        store_lanes(dx + at, activate_backward<T, a>(load_lanes(dy + at, lanes), load_lanes(y + at, lanes)), lanes);
      });
    });
  });
}

template <class T>
void activate_rows(Activation activation, Index rows, Index n, T* y, Index ld) {
  if (activation == Activation::none) return;
  if (ld == n) n *= rows, rows = 1;  // no row ends in the middle of a vector
  with_activation(activation, [&]<Activation a> {
    for (Index row = 0; row < rows; ++row) {
      T* const p = y + row * ld;
      for_lanes<T>(n,
                   [&](Index i, auto lanes) { store_lanes(p + i, activate<T, a>(load_lanes(p + i, lanes)), lanes); });
    }
  });
}

#define LEC7_INSTANTIATE(T)                                                     \
  template void activation_forward(Activation, Index, const T*, T*);            \
  template void activation_backward(Activation, Index, const T*, const T*, T*); \
  template void activate_rows(Activation, Index, Index, T*, Index);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
