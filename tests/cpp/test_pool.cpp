// Pooling of any geometry against a walk over the cells of every window.
#include "lec7/pool.h"

#include "windows.h"

namespace lec7::test {
namespace {

struct Case {
  Geometry geometry;
  Index batch, channels;

  Shape x_shape() const { return geometry.array(batch, geometry.in(), channels); }
  PoolOptions options() const {
    const Geometry& g = geometry;
    return {g.kernel(), g.stride(), g.dilation(), g.padding(), g.axes[2].ceil};
  }
  // body(y index, x index or -1 or -2)
  template <class Body>
  void for_each(Body&& body) const {
    const Index cells_in = geometry.cells_in(), cells_out = geometry.cells_out();
    geometry.for_each([&](Index out, Index, Index in) {
      for (Index n = 0; n < batch; ++n) {
        for (Index c = 0; c < channels; ++c) {
          body((n * cells_out + out) * channels + c, in < 0 ? in : (n * cells_in + in) * channels + c);
        }
      }
    });
  }
};

template <class T>
void check_max(Random& random, const Case& test) {
  const PoolShape shape = max_pool_shape("max_pool", test.geometry.spatial, test.x_shape(), test.options());
  const Index size = shape.y.size(), cells = test.geometry.cells_in();
  check_equal(shape.y.str(), test.geometry.array(test.batch, test.geometry.out(), test.channels).str());
  // Few different numbers, so that there are ties, and some NaN.
  std::vector<double> x_values;
  for (Index i = 0; i < test.x_shape().size(); ++i) {
    x_values.push_back(random.below(40) == 0 ? std::nan("") : static_cast<double>(random.below(5) - 2));
  }
  const Array<T> x(x_values), dy = random.array<T>(size);
  std::vector<double> y(size, -std::numeric_limits<double>::infinity()), argmax(size, -1), dx(x_values.size());
  std::vector<Index> winner(size, -1);
  test.for_each([&](Index out, Index in) {
    if (in < 0 || std::isnan(y[out])) return;
    if (winner[out] < 0 || x_values[in] > y[out] || std::isnan(x_values[in])) {
      y[out] = x_values[in];
      winner[out] = in;
      argmax[out] = static_cast<double>(in / test.channels % cells);
    }
  });
  for (Index i = 0; i < size; ++i) {
    if (winner[i] >= 0) dx[winner[i]] += dy[i];
  }
  const MaxPoolBackwardShape backward =
      max_pool_backward_shape("max_pool", test.geometry.spatial, shape.y, shape.y, test.x_shape());
  const Array<std::int64_t> argmax_wide(argmax);
  on_every_isa([&] {
    const Array<T> got(size), gradient(x.size()), gradient_wide(x.size());
    const Array<std::int32_t> winners(size);
    LEC7_PICK(max_pool_forward<T>)(shape, x.data(), got.data(), winners.data());
    check_same(got, y);
    check_same(Array<double>(winners.values()), argmax);
    check_equal(LEC7_PICK(max_pool_backward<T>)(backward, dy.data(), {winners.data(), false, size}, gradient.data()),
                -1);
    check_close(gradient, dx, 8);
    check_equal(
        LEC7_PICK(max_pool_backward<T>)(backward, dy.data(), {argmax_wide.data(), true, size}, gradient_wide.data()),
        -1);
    check_same(gradient_wide, gradient.values());
  });
}

template <class T>
void check_sum(Random& random, const Case& test, Average average) {
  const Trying what(text("average ", static_cast<int>(average)));
  const PoolShape shape = pool_shape("pool", test.geometry.spatial, test.x_shape(), test.options());
  const Index size = shape.y.size();
  const Array<T> x = random.array<T>(test.x_shape().size()), dy = random.array<T>(size);
  std::vector<double> y(size), count(size), dx(x.size());
  test.for_each([&](Index out, Index in) {
    if (in >= 0) y[out] += x[in];
    count[out] += in >= 0 || (in == -1 && average == Average::padded_cells);
  });
  const auto divisor = [&](Index out) { return average == Average::none || count[out] == 0 ? 1 : count[out]; };
  for (Index i = 0; i < size; ++i) y[i] /= divisor(i);
  test.for_each([&](Index out, Index in) {
    if (in >= 0) dx[in] += dy[out] / divisor(out);
  });
  on_every_isa([&] {
    const Array<T> got(size), gradient(x.size());
    LEC7_PICK(sum_pool_forward<T>)(shape, average, x.data(), got.data());
    check_close(got, y, 16);
    LEC7_PICK(sum_pool_backward<T>)(shape, average, dy.data(), gradient.data());
    check_close(gradient, dx, 16);
  });
}

template <class T>
void check_all(Random& random, const Case& test) {
  const Trying what(text(test.geometry.str(), ", x ", test.x_shape().str()));
  check_max<T>(random, test);
  for (const Average average : {Average::none, Average::cells, Average::padded_cells}) {
    check_sum<T>(random, test, average);
  }
}

TEST(any_geometry) {
  with_types([]<class T> {
    Random random;
    constexpr Index kChannels[] = {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 67};
    for (int i = 0; i < 80; ++i) {
      const Geometry g = random_geometry(random, true);
      const Index channels = g.spatial == 3 ? 1 + random.below(5) : kChannels[random.below(std::size(kChannels))];
      check_all<T>(random, {g, 1 + random.below(3), channels});
    }
  });
}

TEST(special_geometries) {
  struct Named {
    const char* name;
    Case test;
  };
  const auto plane = [](Axis h, Axis w) { return Geometry{2, {{}, h, w}}; };
  const Named cases[] = {
      {"the lecture's 2 x 2", {plane({8, 2, 2}, {8, 2, 2}), 2, 16}},
      {"overlapping 3 x 3, stride 2", {plane({9, 3, 2}, {11, 3, 2}), 2, 70}},
      {"whole image", {plane({7, 7, 1}, {7, 7, 1}), 3, 33}},
      {"gaps between windows", {plane({9, 1, 3}, {9, 2, 4}), 1, 5}},
      {"windows without a cell", {plane({1, 2, 1, 3, 2, 2}, {1, 2, 1, 2, 1, 1}), 2, 17}},
      {"no examples", {plane({4, 2, 2}, {4, 2, 2}), 0, 3}},
      {"no channels", {plane({4, 2, 2}, {4, 2, 2}), 2, 0}},
      {"several tasks", {plane({40, 3, 1, 1, 1, 1}, {40, 3, 2, 1, 1, 1}), 5, 20}},
      {"an image in bands", {plane({60, 3, 2}, {61, 3, 2}), 1, 45}},
      {"bands with gaps", {plane({61, 2, 3}, {60, 2, 3}), 1, 45}},
      {"more channels than a slab", {plane({20, 3, 2}, {20, 3, 2}), 1, 600}},
  };
  with_types([&]<class T> {
    Random random;
    for (const auto& [name, test] : cases) {
      const Trying what(name);
      check_all<T>(random, test);
    }
  });
}

TEST(an_argmax_out_of_range_is_found) {
  with_types([]<class T> {
    for (const Index channels : {1, 16, 35}) {
      const Index size = 2 * 9 * channels;
      const MaxPoolBackwardShape shape{2, 4, 9, channels};
      for (const std::int64_t bad :
           {std::int64_t{4}, std::int64_t{-2}, std::int64_t{1} << 32, std::numeric_limits<std::int64_t>::min()}) {
        for (const Index at : {Index{0}, size / 2, size - 1}) {
          const Trying what(text("channels=", channels, ", ", bad, " at ", at));
          std::vector<std::int64_t> values(static_cast<std::size_t>(size), 3);
          values[at] = bad;
          const Array<std::int64_t> argmax(values);
          on_every_isa([&] {
            const Array<T> dy(std::vector<double>(size, 1)), dx(2 * 4 * channels);
            check_equal(LEC7_PICK(max_pool_backward<T>)(shape, dy.data(), {argmax.data(), true, size}, dx.data()), at);
          });
        }
      }
    }
  });
}

}  // namespace
}  // namespace lec7::test
