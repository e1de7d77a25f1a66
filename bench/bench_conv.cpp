// conv2d, its transpose and its locally connected form over square images and filters. FLOPs are those of the formula:
// a method that needs fewer may pass the peak.
#include "bench.h"
#include "lec7/conv.h"
#include "lec7/conv_transpose.h"
#include "lec7/locally_connected.h"

namespace lec7::bench {
namespace {

struct Conv {
  Index n, size, channels, filters, kernel, stride = 1, padding = 0, groups = 1;
};

void conv(const Conv& c) {
  const Shape x_shape{c.n, c.size, c.size, c.channels};
  const Shape weight_shape{c.kernel, c.kernel, c.channels / c.groups, c.filters}, bias_shape{c.filters};
  ConvOptions options;
  options.stride = {1, c.stride, c.stride};
  options.groups = c.groups;
  options.padding.before = options.padding.after = {0, c.padding, c.padding};
  const ConvShape shape = conv_shape("conv2d", 2, x_shape, weight_shape, &bias_shape, options);
  const Work forward{2.0 * shape.y.size() * shape.taps() * shape.group_channels(),
                     4.0 * (x_shape.size() + weight_shape.size() + shape.y.size())};
  const Numbers numbers{{"K", c.kernel},   {"stride", c.stride}, {"N", c.n},          {"H", c.size},
                        {"C", c.channels}, {"F", c.filters},     {"groups", c.groups}};
  add("conv2d_forward", numbers, [=](benchmark::State& state) {
    Array x(x_shape), weight(weight_shape), bias(bias_shape), y(shape.y);
    measure(state, forward,
            [&] { LEC7_PICK(conv_forward<float>)(shape, x.data(), weight.data(), bias.data(), y.data()); });
  });
  add("conv2d_backward", numbers, [=](benchmark::State& state) {
    Array x(x_shape), weight(weight_shape), dy(shape.y), dx(x_shape), dweight(weight_shape), dbias(bias_shape);
    measure(state, {2 * forward.flops, 2 * forward.bytes}, [&] {
      LEC7_PICK(conv_backward<float>)
      (shape, dy.data(), x.data(), weight.data(), nullptr, dx.data(), dweight.data(), dbias.data());
    });
  });
}

void conv_transpose(const Conv& c) {
  const Shape x_shape{c.n, c.size, c.size, c.channels};
  const Shape weight_shape{c.kernel, c.kernel, c.filters, c.channels}, bias_shape{c.filters};
  ConvTransposeOptions options;
  options.stride = {1, c.stride, c.stride};
  options.padding.before = options.padding.after = {0, c.padding, c.padding};
  const ConvTransposeShape shape =
      conv_transpose_shape("conv_transpose2d", 2, x_shape, weight_shape, &bias_shape, options);
  const Work forward{2.0 * x_shape.size() * c.kernel * c.kernel * c.filters,
                     4.0 * (x_shape.size() + weight_shape.size() + shape.y.size())};
  const Numbers numbers{{"K", c.kernel}, {"stride", c.stride}, {"N", c.n},
                        {"H", c.size},   {"C", c.channels},    {"F", c.filters}};
  add("conv_transpose2d_forward", numbers, [=](benchmark::State& state) {
    Array x(x_shape), weight(weight_shape), bias(bias_shape), y(shape.y);
    measure(state, forward,
            [&] { LEC7_PICK(conv_transpose_forward<float>)(shape, x.data(), weight.data(), bias.data(), y.data()); });
  });
  add("conv_transpose2d_backward", numbers, [=](benchmark::State& state) {
    Array x(x_shape), weight(weight_shape), dy(shape.y), dx(x_shape), dweight(weight_shape), dbias(bias_shape);
    measure(state, {2 * forward.flops, 2 * forward.bytes}, [&] {
      LEC7_PICK(conv_transpose_backward<float>)
      (shape, dy.data(), x.data(), weight.data(), dx.data(), dweight.data(), dbias.data());
    });
  });
}

void locally_connected(const Conv& c) {
  const Index out = c.size - c.kernel + 1;
  const Shape x_shape{c.n, c.size, c.size, c.channels}, bias_shape{out, out, c.filters};
  const Shape weight_shape{out, out, c.kernel, c.kernel, c.channels, c.filters};
  const LocallyConnectedShape shape = locally_connected_shape(x_shape, weight_shape, &bias_shape, {1, 1, 1});
  const Work forward{2.0 * c.n * weight_shape.size(), 4.0 * (x_shape.size() + weight_shape.size() + shape.y.size())};
  const Numbers numbers{{"K", c.kernel}, {"N", c.n}, {"H", c.size}, {"C", c.channels}, {"F", c.filters}};
  add("locally_connected2d_forward", numbers, [=](benchmark::State& state) {
    Array x(x_shape), weight(weight_shape), bias(bias_shape), y(shape.y);
    measure(state, forward, [&] {
      LEC7_PICK(locally_connected_forward<float>)(shape, x.data(), weight.data(), bias.data(), y.data());
    });
  });
  add("locally_connected2d_backward", numbers, [=](benchmark::State& state) {
    Array x(x_shape), weight(weight_shape), dy(shape.y), dx(x_shape), dweight(weight_shape), dbias(bias_shape);
    measure(state, {2 * forward.flops, 2 * forward.bytes}, [&] {
      LEC7_PICK(locally_connected_backward<float>)
      (shape, dy.data(), x.data(), weight.data(), dx.data(), dweight.data(), dbias.data());
    });
  });
}

const Rows rows([] {
  for (const Index n : {1, 8}) {
    conv({.n = n, .size = 56, .channels = 256, .filters = 256, .kernel = 3, .padding = 1});
    conv({.n = n, .size = 56, .channels = 64, .filters = 64, .kernel = 3, .padding = 1});
    conv({.n = n, .size = 56, .channels = 256, .filters = 64, .kernel = 1});
    conv({.n = n, .size = 27, .channels = 96, .filters = 256, .kernel = 5, .padding = 2});
    conv({.n = n, .size = 227, .channels = 3, .filters = 96, .kernel = 11, .stride = 4});
  }
  conv({.n = 64, .size = 28, .channels = 1, .filters = 32, .kernel = 5, .padding = 2});
  conv({.n = 64, .size = 32, .channels = 3, .filters = 16, .kernel = 3, .padding = 1});
  conv({.n = 8, .size = 56, .channels = 128, .filters = 128, .kernel = 3, .stride = 2, .padding = 1});
  conv({.n = 8, .size = 56, .channels = 128, .filters = 128, .kernel = 3, .padding = 1, .groups = 128});  // depthwise
  conv({.n = 32, .size = 56, .channels = 64, .filters = 64, .kernel = 3, .padding = 1});
  conv({.n = 32, .size = 56, .channels = 256, .filters = 64, .kernel = 1});
  conv({.n = 32, .size = 56, .channels = 96, .filters = 96, .kernel = 3, .padding = 1, .groups = 96});
  conv_transpose({.n = 8, .size = 8, .channels = 512, .filters = 256, .kernel = 4, .stride = 2, .padding = 1});
  conv_transpose({.n = 8, .size = 32, .channels = 128, .filters = 3, .kernel = 4, .stride = 2, .padding = 1});
  conv_transpose({.n = 4, .size = 32, .channels = 128, .filters = 64, .kernel = 2, .stride = 2});
  locally_connected({.n = 8, .size = 28, .channels = 64, .filters = 64, .kernel = 3});
  locally_connected({.n = 32, .size = 14, .channels = 32, .filters = 32, .kernel = 3});
});

}  // namespace
}  // namespace lec7::bench
