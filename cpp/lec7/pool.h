// pooling: the largest, the sum or the average of x over windows, for each channel; 1d, 2d and 3d are one kernel.
//
//   y[n, o, c] = max or sum over the cells i of window o that exist in x of x[n, i, c];  average: sum / count[o]
//
// max also gives the winner: its cell's index in the image, the first of equals, NaN above all numbers, -1 (and y -inf)
// for a window without a cell. Backward: each window's dy goes to its winner; or to all its cells, over count[o].
#pragma once

#include <cstdint>

#include "lec7/indices.h"
#include "lec7/isa.h"
#include "lec7/window.h"

namespace lec7 {

struct PoolOptions {
  PerAxis kernel, stride, dilation;
  Padding padding;
  bool ceil;
};

// What sums are divided by: nothing, a window's cells in x, or those in x and its padding.
enum class Average { none, cells, padded_cells };

struct PoolShape {
  ImageShape x;
  Windows windows;
  Shape y;

  Index cells_in() const { return x.size[0] * x.size[1] * x.size[2]; }
  Index cells_out() const { return windows[0].out * windows[1].out * windows[2].out; }
};

PoolShape pool_shape(std::string_view op, int spatial, const Shape& x, const PoolOptions& options);
PoolShape max_pool_shape(std::string_view op, int spatial, const Shape& x, const PoolOptions& options);
// Also checks dy.
PoolShape pool_backward_shape(std::string_view op, int spatial, const Shape& dy, const Shape& x,
                              const PoolOptions& options);

// Any number of windows an image, wherever they are.
struct MaxPoolBackwardShape {
  Index batch, cells_in, cells_out, channels;
};
MaxPoolBackwardShape max_pool_backward_shape(std::string_view op, int spatial, const Shape& dy, const Shape& argmax,
                                             const Shape& x);

}  // namespace lec7

LEC7_KERNELS(template <class T> void max_pool_forward(const PoolShape& shape, const T* x, T* y, std::int32_t* argmax);

             // Returns the position of an argmax outside [-1, cells_in) (then dx is unfinished), or -1.
             template <class T>
             Index max_pool_backward(const MaxPoolBackwardShape& shape, const T* dy, const Indices& argmax, T* dx);

             template <class T> void sum_pool_forward(const PoolShape& shape, Average average, const T* x, T* y);
             template <class T> void sum_pool_backward(const PoolShape& shape, Average average, const T* dy, T* dx);)
