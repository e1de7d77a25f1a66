// Transposed convolution: the passes of the convolution that it transposes, in other roles. Its variants are those of
// conv.cpp; the bias is a pass of its own over y.
#include "lec7/conv_transpose.h"

#include "column_sum.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kGrain = 1 << 14;  // numbers a task

template <class T>
void add_bias(Index rows, Index n, const T* bias, T* y) {
  parallel_ranges(rows, std::max<Index>(1, kGrain / n), [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      for_lanes<T>(n, [&](Index j, auto lanes) LEC7_LAMBDA_INLINE {
        T* const p = y + row * n + j;
        store_lanes(p, load_lanes(p, lanes) + load_lanes(bias + j, lanes), lanes);
      });
    }
  });
}

}  // namespace

template <class T>
void conv_transpose_forward(const ConvTransposeShape& s, const T* x, const T* weight, const T* bias, T* y) {
  constexpr T* none = nullptr;
  conv_backward<T>(s.conv, x, none, weight, none, y, none, none);
  if (bias != nullptr) add_bias(s.y.size() / s.filters(), s.filters(), bias, y);
}

template <class T>
void conv_transpose_backward(const ConvTransposeShape& s, const T* dy, const T* x, const T* weight, T* dx, T* dweight,
                             T* dbias) {
  constexpr T* none = nullptr;
  if (dx != nullptr) conv_forward<T>(s.conv, dy, weight, none, dx);
  if (dweight != nullptr) conv_backward<T>(s.conv, x, dy, weight, none, none, dweight, none);
  if (dbias != nullptr) column_sum(s.y.size() / s.filters(), s.filters(), dy, s.filters(), dbias);
}

#define LEC7_INSTANTIATE(T)                                                                          \
  template void conv_transpose_forward(const ConvTransposeShape&, const T*, const T*, const T*, T*); \
  template void conv_transpose_backward(const ConvTransposeShape&, const T*, const T*, const T*, T*, T*, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
