#include "lec7/pool.h"

#include <limits>

namespace lec7 {
namespace {

// argmax is int32.
void check_cells(std::string_view op, int spatial, const Shape& x) {
  Index cells = 1;
  for (int axis = 1; axis <= spatial; ++axis) cells = checked_multiply(op, cells, x[axis]);
  if (cells > std::numeric_limits<std::int32_t>::max()) {
    fail(op, "an image has more cells than int32 can number", {{image_axes(spatial), x}});
  }
}

}  // namespace

PoolShape pool_shape(std::string_view op, int spatial, const Shape& x, const PoolOptions& options) {
  const ImageShape image = image_shape(op, spatial, x);
  const Named arrays[] = {{image_axes(spatial), x}};
  PoolShape shape{image,
                  windows_shape(op, spatial, image.size, options.kernel, options.stride, options.dilation,
                                options.padding, options.ceil, arrays),
                  {}};
  ImageShape y = image;
  for (int axis = 0; axis < kSpatialAxes; ++axis) {
    const Window& w = shape.windows[axis];
    const Index padding = std::max(w.pad_before, w.pad_after);
    if (padding >= w.extent() && padding > 0) {
      fail(op,
           "padding " + std::to_string(padding) + " is not smaller than the window, " + std::to_string(w.extent()) +
               " cells",
           arrays);
    }
    y.size[axis] = w.out;
  }
  shape.y = image_array(spatial, y);
  checked_size(op, shape.y);
  return shape;
}

PoolShape max_pool_shape(std::string_view op, int spatial, const Shape& x, const PoolOptions& options) {
  const PoolShape shape = pool_shape(op, spatial, x, options);
  check_cells(op, spatial, x);
  return shape;
}

PoolShape pool_backward_shape(std::string_view op, int spatial, const Shape& dy, const Shape& x,
                              const PoolOptions& options) {
  const PoolShape shape = pool_shape(op, spatial, x, options);
  if (dy != shape.y) {
    fail(op, "dy has the shape of y, " + shape.y.str(), {{"dy", dy}, {image_axes(spatial), x}});
  }
  return shape;
}

MaxPoolBackwardShape max_pool_backward_shape(std::string_view op, int spatial, const Shape& dy, const Shape& argmax,
                                             const Shape& x) {
  const ImageShape image = image_shape(op, spatial, x);
  const Named arrays[] = {{"dy", dy}, {"argmax", argmax}, {image_axes(spatial), x}};
  if (dy != argmax) fail(op, "dy and argmax have the same shape", arrays);
  if (dy.rank() != x.rank() || dy[0] != x[0] || dy.back() != x.back()) {
    fail(op, "dy has the axes of x, and as many examples and channels", arrays);
  }
  check_cells(op, spatial, x);
  const ImageShape y = image_shape(op, spatial, dy);
  return {image.batch, image.size[0] * image.size[1] * image.size[2], y.size[0] * y.size[1] * y.size[2],
          image.channels};
}

}  // namespace lec7
