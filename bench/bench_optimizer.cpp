// Updates in place and the norm of all gradients: bound by memory.
#include "bench.h"
#include "lec7/optimizer.h"

namespace lec7::bench {
namespace {

void optimizers(Index n) {
  const Shape shape{n};
  const double bytes = 4.0 * n;
  const Numbers numbers{{"n", n}};
  add("sgd_update", numbers, [=](benchmark::State& state) {
    const Sgd rule{.lr = 1e-4, .momentum = 0.9, .nesterov = false, .weight_decay = 0, .grad_scale = 1};
    Array params(shape), grads(shape), buffer(shape, 0);
    measure(state, {0, 5 * bytes},
            [&] { LEC7_PICK(sgd_update<float>)(rule, n, params.data(), grads.data(), buffer.data()); });
  });
  add("rmsprop_update", numbers, [=](benchmark::State& state) {
    const RmsProp rule{.lr = 1e-4, .decay = 0.99, .eps = 1e-8, .weight_decay = 0, .grad_scale = 1};
    Array params(shape), grads(shape), squares(shape, 0);
    measure(state, {0, 5 * bytes},
            [&] { LEC7_PICK(rmsprop_update<float>)(rule, n, params.data(), grads.data(), squares.data()); });
  });
  add("adam_update", numbers, [=](benchmark::State& state) {
    const Adam rule{.lr = 1e-4,
                    .step = 1,
                    .beta1 = 0.9,
                    .beta2 = 0.999,
                    .eps = 1e-8,
                    .weight_decay = 0,
                    .decoupled = false,
                    .grad_scale = 1};
    Array params(shape), grads(shape), mean(shape, 0), variance(shape, 0);
    measure(state, {0, 7 * bytes},
            [&] { LEC7_PICK(adam_update<float>)(rule, n, params.data(), grads.data(), mean.data(), variance.data()); });
  });
  add("global_norm", numbers, [=](benchmark::State& state) {
    Array x(shape);
    Buffer<double> norm(1);
    measure(state, {0, bytes}, [&] { LEC7_PICK(global_norm<float>)(n, x.data(), norm.data()); });
  });
}

const Rows rows([] { optimizers(10'000'000); });

}  // namespace
}  // namespace lec7::bench
