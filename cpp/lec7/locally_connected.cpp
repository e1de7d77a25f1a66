#include "lec7/locally_connected.h"

namespace lec7 {
namespace {

constexpr std::string_view kOp = "locally_connected2d";
constexpr std::string_view kFilterAxes = "filters (OH, OW, KH, KW, C, F)";

}  // namespace

LocallyConnectedShape locally_connected_shape(const Shape& x, const Shape& weight, const Shape* bias,
                                              const PerAxis& stride) {
  const Named named[] = {{image_axes(2), x}, {kFilterAxes, weight}, {"bias (OH, OW, F)", bias ? *bias : Shape{}}};
  const std::span<const Named> arrays(named, bias == nullptr ? 2 : 3);
  if (weight.rank() != 6) fail(kOp, "filters have 6 axes, not " + std::to_string(weight.rank()), arrays);
  const ImageShape image = image_shape(kOp, 2, x, arrays);
  const Index channels = weight[4], filters = weight[5];
  if (channels < 1 || filters < 1) fail(kOp, "there is at least one channel and one filter", arrays);
  if (image.channels != channels) {
    fail(kOp, "filters have " + std::to_string(channels) + " input channels, x has " + std::to_string(image.channels),
         arrays);
  }
  const Windows windows =
      windows_shape(kOp, 2, image.size, {1, weight[2], weight[3]}, stride, {1, 1, 1}, {}, false, arrays);
  const LocallyConnectedShape shape{image.batch, channels,   filters,
                                    windows[1],  windows[2], {image.batch, windows[1].out, windows[2].out, filters}};
  if (weight[0] != shape.height.out || weight[1] != shape.width.out) {
    fail(kOp,
         "there are filters for " + std::to_string(weight[0]) + " x " + std::to_string(weight[1]) +
             " positions, the windows have " + std::to_string(shape.height.out) + " x " +
             std::to_string(shape.width.out),
         arrays);
  }
  if (bias != nullptr && *bias != Shape{weight[0], weight[1], filters}) {
    fail(kOp, "bias has one number for each filter", arrays);
  }
  checked_size(kOp, shape.y);
  return shape;
}

LocallyConnectedShape locally_connected_backward_shape(const Shape& dy, const Shape& x, const Shape& weight,
                                                       const PerAxis& stride) {
  const LocallyConnectedShape shape = locally_connected_shape(x, weight, nullptr, stride);
  if (dy != shape.y) {
    fail(kOp, "dy has the shape of the output, " + shape.y.str(),
         {{"dy (N, OH, OW, F)", dy}, {image_axes(2), x}, {kFilterAxes, weight}});
  }
  return shape;
}

}  // namespace lec7
