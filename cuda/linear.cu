// linear is three matrix products and a column sum: 2 rows in out FLOPs each, gemm's.
#include "lec7/linear.h"

#include "gemm.h"

namespace lec7::cuda {

template <>
void linear_forward(const LinearShape& s, const float* x, const float* weight, const float* bias, Activation activation,
                    float* y) {
  gemm(s.rows, s.out, s.in, {x, s.in}, {weight, s.out}, y, s.out, bias, activation);
}

template <>
void linear_backward(const LinearShape& s, const float* dy, const float* x, const float* weight, const float* y,
                     Activation activation, float* dx, float* dweight, float* dbias) {
  const bool through = activation != Activation::none;
  Buffer<float> dz(through ? s.rows * s.out : 0);
  if (through) {
    activation_backward(activation, s.rows * s.out, dy, y, dz.data());
    dy = dz.data();
  }
  if (dx != nullptr) gemm(s.rows, s.in, s.out, {dy, s.out}, {weight, s.out, true}, dx, s.in);
  if (dweight != nullptr) gemm(s.in, s.out, s.rows, {x, s.in, true}, {dy, s.out}, dweight, s.out);
  if (dbias != nullptr) column_sum(s.rows, s.out, dy, s.out, dbias);
}

template <>
void matmul(const MatmulShape& s, const float* a, bool transpose_a, const float* b, bool transpose_b, float* c) {
  gemm(s.m, s.n, s.k, {a, transpose_a ? s.m : s.k, transpose_a}, {b, transpose_b ? s.k : s.n, transpose_b}, c, s.n);
}

}  // namespace lec7::cuda
