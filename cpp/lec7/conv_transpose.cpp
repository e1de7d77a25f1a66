#include "lec7/conv_transpose.h"

namespace lec7 {

ConvTransposeShape conv_transpose_shape(std::string_view op, int spatial, const Shape& x, const Shape& weight,
                                        const Shape* bias, const ConvTransposeOptions& options) {
  const Named named[] = {
      {image_axes(spatial), x}, {filter_axes(spatial, true), weight}, {"bias (F,)", bias ? *bias : Shape{}}};
  const std::span<const Named> arrays(named, bias == nullptr ? 2 : 3);
  if (weight.rank() != spatial + 2) {
    fail(op, "filters have " + std::to_string(spatial + 2) + " axes, not " + std::to_string(weight.rank()), arrays);
  }
  const ImageShape image = image_shape(op, spatial, x, arrays);
  const Index groups = options.groups, channels = weight.back(), group_filters = weight[spatial];
  if (channels < 1 || group_filters < 1) fail(op, "there is at least one channel and one filter", arrays);
  if (image.channels != channels) {
    fail(op, "filters have " + std::to_string(channels) + " input channels, x has " + std::to_string(image.channels),
         arrays);
  }
  if (groups < 1 || channels % groups != 0) {
    fail(op, "groups (" + std::to_string(groups) + ") divides the " + std::to_string(channels) + " channels of x",
         arrays);
  }
  const Index filters = checked_multiply(op, group_filters, groups);
  if (bias != nullptr && *bias != Shape{filters}) {
    fail(op, "bias has one number for each of the " + std::to_string(filters) + " filters", arrays);
  }
  PerAxis kernel{1, 1, 1};
  for (int axis = 0; axis < spatial; ++axis) kernel[kSpatialAxes - spatial + axis] = weight[axis];

  const Windows windows = transposed_windows_shape(op, spatial, image.size, kernel, options.stride, options.padding,
                                                   options.output_padding, arrays);
  ImageShape output{image.batch, {}, filters};
  for (int axis = 0; axis < kSpatialAxes; ++axis) output.size[axis] = windows[axis].in;
  const ConvTransposeShape shape{{image.batch, windows, filters, channels, groups, false, Activation::none, x},
                                 image_array(spatial, output)};
  checked_size(op, shape.y);
  return shape;
}

ConvTransposeShape conv_transpose_backward_shape(std::string_view op, int spatial, const Shape& dy, const Shape& x,
                                                 const Shape& weight, const ConvTransposeOptions& options) {
  const ConvTransposeShape shape = conv_transpose_shape(op, spatial, x, weight, nullptr, options);
  if (dy != shape.y) {
    fail(op, "dy has the shape of the output, " + shape.y.str(),
         {{output_axes("dy", spatial), dy}, {image_axes(spatial), x}, {filter_axes(spatial, true), weight}});
  }
  return shape;
}

}  // namespace lec7
