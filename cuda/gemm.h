// C (m x n) = activation(A (m x k) B (k x n) + bias): the matrix product under linear and recurrent, in float32.
#pragma once

#include "kernel.h"
#include "lec7/activation.h"

namespace lec7::cuda {

// A matrix in memory: rows `stride` apart. `transposed`: the operand is this matrix's transpose.
struct Matrix {
  const float* data;
  Index stride;
  bool transposed = false;
};

// Products of one size, done at once: the operands of the next stand so many numbers further, each c's rows follow the
// last one's.
struct Batch {
  Index count = 1, a_step = 0, b_step = 0;
};

// Overwrites c (rows c_stride apart). bias (n) may be null. The order of each sum depends on the sizes only.
void gemm(Index m, Index n, Index k, const Matrix& a, const Matrix& b, float* c, Index c_stride,
          const float* bias = nullptr, Activation activation = Activation::none, const Batch& batch = {});

// out (n) = the sum of the rows of x (rows x n, stride apart): every bias gradient.
void column_sum(Index rows, Index n, const float* x, Index stride, float* out);

}  // namespace lec7::cuda
