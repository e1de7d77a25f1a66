// conv_transpose1d, conv_transpose2d: the transpose of a convolution, which makes small images larger.
//
//   y[n, i stride + t - before, f] += x[n, i, c] weight[t, f, c],  y starts as bias[f]
//
// over the channels c of f's group. It is dx of the convolution with the same weight (K..., F / groups, C), whose x is
// y here and whose dy is x; and each of its gradients is a pass of that convolution, too:
//
//   dx = the convolution of dy,  dweight = that of the convolution with x as dy and dy as x,  dbias[f] = sum dy[., f]
#pragma once

#include "lec7/conv.h"

namespace lec7 {

struct ConvTransposeOptions {
  PerAxis stride{1, 1, 1};
  Padding padding{};
  PerAxis output_padding{};
  Index groups = 1;
};

struct ConvTransposeShape {
  ConvShape conv;  // from y to x
  Shape y;

  Index filters() const { return conv.channels; }
};

// `op` is "conv_transpose1d" or "conv_transpose2d", with as many spatial axes. bias may be null (none).
ConvTransposeShape conv_transpose_shape(std::string_view op, int spatial, const Shape& x, const Shape& weight,
                                        const Shape* bias, const ConvTransposeOptions& options);
// Also checks dy.
ConvTransposeShape conv_transpose_backward_shape(std::string_view op, int spatial, const Shape& dy, const Shape& x,
                                                 const Shape& weight, const ConvTransposeOptions& options);

}  // namespace lec7

LEC7_KERNELS(template <class T> void conv_transpose_forward(const ConvTransposeShape& shape, const T* x,
                                                            const T* weight, const T* bias, T* y);

             // dx, dweight and dbias may be null: not wanted.
             template <class T> void conv_transpose_backward(const ConvTransposeShape& shape, const T* dy, const T* x,
                                                             const T* weight, T* dx, T* dweight, T* dbias);)
