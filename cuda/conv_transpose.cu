// Transposed convolution: the passes of the convolution that it transposes, in other roles, with conv.cu's variants and
// costs. y is dx of that convolution, plus the bias.
#include "lec7/conv_transpose.h"

#include "conv.h"
#include "gemm.h"

namespace lec7::cuda {

template <>
void conv_transpose_forward(const ConvTransposeShape& s, const float* x, const float* weight, const float* bias,
                            float* y) {
  conv_input_gradient(s.conv, x, weight, bias, y);
}

template <>
void conv_transpose_backward(const ConvTransposeShape& s, const float* dy, const float* x, const float* weight,
                             float* dx, float* dweight, float* dbias) {
  constexpr float* none = nullptr;
  if (dx != nullptr) conv_forward<float>(s.conv, dy, weight, none, dx);
  if (dweight != nullptr) conv_weight_gradient(s.conv, x, dy, dweight);
  if (dbias != nullptr) column_sum(s.y.size() / s.filters(), s.filters(), dy, s.filters(), dbias);
}

}  // namespace lec7::cuda
