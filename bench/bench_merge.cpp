// Concatenation and addition in place: bound by memory, so GB/s of what is read and written is what counts.
#include <vector>

#include "bench.h"
#include "lec7/merge.h"

namespace lec7::bench {
namespace {

// Four arrays side by side, and apart again.
void concat(Index n, Index size, const std::vector<Index>& channels) {
  std::vector<Shape> shapes;
  for (const Index c : channels) shapes.push_back({n, size, size, c});
  const ConcatShape shape = concat_shape(shapes);
  const Work work{0, 8.0 * shape.y.size()};
  const Numbers numbers{{"N", n}, {"H", size}, {"C", shape.y.back()}};
  add("concat_forward", numbers, [=](benchmark::State& state) {
    Array a(shapes[0]), b(shapes[1]), c(shapes[2]), d(shapes[3]), y(shape.y);
    const float* const arrays[] = {a.data(), b.data(), c.data(), d.data()};
    measure(state, work, [&] { LEC7_PICK(concat_forward<float>)(shape, arrays, y.data()); });
  });
  add("concat_backward", numbers, [=](benchmark::State& state) {
    Array a(shapes[0]), b(shapes[1]), c(shapes[2]), d(shapes[3]), dy(shape.y);
    float* const gradients[] = {a.data(), b.data(), c.data(), d.data()};
    measure(state, work, [&] { LEC7_PICK(concat_backward<float>)(shape, dy.data(), gradients); });
  });
}

void add_in_place(Index n, Index size, Index channels) {
  const Shape shape{n, size, size, channels};
  add("add_", {{"N", n}, {"H", size}, {"C", channels}}, [=](benchmark::State& state) {
    Array y(shape), x(shape);
    measure(state, {0, 12.0 * shape.size()}, [&] { LEC7_PICK(add<float>)(shape.size(), y.data(), x.data()); });
  });
}

const Rows rows([] {
  const std::vector<Index> inception{64, 128, 32, 32};
  concat(1, 28, inception);
  concat(8, 28, inception);
  concat(32, 28, {64, 64, 64, 64});
  add_in_place(1, 56, 256);
  add_in_place(8, 56, 256);
});

}  // namespace
}  // namespace lec7::bench
