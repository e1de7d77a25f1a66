// Convolution of any geometry against the sum over all (output cell, tap, channel, filter).
#include "lec7/conv.h"

#include "windows.h"

namespace lec7::test {
namespace {

struct Case {
  Geometry geometry;
  Index batch, channels, filters, groups = 1;
  bool flip = false;
  Activation activation = Activation::none;

  Shape x_shape() const { return geometry.array(batch, geometry.in(), channels); }
  Shape y_shape() const { return geometry.array(batch, geometry.out(), filters); }
  Shape weight_shape() const {
    Shape shape;
    for (int axis = 3 - geometry.spatial; axis < 3; ++axis) shape.append(geometry.axes[axis].kernel);
    shape.append(channels / groups);
    shape.append(filters);
    return shape;
  }

  // body(y index, x index, weight index) on every product of the definition.
  template <class Body>
  void for_each(Body&& body) const {
    const Index cells_in = geometry.cells_in(), cells_out = geometry.cells_out(), taps = geometry.taps();
    const Index group_channels = channels / groups, group_filters = filters / groups;
    geometry.for_each([&](Index out, Index tap, Index in) {
      if (in < 0) return;
      const Index weight_tap = flip ? taps - 1 - tap : tap;
      for (Index n = 0; n < batch; ++n) {
        for (Index f = 0; f < filters; ++f) {
          for (Index c = 0; c < group_channels; ++c) {
            body((n * cells_out + out) * filters + f,
                 (n * cells_in + in) * channels + f / group_filters * group_channels + c,
                 (weight_tap * group_channels + c) * filters + f);
          }
        }
      }
    });
  }

