// locally_connected2d: a convolution whose filters are not shared, each position has its own.
//
//   y[n, i, j, f] = bias[i, j, f] + sum_{a,b,c} x[n, i stride + a, j stride + b, c] weight[i, j, a, b, c, f]
//
// Backward:
//
//   dx[n, p, q, c] = sum of dy[n, i, j, f] weight[i, j, a, b, c, f] over all i stride + a = p, j stride + b = q and f
//   dweight[i, j, a, b, c, f] = sum_n x[n, i stride + a, j stride + b, c] dy[n, i, j, f],  dbias = sum_n dy[n]
#pragma once

#include "lec7/isa.h"
#include "lec7/window.h"

namespace lec7 {

struct LocallyConnectedShape {
  Index batch, channels, filters;
  Window height, width;
  Shape y;

  Index positions() const { return height.out * width.out; }
  Index run() const { return width.kernel * channels; }  // numbers under a row of a window, one after the other
  Index depth() const { return height.kernel * run(); }  // numbers under a window
};

// bias may be null (none).
LocallyConnectedShape locally_connected_shape(const Shape& x, const Shape& weight, const Shape* bias,
                                              const PerAxis& stride);
// Also checks dy.
LocallyConnectedShape locally_connected_backward_shape(const Shape& dy, const Shape& x, const Shape& weight,
                                                       const PerAxis& stride);

}  // namespace lec7

LEC7_KERNELS(template <class T> void locally_connected_forward(const LocallyConnectedShape& shape, const T* x,
                                                               const T* weight, const T* bias, T* y);

             // dx, dweight and dbias may be null: not wanted.
             template <class T>
             void locally_connected_backward(const LocallyConnectedShape& shape, const T* dy, const T* x,
                                             const T* weight, T* dx, T* dweight, T* dbias);)
