#include "lec7/conv.h"

#include <atomic>

namespace lec7 {
namespace {

std::atomic<ConvAlgorithm> algorithm_in_use = ConvAlgorithm::fast;

}  // namespace

std::string_view filter_axes(int spatial, bool transposed) {
  constexpr std::string_view names[][2] = {{"filters (KL, C, F)", "filters (KL, F, C)"},
                                           {"filters (KH, KW, C, F)", "filters (KH, KW, F, C)"},
                                           {"filters (KD, KH, KW, C, F)", "filters (KD, KH, KW, F, C)"}};
  return names[spatial - 1][transposed];
}

std::string output_axes(const char* name, int spatial) {
  constexpr const char* axes[] = {" (N, L, F)", " (N, H, W, F)", " (N, D, H, W, F)"};
  return std::string(name) + axes[spatial - 1];
}

ConvAlgorithm conv_algorithm() { return algorithm_in_use; }
void set_conv_algorithm(ConvAlgorithm algorithm) { algorithm_in_use = algorithm; }

ConvShape conv_shape(std::string_view op, int spatial, const Shape& x, const Shape& weight, const Shape* bias,
                     const ConvOptions& options) {
  const Named named[] = {
      {image_axes(spatial), x}, {filter_axes(spatial, false), weight}, {"bias (F,)", bias ? *bias : Shape{}}};
  const std::span<const Named> arrays(named, bias == nullptr ? 2 : 3);
  if (weight.rank() != spatial + 2) {
    fail(op, "filters have " + std::to_string(spatial + 2) + " axes, not " + std::to_string(weight.rank()), arrays);
  }
  const ImageShape image = image_shape(op, spatial, x, arrays);
  const Index groups = options.groups, filters = weight.back(), group_channels = weight[spatial];
  if (image.channels < 1 || filters < 1) fail(op, "there is at least one channel and one filter", arrays);
  if (groups < 1 || image.channels % groups != 0 || filters % groups != 0) {
    fail(op,
         "groups (" + std::to_string(groups) + ") divides the " + std::to_string(image.channels) +
             " channels of x and the " + std::to_string(filters) + " filters",
         arrays);
  }
  if (image.channels / groups != group_channels) {
    fail(op,
         "filters have " + std::to_string(group_channels) + " input channels, x has " + std::to_string(image.channels) +
             (groups == 1 ? "" : " in " + std::to_string(groups) + " groups"),
         arrays);
  }
  if (bias != nullptr && *bias != Shape{filters}) {
    fail(op, "bias has one number for each of the " + std::to_string(filters) + " filters", arrays);
  }
  PerAxis kernel{1, 1, 1};
  for (int axis = 0; axis < spatial; ++axis) kernel[kSpatialAxes - spatial + axis] = weight[axis];

  ConvShape shape{image.batch, {}, image.channels, filters, groups, options.flip, options.activation, {}};
  shape.windows =
      windows_shape(op, spatial, image.size, kernel, options.stride, options.dilation, options.padding, false, arrays);
  ImageShape output{image.batch, {}, filters};
  for (int axis = 0; axis < kSpatialAxes; ++axis) output.size[axis] = shape.windows[axis].out;
  shape.y = image_array(spatial, output);
  checked_size(op, shape.y);
  return shape;
}

ConvShape conv_backward_shape(std::string_view op, int spatial, const Shape& dy, const Shape& x, const Shape& weight,
                              const Shape* y, const ConvOptions& options) {
  const ConvShape shape = conv_shape(op, spatial, x, weight, nullptr, options);
  if (dy != shape.y) {
    fail(op, "dy has the shape of the output, " + shape.y.str(),
         {{output_axes("dy", spatial), dy}, {image_axes(spatial), x}, {filter_axes(spatial, false), weight}});
  }
  if (options.activation != Activation::none && y == nullptr) fail(op, "backward through an activation needs y");
  if (y != nullptr && *y != shape.y) {
    fail(op, "y has the shape " + shape.y.str(),
         {{output_axes("y", spatial), *y}, {image_axes(spatial), x}, {filter_axes(spatial, false), weight}});
  }
  return shape;
}

}  // namespace lec7
