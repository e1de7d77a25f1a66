#include "lec7/window.h"

namespace lec7 {
namespace {

// Parameters below 2^31 and axes below 2^47 keep every sum and product here within 63 bits.
constexpr Index kLargestParameter = (Index{1} << 31) - 1;
constexpr Index kLargestAxis = Index{1} << 47;

std::string axis_name(int spatial, int axis) {
  constexpr const char* names[] = {"D", "H", "W"};
  return spatial == 1 ? "L" : names[axis];
}

Index round_up_divide(Index a, Index b) { return (a + b - 1) / b; }

struct AxisRule {
  std::string_view op;
  std::string axis;
  std::span<const Named> arrays;

  void check(const char* name, Index value, Index least, Index most = kLargestParameter) const {
    if (value < least || value > most) {
      fail(op,
           std::string(name) + " is " + std::to_string(value) + " along " + axis + "; it must be " +
               (value < least ? "at least " + std::to_string(least) : "at most " + std::to_string(most)),
           arrays);
    }
  }
};

Window window_shape(const AxisRule& rule, Window w, PaddingRule padding, bool ceil) {
  rule.check("kernel_size", w.kernel, 1);
  rule.check("stride", w.stride, 1);
  rule.check("dilation", w.dilation, 1);
  rule.check("padding", w.pad_before, 0);
  rule.check("padding", w.pad_after, 0);
  rule.check("x's size", w.in, 1, kLargestAxis);
  if (padding != PaddingRule::numbers) {
    const Index last_origin = (round_up_divide(w.in, w.stride) - 1) * w.stride;
    const Index total = std::max<Index>(0, last_origin + w.extent() - w.in);
    w.pad_before = padding == PaddingRule::same ? total / 2 : total - total / 2;
    w.pad_after = total - w.pad_before;
  }
  const Index padded = w.in + w.pad_before + w.pad_after;
  const Index room = padded - w.extent();
  if (room >= 0) w.out = (ceil ? round_up_divide(room, w.stride) : room / w.stride) + 1;
  else w.out = ceil && -room < w.stride ? 1 : 0;
  if (ceil && (w.out - 1) * w.stride >= w.in + w.pad_before) --w.out;
  if (w.out < 1) {
    fail(rule.op,
         "kernel " + std::to_string(w.kernel) +
             (w.dilation == 1
                  ? std::string()
                  : ", " + std::to_string(w.extent()) + " cells with dilation " + std::to_string(w.dilation) + ",") +
             " is larger than the padded input " + std::to_string(padded) + " along " + rule.axis,
         rule.arrays);
  }
  return w;
}

Window transposed_window_shape(const AxisRule& rule, Window w, PaddingRule padding, Index output_padding) {
  rule.check("kernel_size", w.kernel, 1);
  rule.check("stride", w.stride, 1);
  rule.check("padding", w.pad_before, 0);
  rule.check("padding", w.pad_after, 0);
  rule.check("x's size", w.out, 1, kLargestAxis);
  if (output_padding < 0 || output_padding >= w.stride) {
    fail(rule.op,
         "output_padding is " + std::to_string(output_padding) + " along " + rule.axis +
             "; it must be at least 0 and less than the stride, " + std::to_string(w.stride),
         rule.arrays);
  }
  if (w.out > kLargestAxis / w.stride) {
    fail(rule.op,
         "the result is too large along " + rule.axis + ": " + std::to_string(w.out) + " cells with stride " +
             std::to_string(w.stride),
         rule.arrays);
  }
  if (padding != PaddingRule::numbers) {
    if (output_padding != 0) fail(rule.op, "\"same\" padding leaves no choice of output_padding", rule.arrays);
    w.in = w.out * w.stride;
    return window_shape(rule, w, padding, false);
  }
  const Index full = (w.out - 1) * w.stride + w.kernel + output_padding;
  w.in = full - w.pad_before - w.pad_after;
  if (w.in < 1) {
    fail(rule.op,
         "padding " + std::to_string(w.pad_before) + " + " + std::to_string(w.pad_after) + " leaves nothing of " +
             std::to_string(full) + " cells along " + rule.axis,
         rule.arrays);
  }
  return w;
}

// Every axis that the op has, and windows of one cell for those that it lacks.
template <class Rule>
Windows each_window(std::string_view op, int spatial, std::span<const Named> arrays, Rule&& rule) {
  Windows windows;
  for (int axis = 0; axis < kSpatialAxes; ++axis) {
    const bool exists = axis >= kSpatialAxes - spatial;
    windows[axis] = exists ? rule(AxisRule{op, axis_name(spatial, axis), arrays}, axis) : Window{1, 1, 1, 1, 1, 0, 0};
  }
  return windows;
}

}  // namespace

std::string_view image_axes(int spatial) {
  constexpr std::string_view names[] = {"x (N, L, C)", "x (N, H, W, C)", "x (N, D, H, W, C)"};
  return names[spatial - 1];
}

ImageShape image_shape(std::string_view op, int spatial, const Shape& x, std::span<const Named> arrays) {
  const Named named[] = {{image_axes(spatial), x}};
  if (x.rank() != spatial + 2) {
    fail(op, "x has " + std::to_string(spatial + 2) + " axes, not " + std::to_string(x.rank()),
         arrays.empty() ? named : arrays);
  }
  ImageShape image{x[0], {1, 1, 1}, x.back()};
  for (int axis = 0; axis < spatial; ++axis) image.size[kSpatialAxes - spatial + axis] = x[1 + axis];
  return image;
}

Shape image_array(int spatial, const ImageShape& image) {
  Shape x{image.batch};
  for (int axis = kSpatialAxes - spatial; axis < kSpatialAxes; ++axis) x.append(image.size[axis]);
  x.append(image.channels);
  return x;
}

Windows windows_shape(std::string_view op, int spatial, const PerAxis& in, const PerAxis& kernel, const PerAxis& stride,
                      const PerAxis& dilation, const Padding& padding, bool ceil, std::span<const Named> arrays) {
  return each_window(op, spatial, arrays, [&](const AxisRule& rule, int axis) {
    const Window given{in[axis],           0, kernel[axis], stride[axis], dilation[axis], padding.before[axis],
                       padding.after[axis]};
    return window_shape(rule, given, padding.rule, ceil);
  });
}

Windows transposed_windows_shape(std::string_view op, int spatial, const PerAxis& out, const PerAxis& kernel,
                                 const PerAxis& stride, const Padding& padding, const PerAxis& output_padding,
                                 std::span<const Named> arrays) {
  return each_window(op, spatial, arrays, [&](const AxisRule& rule, int axis) {
    const Window given{0, out[axis], kernel[axis], stride[axis], 1, padding.before[axis], padding.after[axis]};
    return transposed_window_shape(rule, given, padding.rule, output_padding[axis]);
  });
}

}  // namespace lec7
