// conv1d, conv2d, conv3d: y = activation(z), the cross-correlation of x (N, ..., C) with F filters
// (K..., C / groups, F), written for three spatial axes (an op with fewer has axes of one cell in front):
//
//   z[n,o,f] = bias[f] + sum_{t,c} x[n, o stride + t dilation - before, c] weight[t,c,f],  x = 0 outside
//
// over the channels c of f's group. `flip` turns the filters by 180 degrees (true convolution): tap t reads
// weight[K - 1 - t]. Backward, with dz = dy activation'(y):
//
//   dx[n,i,c] = sum of dz[n,o,f] weight[t,c,f] over all o, t that meet in i
//   dweight[t,c,f] = sum_{n,o} x[n, o stride + t dilation - before, c] dz[n,o,f],  dbias[f] = sum_{n,o} dz[n,o,f]
#pragma once

#include "lec7/activation.h"
#include "lec7/window.h"

namespace lec7 {

// The methods that convolutions of float32 may take: direct sums; those with about their error, 4e-7 relative to
// the norm of the result (CUDA has none); those with an error up to 1e-5, which are up to four times as fast. float64
// is always direct. The CPU and each CUDA module have a setting of their own.
enum class ConvAlgorithm { direct, accurate, fast };

ConvAlgorithm conv_algorithm();  // at first, fast
void set_conv_algorithm(ConvAlgorithm algorithm);

struct ConvOptions {
  PerAxis stride{1, 1, 1};
  Padding padding;
  PerAxis dilation{1, 1, 1};
  Index groups = 1;
  bool flip = false;
  Activation activation = Activation::none;
};

struct ConvShape {
  Index batch;
  Windows windows;
  Index channels, filters, groups;
  bool flip;
  Activation activation;
  Shape y;

  Index taps() const { return windows[0].kernel * windows[1].kernel * windows[2].kernel; }
  Index group_channels() const { return channels / groups; }
  Index group_filters() const { return filters / groups; }
};

// For errors, with 2 spatial axes: "filters (KH, KW, C, F)", transposed "filters (KH, KW, F, C)"; "dy (N, H, W, F)".
std::string_view filter_axes(int spatial, bool transposed);
std::string output_axes(const char* name, int spatial);

// `op` is "conv1d", "conv2d" or "conv3d", with as many spatial axes. bias may be null (none).
ConvShape conv_shape(std::string_view op, int spatial, const Shape& x, const Shape& weight, const Shape* bias,
                     const ConvOptions& options);
// Also checks dy, and y where it is given.
ConvShape conv_backward_shape(std::string_view op, int spatial, const Shape& dy, const Shape& x, const Shape& weight,
                              const Shape* y, const ConvOptions& options);

}  // namespace lec7

LEC7_KERNELS(template <class T>
             void conv_forward(const ConvShape& shape, const T* x, const T* weight, const T* bias, T* y);

             // dx, dweight and dbias may be null: not wanted. y is read only where there is an activation.
             template <class T> void conv_backward(const ConvShape& shape, const T* dy, const T* x, const T* weight,
                                                   const T* y, T* dx, T* dweight, T* dbias);)