  std::string str() const {
    return text(geometry.str(), ", x ", x_shape().str(), ", filters ", weight_shape().str(), ", groups=", groups,
                flip ? ", flip" : "", ", activation ", static_cast<int>(activation));
  }
};

double activate(Activation activation, double z) {
  return activation == Activation::relu ? std::max(z, 0.0) : activation == Activation::tanh ? std::tanh(z) : z;
}
double derivative(Activation activation, double y) {
  return activation == Activation::relu ? y > 0 : activation == Activation::tanh ? 1 - y * y : 1;
}

template <class T>
void check_conv(Random& random, const Case& test, ConvAlgorithm algorithm) {
  const Trying what(test.str());
  const Geometry& g = test.geometry;
  const Array<T> x = random.array<T>(test.x_shape().size()), weight = random.array<T>(test.weight_shape().size());
  const Array<T> bias = random.array<T>(test.filters), dy = random.array<T>(test.y_shape().size());
  const bool has_bias = random.below(4) > 0;
  const Shape bias_shape{test.filters};
  const ConvOptions options{g.stride(), g.padding(), g.dilation(), test.groups, test.flip, test.activation};
  const ConvShape shape =
      conv_shape("conv", g.spatial, test.x_shape(), test.weight_shape(), has_bias ? &bias_shape : nullptr, options);
  check_equal(shape.y.str(), test.y_shape().str());

  std::vector<double> y(dy.size()), dz(dy.size()), dx(x.size()), dweight(weight.size()), dbias(test.filters);
  for (Index i = 0; i < dy.size(); ++i) y[i] = has_bias ? static_cast<double>(bias[i % test.filters]) : 0;
  test.for_each([&](Index out, Index in, Index w) { y[out] += static_cast<double>(x[in]) * weight[w]; });
  for (Index i = 0; i < dy.size(); ++i) {
    y[i] = static_cast<T>(activate(test.activation, y[i]));
    dz[i] = dy[i] * derivative(test.activation, y[i]);
    dbias[i % test.filters] += dz[i];
  }
  test.for_each([&](Index out, Index in, Index w) {
    dx[in] += dz[out] * weight[w];
    dweight[w] += dz[out] * x[in];
  });

  const Array<T> y_given(y);
  set_conv_algorithm(algorithm);
  const double k = algorithm == ConvAlgorithm::fast ? 96 : 32;
  on_every_isa([&] {
    const Array<T> got(dy.size());
    LEC7_PICK(conv_forward<T>)(shape, x.data(), weight.data(), has_bias ? bias.data() : nullptr, got.data());
    check_close(got, y, k);
    for (const int wanted : {7, 1, 2, 4}) {
      const Array<T> got_dx(x.size()), got_dweight(weight.size()), got_dbias(test.filters);
      LEC7_PICK(conv_backward<T>)
      (shape, dy.data(), x.data(), weight.data(), test.activation == Activation::none ? nullptr : y_given.data(),
       wanted & 1 ? got_dx.data() : nullptr, wanted & 2 ? got_dweight.data() : nullptr,
       wanted & 4 ? got_dbias.data() : nullptr);
      if (wanted & 1) check_close(got_dx, dx, k);
      if (wanted & 2) check_close(got_dweight, dweight, k);
      if (wanted & 4) check_close(got_dbias, dbias, k);
    }
  });
}

TEST(any_geometry) {
  with_types([]<class T> {
    Random random;
    for (int i = 0; i < 120; ++i) {
      Case test{random_geometry(random, false), random.below(4), 0, 0};
      test.groups = random.below(2) == 0 ? 1 : 1 + random.below(4);
      test.channels = test.groups * (1 + random.below(i % 4 == 0 ? 1 : 6));
      test.filters = test.groups * (1 + random.below(i % 4 == 0 ? 1 : 20));
      test.flip = random.below(2) == 1;
      test.activation = random.below(2) == 0   ? Activation::none
                        : random.below(2) == 0 ? Activation::relu
                                               : Activation::tanh;
      check_conv<T>(random, test, ConvAlgorithm::direct);
    }
  });
}

TEST(special_geometries) {
  struct Named {
    const char* name;
    Case test;
  };
  const auto plane = [](Axis h, Axis w) { return Geometry{2, {{}, h, w}}; };
  const Axis three{9, 3, 1, 1, 1, 1}, narrow{5, 3, 1, 1, 1, 1}, wide{17, 3, 1, 1, 1, 1};
  const Named cases[] = {
      {"one by one is a matrix product", {plane({5}, {7}), 3, 17, 33}},
      {"one by one with a stride", {plane({5, 1, 2}, {7, 1, 3}), 2, 17, 16}},
      {"one by one with padding", {plane({5, 1, 1, 1, 1, 1}, {4, 1, 1, 1, 0, 2}), 2, 5, 16}},
      {"depthwise", {plane(three, three), 2, 35, 35, 35}},
      {"depthwise, stride 2, flipped", {plane({9, 3, 2, 1, 1, 1}, {16, 5, 2, 1, 2, 2}), 2, 17, 17, 17, true}},
      {"depthwise, dilated", {plane({9, 3, 1, 2, 2, 2}, {11, 3, 1, 3, 0, 3}), 1, 16, 16, 16}},
      {"several filters a channel", {plane(three, three), 1, 4, 12, 4}},
      {"few positions, many filters", {plane(narrow, narrow), 1, 9, 130}},
      {"many positions", {plane(wide, wide), 1, 7, 67}},
      {"many positions in groups, strided rows", {plane(wide, wide), 1, 6, 66, 2, false, Activation::relu}},
      {"deep: several blocks of taps", {plane(narrow, narrow), 1, 95, 17}},
      {"deep and many positions", {plane(wide, wide), 1, 44, 16}},
      {"chunks of positions", {plane({33, 3, 1, 1, 1, 1}, {34, 3, 1, 1, 1, 1}), 1, 2, 3, 1, true}},
      {"several tasks", {plane({24, 3, 1, 1, 1, 1}, {25, 3, 2, 1, 1, 1}), 2, 8, 24, 1, false, Activation::tanh}},
      {"phases of the gradient that no tap meets", {plane({9, 1, 3}, {10, 2, 4}), 2, 3, 5}},
      {"stride and dilation share a factor", {plane({13, 3, 4, 2, 3, 3}, {14, 3, 2, 6, 5, 6}), 1, 3, 5}},
      {"padding beyond the kernel", {plane({3, 2, 1, 1, 4, 3}, {2, 1, 1, 1, 2, 2}), 1, 3, 5}},
      {"Winograd, sums in one pass", {plane(narrow, wide), 2, 80, 70}},
      {"Winograd, sums by points", {plane(wide, wide), 3, 70, 68}},
      {"Winograd, four taps, flipped", {plane({14, 4, 1, 1, 2, 1}, {12, 4}), 2, 17, 66, 1, true, Activation::relu}},
      {"Winograd, five taps, groups", {plane({15, 5, 1, 1, 2, 2}, {17, 5, 1, 1, 0, 4}), 1, 36, 20, 2}},
      {"no examples", {plane(three, narrow), 0, 3, 5}},
      {"signals", {Geometry{1, {{}, {}, {50, 5, 2, 1, 2, 2}}}, 3, 9, 16}},
      {"volumes", {Geometry{3, {{4, 2, 1, 1, 1, 0}, {5, 3, 2, 1, 1, 1}, {6, 3}}}, 2, 3, 17}},
  };
  with_types([&]<class T> {
    Random random;
    for (const auto& [name, test] : cases) {
      const Trying what(name);
      check_conv<T>(random, test, ConvAlgorithm::direct);
      check_conv<T>(random, test, ConvAlgorithm::fast);
    }
  });
}

}  // namespace
}  // namespace lec7::test
