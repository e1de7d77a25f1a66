// Locally connected layers of any geometry against the sum over all (position, tap, channel, filter).
#include "lec7/locally_connected.h"

#include "windows.h"

namespace lec7::test {
namespace {

struct Case {
  Axis height, width;
  Index batch, channels, filters;
};

template <class T>
void check_locally_connected(Random& random, const Case& test) {
  const Geometry g{2, {{}, test.height, test.width}};
  const Index positions = g.cells_out(), taps = g.taps(), depth = taps * test.channels;
  const Shape x_shape = g.array(test.batch, g.in(), test.channels),
              y_shape = g.array(test.batch, g.out(), test.filters);
  const Shape bias_shape{test.height.out(), test.width.out(), test.filters};
  const Shape weight_shape{test.height.out(), test.width.out(), test.height.kernel,
                           test.width.kernel, test.channels,    test.filters};
  const Trying what(text(g.str(), ", x ", x_shape.str(), ", filters ", weight_shape.str()));
  const Array<T> x = random.array<T>(x_shape.size()), weight = random.array<T>(weight_shape.size());
  const Array<T> bias = random.array<T>(bias_shape.size()), dy = random.array<T>(y_shape.size());
  const bool has_bias = random.below(4) > 0;
  const LocallyConnectedShape shape =
      locally_connected_shape(x_shape, weight_shape, has_bias ? &bias_shape : nullptr, g.stride());
  check_equal(shape.y.str(), y_shape.str());

  std::vector<double> y(dy.size()), dx(x.size()), dweight(weight.size()), dbias(bias.size());
  for (Index i = 0; i < dy.size(); ++i) {
    y[i] = has_bias ? static_cast<double>(bias[i % bias.size()]) : 0;
    dbias[i % bias.size()] += dy[i];
  }
  g.for_each([&](Index position, Index tap, Index cell) {
    for (Index n = 0; n < test.batch; ++n) {
      for (Index c = 0; c < test.channels; ++c) {
        for (Index f = 0; f < test.filters; ++f) {
          const Index in = (n * g.cells_in() + cell) * test.channels + c;
          const Index w = (position * depth + tap * test.channels + c) * test.filters + f;
          const Index out = (n * positions + position) * test.filters + f;
          y[out] += static_cast<double>(x[in]) * weight[w];
          dx[in] += static_cast<double>(dy[out]) * weight[w];
          dweight[w] += static_cast<double>(dy[out]) * x[in];
        }
      }
    }
  });
  on_every_isa([&] {
    const Array<T> got(dy.size());
    LEC7_PICK(locally_connected_forward<T>)
    (shape, x.data(), weight.data(), has_bias ? bias.data() : nullptr, got.data());
    check_close(got, y, 32);
    for (const int wanted : {7, 1, 2, 4}) {
      const Array<T> got_dx(x.size()), got_dweight(weight.size()), got_dbias(bias.size());
      LEC7_PICK(locally_connected_backward<T>)
      (shape, dy.data(), x.data(), weight.data(), wanted & 1 ? got_dx.data() : nullptr,
       wanted & 2 ? got_dweight.data() : nullptr, wanted & 4 ? got_dbias.data() : nullptr);
      if (wanted & 1) check_close(got_dx, dx, 32);
      if (wanted & 2) check_close(got_dweight, dweight, 32);
      if (wanted & 4) check_close(got_dbias, dbias, 32);
    }
  });
}

TEST(any_geometry) {
  with_types([]<class T> {
    Random random;
    const auto axis = [&] {
      const Index kernel = 1 + random.below(4);
      return Axis{kernel + random.below(6), kernel, 1 + random.below(4)};
    };
    for (int i = 0; i < 60; ++i) {
      check_locally_connected<T>(random, {axis(), axis(), random.below(9), 1 + random.below(9), 1 + random.below(40)});
    }
  });
}

TEST(special_sizes) {
  const Axis three{9, 3}, two{4, 2};
  const Case cases[] = {
      {three, three, 2, 17, 67},     // several tasks, a rest of columns
      {two, two, 13, 200, 5},        // several blocks of rows of a window
      {two, two, 2, 3, 800},         // more filters than a block of them has numbers in a row
      {two, two, 100, 3, 5},         // several blocks of images
      {{5, 5}, {6, 6}, 1, 20, 600},  // one position
      {two, {40, 2, 3}, 0, 3, 5},    // no examples
  };
  with_types([&]<class T> {
    Random random;
    for (const Case& test : cases) check_locally_connected<T>(random, test);
  });
}

}  // namespace
}  // namespace lec7::test
