// linear is three matrix products and a column sum: 2 rows in out FLOPs each, gemm's.
#include "lec7/linear.h"

#include "gemm.h"

namespace lec7::cuda {

template <class T>
void linear_forward(const LinearShape& s, const T* x, const T* weight, const T* bias, Activation activation, T* y) {
  gemm(s.rows, s.out, s.in, {x, s.in}, {weight, s.out}, y, s.out, bias, activation);
}

// dz is stored as T, rounded once.
template <class T>
void linear_backward(const LinearShape& s, const T* dy, const T* x, const T* weight, const T* y, Activation activation,
                     T* dx, T* dweight, T* dbias) {
  const bool through = activation != Activation::none;
  Buffer<T> dz(through ? s.rows * s.out : 0);
  if (through) {
    activation_backward(activation, s.rows * s.out, dy, y, dz.data());
    dy = dz.data();
  }
  if (dx != nullptr) gemm(s.rows, s.in, s.out, {dy, s.out}, {weight, s.out, true}, dx, s.in);
  if (dweight != nullptr) gemm(s.in, s.out, s.rows, {x, s.in, true}, {dy, s.out}, dweight, s.out);
  if (dbias != nullptr) column_sum(s.rows, s.out, dy, s.out, dbias);
}

template <class T>
void matmul(const MatmulShape& s, const T* a, bool transpose_a, const T* b, bool transpose_b, T* c) {
  gemm(s.m, s.n, s.k, {a, transpose_a ? s.m : s.k, transpose_a}, {b, transpose_b ? s.k : s.n, transpose_b}, c, s.n);
}

#define LEC7_LINEAR_OF(T)                                                                                            \
  template void linear_forward(const LinearShape&, const T*, const T*, const T*, Activation, T*);                    \
  template void linear_backward(const LinearShape&, const T*, const T*, const T*, const T*, Activation, T*, T*, T*); \
  template void matmul(const MatmulShape&, const T*, bool, const T*, bool, T*)
LEC7_LINEAR_OF(float);
LEC7_LINEAR_OF(float16);
LEC7_LINEAR_OF(bfloat16);
#undef LEC7_LINEAR_OF

}  // namespace lec7::cuda
