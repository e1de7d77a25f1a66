// linear is three matrix products and a column sum; all the speed is gemm's.
#include "lec7/linear.h"

#include <algorithm>

#include "column_sum.h"
#include "gemm.h"
#include "lec7/memory.h"

namespace lec7::cpu::LEC7_ISA {

template <class T>
void linear_forward(const LinearShape& s, const T* x, const T* weight, const T* bias, Activation activation, T* y) {
  gemm<T>(s.rows, s.out, s.in, {x, s.in}, {weight, s.out}, y, s.out, bias, activation);
}

template <class T>
void linear_backward(const LinearShape& s, const T* dy, const T* x, const T* weight, const T* y, Activation activation,
                     T* dx, T* dweight, T* dbias) {
  const bool through = activation != Activation::none;
  memory::Buffer<T> dz(through ? s.rows * s.out : 0);
  if (through) {
    activation_backward(activation, s.rows * s.out, dy, y, dz.data());
    dy = dz.data();
  }
  if (dx != nullptr) gemm<T>(s.rows, s.in, s.out, {dy, s.out}, {weight, s.out, true}, dx, s.in);
  if (dweight != nullptr) gemm<T>(s.in, s.out, s.rows, {x, s.in, true}, {dy, s.out}, dweight, s.out);
  if (dbias != nullptr) column_sum(s.rows, s.out, dy, s.out, dbias);
}

template <class T>
void matmul(const MatmulShape& s, const T* a, bool transpose_a, const T* b, bool transpose_b, T* c) {
  gemm<T>(s.m, s.n, s.k, {a, transpose_a ? s.m : s.k, transpose_a}, {b, transpose_b ? s.k : s.n, transpose_b}, c, s.n);
}

#define LEC7_INSTANTIATE(T)                                                                                          \
  template void linear_forward(const LinearShape&, const T*, const T*, const T*, Activation, T*);                    \
  template void linear_backward(const LinearShape&, const T*, const T*, const T*, const T*, Activation, T*, T*, T*); \
  template void matmul(const MatmulShape&, const T*, bool, const T*, bool, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
