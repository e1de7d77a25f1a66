// Pooling over images: bound by memory, so GB/s of x, y (and argmax) is what counts.
#include "bench.h"
#include "lec7/pool.h"

namespace lec7::bench {
namespace {

struct Pool {
  Index n, size, channels, kernel, stride;

  Shape x() const { return {n, size, size, channels}; }
  PoolOptions options() const {
    return {.kernel = {1, kernel, kernel},
            .stride = {1, stride, stride},
            .dilation = {1, 1, 1},
            .padding = {},
            .ceil = false};
  }
};

// Adds <op>_forward and <op>_backward.
template <class Forward, class Backward>
void add_both(const std::string& op, const Pool& p, Forward forward, Backward backward) {
  const Numbers numbers{{"K", p.kernel}, {"stride", p.stride}, {"N", p.n}, {"H", p.size}, {"C", p.channels}};
  add(op + "_forward", numbers, forward);
  add(op + "_backward", numbers, backward);
}

void max_pool(const Pool& p) {
  const PoolShape shape = max_pool_shape("max_pool2d", 2, p.x(), p.options());
  const Index outputs = shape.y.size();
  const Work work{0, 4.0 * p.x().size() + 8.0 * outputs};
  add_both(
      "max_pool2d", p,
      [=](benchmark::State& state) {
        Array x(p.x()), y(shape.y);
        Buffer<std::int32_t> argmax(outputs);
        measure(state, work, [&] { LEC7_PICK(max_pool_forward<float>)(shape, x.data(), y.data(), argmax.data()); });
      },
      [=](benchmark::State& state) {
        Array x(p.x()), y(shape.y), dx(p.x());
        Buffer<std::int32_t> argmax(outputs);
        LEC7_PICK(max_pool_forward<float>)(shape, x.data(), y.data(), argmax.data());
        const MaxPoolBackwardShape backward = max_pool_backward_shape("max_pool2d", 2, shape.y, shape.y, p.x());
        const Indices winners{argmax.data(), false, outputs};
        measure(state, work, [&] { LEC7_PICK(max_pool_backward<float>)(backward, y.data(), winners, dx.data()); });
      });
}

void avg_pool(const Pool& p) {
  const PoolShape shape = pool_shape("avg_pool2d", 2, p.x(), p.options());
  const Work work{0, 4.0 * (p.x().size() + shape.y.size())};
  add_both(
      "avg_pool2d", p,
      [=](benchmark::State& state) {
        Array x(p.x()), y(shape.y);
        measure(state, work, [&] { LEC7_PICK(sum_pool_forward<float>)(shape, Average::cells, x.data(), y.data()); });
      },
      [=](benchmark::State& state) {
        Array dy(shape.y), dx(p.x());
        measure(state, work, [&] { LEC7_PICK(sum_pool_backward<float>)(shape, Average::cells, dy.data(), dx.data()); });
      });
}

const Rows rows([] {
  max_pool({.n = 32, .size = 55, .channels = 96, .kernel = 3, .stride = 2});  // AlexNet
  max_pool({.n = 8, .size = 224, .channels = 64, .kernel = 2, .stride = 2});  // VGG16
  max_pool({.n = 8, .size = 112, .channels = 64, .kernel = 3, .stride = 2});  // ResNet's stem
  max_pool({.n = 32, .size = 56, .channels = 64, .kernel = 3, .stride = 2});
  avg_pool({.n = 32, .size = 28, .channels = 256, .kernel = 2, .stride = 2});
  avg_pool({.n = 64, .size = 7, .channels = 2048, .kernel = 7, .stride = 1});  // ResNet's last
});

}  // namespace
}  // namespace lec7::bench
