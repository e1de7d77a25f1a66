// Pooling over images: bound by memory, so GB/s of x, y (and argmax) is what counts.
#include "bench.h"
#include "lec7/pool.h"

namespace lec7::bench {
namespace {

struct Image {
  Index n, size, channels;
};

std::string row_name(const Image& image, Index kernel, Index stride) {
  return '/' + std::to_string(kernel) + 'x' + std::to_string(kernel) + "s" + std::to_string(stride) + "/N" +
         std::to_string(image.n) + "/H" + std::to_string(image.size) + "/C" + std::to_string(image.channels);
}

PoolOptions square(Index kernel, Index stride) {
  return {.kernel = {1, kernel, kernel}, .stride = {1, stride, stride}, .dilation = {1, 1, 1}, .padding = {},
          .ceil = false};
}

void max_pool(const Image& image, Index kernel, Index stride) {
  const Shape x_shape{image.n, image.size, image.size, image.channels};
  const PoolShape shape = max_pool_shape("max_pool2d", 2, x_shape, square(kernel, stride));
  const Index outputs = shape.y.size();
  const double bytes = 4.0 * x_shape.size() + 8.0 * outputs;
  add("max_pool2d_forward" + row_name(image, kernel, stride), [=](benchmark::State& state) {
    Array x(x_shape), y(shape.y);
    memory::Buffer<std::int32_t> argmax(outputs);
    measure(state, {0, bytes}, [&] { LEC7_PICK(max_pool_forward<float>)(shape, x.data(), y.data(), argmax.data()); });
  });
  add("max_pool2d_backward" + row_name(image, kernel, stride), [=](benchmark::State& state) {
    Array x(x_shape), y(shape.y), dx(x_shape);
    memory::Buffer<std::int32_t> argmax(outputs);
    LEC7_PICK(max_pool_forward<float>)(shape, x.data(), y.data(), argmax.data());
    const MaxPoolBackwardShape backward = max_pool_backward_shape("max_pool2d", 2, shape.y, shape.y, x_shape);
    const Indices winners{argmax.data(), false, outputs};
    measure(state, {0, bytes},
            [&] { LEC7_PICK(max_pool_backward<float>)(backward, y.data(), winners, dx.data()); });
  });
}

void avg_pool(const Image& image, Index kernel, Index stride) {
  const Shape x_shape{image.n, image.size, image.size, image.channels};
  const PoolShape shape = pool_shape("avg_pool2d", 2, x_shape, square(kernel, stride));
  const double bytes = 4.0 * (x_shape.size() + shape.y.size());
  add("avg_pool2d_forward" + row_name(image, kernel, stride), [=](benchmark::State& state) {
    Array x(x_shape), y(shape.y);
    measure(state, {0, bytes},
            [&] { LEC7_PICK(sum_pool_forward<float>)(shape, Average::cells, x.data(), y.data()); });
  });
  add("avg_pool2d_backward" + row_name(image, kernel, stride), [=](benchmark::State& state) {
    Array dy(shape.y), dx(x_shape);
    measure(state, {0, bytes},
            [&] { LEC7_PICK(sum_pool_backward<float>)(shape, Average::cells, dy.data(), dx.data()); });
  });
}

}  // namespace

void add_benchmarks() {
  max_pool({32, 55, 96}, 3, 2);   // AlexNet
  max_pool({8, 224, 64}, 2, 2);   // VGG16
  max_pool({8, 112, 64}, 3, 2);   // ResNet's stem
  avg_pool({32, 28, 256}, 2, 2);
  avg_pool({64, 7, 2048}, 7, 1);  // ResNet-50's last
}

}  // namespace lec7::bench
