// Transposed convolution of any geometry against the sum over all (cell of x, tap, channel, filter).
#include "lec7/conv_transpose.h"

#include "windows.h"

namespace lec7::test {
namespace {

// `geometry` is that of the convolution from y to x.
struct Case {
  Geometry geometry;
  Index batch, channels, filters, groups = 1;

  Shape x_shape() const { return geometry.array(batch, geometry.out(), channels); }
  Shape y_shape() const { return geometry.array(batch, geometry.in(), filters); }
  Shape weight_shape() const {
    Shape shape;
    for (int axis = 3 - geometry.spatial; axis < 3; ++axis) shape.append(geometry.axes[axis].kernel);
    shape.append(filters / groups);
    shape.append(channels);
    return shape;
  }
  ConvTransposeOptions options() const {
    return {geometry.stride(), geometry.padding(), geometry.each([](const Axis& a) {
              return a.in + a.before + a.after - a.kernel - (a.out() - 1) * a.stride;
            }),
            groups};
  }

  // body(y index, x index, weight index) on every product of the definition.
  template <class Body>
  void for_each(Body&& body) const {
    const Index cells_x = geometry.cells_out(), cells_y = geometry.cells_in();
    const Index group_channels = channels / groups, group_filters = filters / groups;
    geometry.for_each([&](Index cell, Index tap, Index of_y) {
      if (of_y < 0) return;
      for (Index n = 0; n < batch; ++n) {
        for (Index c = 0; c < channels; ++c) {
          for (Index f = 0; f < group_filters; ++f) {
            body((n * cells_y + of_y) * filters + c / group_channels * group_filters + f,
                 (n * cells_x + cell) * channels + c, (tap * group_filters + f) * channels + c);
          }
        }
      }
    });
  }
};

template <class T>
void check_conv_transpose(Random& random, const Case& test) {
  const Trying what(text(test.geometry.str(), ", x ", test.x_shape().str(), ", filters ", test.weight_shape().str(),
                         ", groups=", test.groups));
  const Array<T> x = random.array<T>(test.x_shape().size()), weight = random.array<T>(test.weight_shape().size());
  const Array<T> bias = random.array<T>(test.filters), dy = random.array<T>(test.y_shape().size());
  const bool has_bias = random.below(4) > 0;
  const Shape bias_shape{test.filters};
  const ConvTransposeShape shape =
      conv_transpose_shape("conv_transpose", test.geometry.spatial, test.x_shape(), test.weight_shape(),
                           has_bias ? &bias_shape : nullptr, test.options());
  check_equal(shape.y.str(), test.y_shape().str());

  std::vector<double> y(dy.size()), dx(x.size()), dweight(weight.size()), dbias(test.filters);
  for (Index i = 0; i < dy.size(); ++i) {
    y[i] = has_bias ? static_cast<double>(bias[i % test.filters]) : 0;
    dbias[i % test.filters] += dy[i];
  }
  test.for_each([&](Index out, Index in, Index w) {
    y[out] += static_cast<double>(x[in]) * weight[w];
    dx[in] += static_cast<double>(dy[out]) * weight[w];
    dweight[w] += static_cast<double>(dy[out]) * x[in];
  });
  const ConvAlgorithm before = conv_algorithm();
  set_conv_algorithm(ConvAlgorithm::direct);
  on_every_isa([&] {
    const Array<T> got(dy.size());
    LEC7_PICK(conv_transpose_forward<T>)(shape, x.data(), weight.data(), has_bias ? bias.data() : nullptr, got.data());
    check_close(got, y, 32);
    for (const int wanted : {7, 1, 2, 4}) {
      const Array<T> got_dx(x.size()), got_dweight(weight.size()), got_dbias(test.filters);
      LEC7_PICK(conv_transpose_backward<T>)
      (shape, dy.data(), x.data(), weight.data(), wanted & 1 ? got_dx.data() : nullptr,
       wanted & 2 ? got_dweight.data() : nullptr, wanted & 4 ? got_dbias.data() : nullptr);
      if (wanted & 1) check_close(got_dx, dx, 32);
      if (wanted & 2) check_close(got_dweight, dweight, 32);
      if (wanted & 4) check_close(got_dbias, dbias, 32);
    }
  });
  set_conv_algorithm(before);
}

TEST(any_geometry) {
  with_types([]<class T> {
    Random random;
    for (int i = 0; i < 80; ++i) {
      Case test{random_geometry(random, false), random.below(4), 0, 0};
      for (Axis& axis : test.geometry.axes) axis.dilation = 1;
      test.groups = random.below(2) == 0 ? 1 : 1 + random.below(4);
      test.channels = test.groups * (1 + random.below(i % 4 == 0 ? 1 : 20));
      test.filters = test.groups * (1 + random.below(i % 4 == 0 ? 1 : 20));
      check_conv_transpose<T>(random, test);
    }
  });
}

TEST(filters_side_by_side) {
  const auto axis = [](Index out, Index kernel) { return Axis{out * kernel, kernel, kernel}; };
  with_types([&]<class T> {
    Random random;
    check_conv_transpose<T>(random, {{1, {{}, {}, axis(7, 3)}}, 2, 5, 4});
    check_conv_transpose<T>(random, {{2, {{}, axis(5, 2), axis(4, 2)}}, 2, 17, 33});
    check_conv_transpose<T>(random, {{2, {{}, axis(3, 1), axis(130, 2)}}, 1, 3, 9});
    check_conv_transpose<T>(random, {{2, {{}, axis(2, 3), axis(1, 2)}}, 0, 3, 2});
    check_conv_transpose<T>(random, {{2, {{}, axis(2, 2), axis(3, 2)}}, 1, 400, 150});
    check_conv_transpose<T>(random, {{3, {axis(2, 2), axis(3, 3), axis(4, 2)}}, 2, 5, 6});
  });
}

TEST(large_enough_for_several_tasks) {
  const Axis doubled{32, 4, 2, 1, 1, 1};
  with_types([&]<class T> {
    Random random;
    check_conv_transpose<T>(random, {{2, {{}, doubled, doubled}}, 2, 17, 20});
    check_conv_transpose<T>(random, {{2, {{}, doubled, doubled}}, 2, 16, 3});
  });
}

}  // namespace
}  // namespace lec7::test
