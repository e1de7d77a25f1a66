// Concatenation and addition in place, number by number.
#include "lec7/merge.h"

#include "kernels.h"

namespace lec7::test {
namespace {

template <class T>
void check_concat(Random& random, Index rows, const std::vector<Index>& channels) {
  std::vector<Shape> shapes;
  std::vector<Array<T>> arrays;
  Index width = 0;
  for (const Index c : channels) {
    shapes.push_back({rows, c});
    arrays.push_back(random.array<T>(rows * c));
    width += c;
  }
  const Trying what(text("rows=", rows, ", ", channels.size(), " arrays, width=", width));
  const ConcatShape shape = concat_shape(shapes);
  check_equal(shape.y.str(), Shape{rows, width}.str());
  std::vector<double> y;
  for (Index row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < channels.size(); ++i) {
      for (Index c = 0; c < channels[i]; ++c) y.push_back(arrays[i][row * channels[i] + c]);
    }
  }
  on_every_isa([&] {
    const Array<T> got(rows * width);
    std::vector<const T*> from;
    for (const Array<T>& array : arrays) from.push_back(array.data());
    LEC7_PICK(concat_forward<T>)(shape, from.data(), got.data());
    check_same(got, y);

    std::vector<Array<T>> parts;
    std::vector<T*> to;
    for (const Array<T>& array : arrays) parts.emplace_back(array.size());
    for (const Array<T>& part : parts) to.push_back(part.data());
    LEC7_PICK(concat_backward<T>)(concat_backward_shape(shape.y, channels), got.data(), to.data());
    for (std::size_t i = 0; i < parts.size(); ++i) check_same(parts[i], arrays[i].values());
  });
}

TEST(concat) {
  with_types([]<class T> {
    Random random;
    check_concat<T>(random, 1, {1});
    check_concat<T>(random, 0, {2, 3});
    check_concat<T>(random, 5, {0, 3, 0});
    check_concat<T>(random, 4, {0, 0});
    check_concat<T>(random, 300, {64, 128, 32, 32});
    check_concat<T>(random, 3, {5000, 20001});
    for (int i = 0; i < 60; ++i) {
      std::vector<Index> channels;
      for (Index n = 1 + random.below(5); n > 0; --n) channels.push_back(random.below(40));
      check_concat<T>(random, random.below(400), channels);
    }
  });
}

TEST(add) {
  with_types([]<class T> {
    Random random;
    for (const Index n : {0, 1, 3, 4, 7, 8, 15, 16, 17, 33, 67, 40000}) {
      const Trying what(text("n=", n));
      const Array<T> start = random.array<T>(n), x = random.array<T>(n);
      std::vector<double> sum(n), twice(n);
      for (Index i = 0; i < n; ++i) {
        sum[i] = start[i] + x[i];
        twice[i] = 2 * start[i];
      }
      on_every_isa([&] {
        const Array<T> y(start.values()), z(start.values());
        LEC7_PICK(add<T>)(n, y.data(), x.data());
        check_same(y, sum);
        LEC7_PICK(add<T>)(n, z.data(), z.data());
        check_same(z, twice);
      });
    }
  });
}

}  // namespace
}  // namespace lec7::test
