// Windows that slide over an image: the geometry that convolution and pooling share.
//
// Output cell o of an axis sees the input cells o * stride + k * dilation - pad_before, k = 0 .. kernel - 1, those
// of them that exist. Signals and images are volumes: the axes that a 1d or 2d op lacks come first, with one cell and
// a kernel of one, so that every kernel is written once, for three axes.
#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "lec7/array.h"

namespace lec7 {

inline constexpr int kSpatialAxes = 3;  // depth, height, width

using PerAxis = std::array<Index, kSpatialAxes>;

// `same` makes the output ceil(in / stride) and puts an odd cell at the end, `same_lower` at the beginning.
enum class PaddingRule { numbers, same, same_lower };

struct Padding {
  PaddingRule rule = PaddingRule::numbers;  // "valid" is the number 0
  PerAxis before{};
  PerAxis after{};
};

struct Range {
  Index begin, end;
};

// One axis.
struct Window {
  Index in, out;
  Index kernel, stride, dilation;
  Index pad_before, pad_after;

  constexpr Index extent() const { return (kernel - 1) * dilation + 1; }
  constexpr Index origin(Index o) const { return o * stride - pad_before; }
  // The taps of output cell o that meet an input cell.
  constexpr Range taps(Index o) const {
    const Index first = origin(o);
    const Index begin = first < 0 ? (-first + dilation - 1) / dilation : 0;
    const Index end = first < in ? std::min(kernel, (in - 1 - first) / dilation + 1) : 0;
    return {begin, std::max(begin, end)};
  }
  // The output cells whose windows span input cell i; they see it where `sees` holds (with dilation there are gaps).
  constexpr Range outputs(Index i) const {
    const Index last = (i + pad_before) / stride;
    const Index before = i + pad_before - (extent() - 1);  // the first origin that still reaches i
    const Index begin = before > 0 ? (before + stride - 1) / stride : 0;
    return {begin, std::max(begin, std::min(out, last + 1))};
  }
  constexpr bool sees(Index o, Index i) const { return dilation == 1 || (i - origin(o)) % dilation == 0; }
};

using Windows = std::array<Window, kSpatialAxes>;

// The shape of an image or of x_shape: batch, three spatial axes, channels.
struct ImageShape {
  Index batch;
  PerAxis size;
  Index channels;
};

// "x (N, H, W, C)" for 2 spatial axes.
std::string_view image_axes(int spatial);
// Refuses x without `spatial` axes between N and C. `arrays` are named in the error (none: only x).
ImageShape image_shape(std::string_view op, int spatial, const Shape& x, std::span<const Named> arrays = {});
// The inverse: (N, D, H, W, C) without the axes in front that a 1d or 2d op lacks.
Shape image_array(int spatial, const ImageShape& image);

// The windows of an op with `spatial` axes, with every check: parameters in range, no overflow, at least one window.
// `ceil` rounds the number of windows up, but drops a last one that would start in the padding at the end. `arrays`
// are named in errors.
Windows windows_shape(std::string_view op, int spatial, const PerAxis& in, const PerAxis& kernel, const PerAxis& stride,
                      const PerAxis& dilation, const Padding& padding, bool ceil, std::span<const Named> arrays);

// The windows that slide over the result of a transposed op, one for each cell of its input:
// in = (out - 1) * stride - before - after + kernel + output_padding, or out * stride where the rule is `same`.
Windows transposed_windows_shape(std::string_view op, int spatial, const PerAxis& out, const PerAxis& kernel,
                                 const PerAxis& stride, const Padding& padding, const PerAxis& output_padding,
                                 std::span<const Named> arrays);

}  // namespace lec7
