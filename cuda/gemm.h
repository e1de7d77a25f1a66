// C (m x n) = activation(A (m x k) B (k x n) + bias): the matrix product under linear and recurrent, of float, float16
// or bfloat16, with float32 sums that are rounded once.
#pragma once

#include <type_traits>

#include "kernel.h"
#include "lec7/activation.h"
#include "lec7/half.h"

namespace lec7::cuda {

// A matrix in memory: rows `stride` apart. `transposed`: the operand is this matrix's transpose.
template <class T>
struct Matrix {
  const T* data;
  Index stride;
  bool transposed = false;
};

// Products of one size, done at once: the operands of the next stand so many numbers further, each c's rows follow the
// last one's.
struct Batch {
  Index count = 1, a_step = 0, b_step = 0;
};

// Overwrites c (rows c_stride apart). bias (n) may be null. The order of each sum depends on the sizes only.
template <class T>
void gemm(Index m, Index n, Index k, const Matrix<T>& a, const Matrix<T>& b, T* c, Index c_stride,
          std::type_identity_t<const T*> bias = nullptr, Activation activation = Activation::none,
          const Batch& batch = {});

// The same with the sums as they are, float32.
template <class T>
void gemm_unrounded(Index m, Index n, Index k, const Matrix<T>& a, const Matrix<T>& b, float* c, Index c_stride,
                    const T* bias = nullptr);

// out (n) = the sum of the rows of x (rows x n, stride apart): every bias gradient.
template <class T>
void column_sum(Index rows, Index n, const T* x, Index stride, T* out);

}  // namespace lec7::cuda
