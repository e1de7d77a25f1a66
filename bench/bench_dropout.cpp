// Dropout, whose mask is drawn and never stored: bound by memory on a GPU, by the generator on a CPU.
#include "bench.h"
#include "lec7/dropout.h"

namespace lec7::bench {
namespace {

const Rows rows([] {
  constexpr Index n = 10'000'000;
  add("dropout", {{"n", n}}, [](benchmark::State& state) {
    const Dropout shape = dropout_shape({n}, 0.5, 7, 0, false);
    Array x({n}), y({n});
    measure(state, {0, 8.0 * n}, [&] { LEC7_PICK(dropout<float>)(shape, x.data(), y.data()); });
  });
});

}  // namespace
}  // namespace lec7::bench
