// Softmax cross-entropy of a large vocabulary: bound by memory, the logits read once, and once more for their gradient.
#include "bench.h"
#include "lec7/softmax.h"

namespace lec7::bench {
namespace {

void cross_entropy(Index rows, Index classes) {
  const CrossEntropy shape{
      .rows = rows, .classes = classes, .label_smoothing = 0, .ignore_index = {}, .reduction = Reduction::mean};
  const double bytes = 4.0 * rows * classes;
  const Numbers numbers{{"N", rows}, {"K", classes}};
  add("softmax_cross_entropy_forward", numbers, [=](benchmark::State& state) {
    Array logits({rows, classes}), loss({1}), lse({rows});
    Integers labels(rows, classes);
    measure(state, {0, bytes}, [&] {
      LEC7_PICK(softmax_cross_entropy_forward<float>)
      (shape, logits.data(), {labels.data(), false, rows}, nullptr, loss.data(), lse.data());
    });
  });
  add("softmax_cross_entropy_backward", numbers, [=](benchmark::State& state) {
    Array logits({rows, classes}), loss({1}), lse({rows}), dy({1}), dlogits({rows, classes});
    Integers labels(rows, classes);
    LEC7_PICK(softmax_cross_entropy_forward<float>)
    (shape, logits.data(), {labels.data(), false, rows}, nullptr, loss.data(), lse.data());
    measure(state, {0, 2 * bytes}, [&] {
      LEC7_PICK(softmax_cross_entropy_backward<float>)
      (shape, dy.data(), logits.data(), {labels.data(), false, rows}, lse.data(), nullptr, dlogits.data());
    });
  });
}

const Rows rows([] {
  cross_entropy(2500, 65);  // characters
  cross_entropy(4096, 10'000);
});

}  // namespace
}  // namespace lec7::bench
