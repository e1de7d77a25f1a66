// Local response, batch (training) and layer normalization: bound by memory.
#include "bench.h"
#include "lec7/norm.h"

namespace lec7::bench {
namespace {

void local_response_norm(Index n, Index size, Index channels, Index window) {
  constexpr double kAlpha = 1e-4, kBeta = 0.75, kK = 1;
  const Shape x_shape{n, size, size, channels};
  const LocalResponseNorm shape = local_response_norm_shape(x_shape, window, kAlpha, kBeta, kK);
  const double bytes = 4.0 * x_shape.size();
  const Numbers numbers{{"K", window}, {"N", n}, {"H", size}, {"C", channels}};
  add("local_response_norm_forward", numbers, [=](benchmark::State& state) {
    Array x(x_shape), y(x_shape), saved(x_shape);
    measure(state, {0, 3 * bytes},
            [&] { LEC7_PICK(local_response_norm_forward<float>)(shape, x.data(), y.data(), saved.data()); });
  });
  add("local_response_norm_backward", numbers, [=](benchmark::State& state) {
    Array dy(x_shape), x(x_shape), y(x_shape), saved(x_shape), dx(x_shape);
    LEC7_PICK(local_response_norm_forward<float>)(shape, x.data(), y.data(), saved.data());
    measure(state, {0, 4 * bytes}, [&] {
      LEC7_PICK(local_response_norm_backward<float>)(shape, dy.data(), x.data(), saved.data(), dx.data());
    });
  });
}

// The sums over all of x come first: x, and backward dy, are read twice.
void batch_norm(Index n, Index size, Index channels) {
  const Shape x_shape{n, size, size, channels}, one{channels};
  const BatchNormOptions options{.training = true, .momentum = 0.1, .eps = 1e-5};
  const NormShape shape = batch_norm_shape(x_shape, one, one, one, one, options);
  const double bytes = 4.0 * x_shape.size();
  const Numbers numbers{{"N", n}, {"H", size}, {"C", channels}};
  add("batch_norm_forward", numbers, [=](benchmark::State& state) {
    Array x(x_shape), gamma(one), beta(one), mean(one), variance(one), y(x_shape), saved({2, channels});
    measure(state, {0, 3 * bytes}, [&] {
      LEC7_PICK(batch_norm_forward<float>)
      (shape, options, x.data(), gamma.data(), beta.data(), mean.data(), variance.data(), y.data(), saved.data());
    });
  });
  add("batch_norm_backward", numbers, [=](benchmark::State& state) {
    Array x(x_shape), gamma(one), beta(one), mean(one), variance(one), y(x_shape), saved({2, channels});
    Array dy(x_shape), dx(x_shape), dgamma(one), dbeta(one);
    LEC7_PICK(batch_norm_forward<float>)
    (shape, options, x.data(), gamma.data(), beta.data(), mean.data(), variance.data(), y.data(), saved.data());
    measure(state, {0, 5 * bytes}, [&] {
      LEC7_PICK(batch_norm_backward<float>)
      (shape, true, dy.data(), x.data(), gamma.data(), saved.data(), dx.data(), dgamma.data(), dbeta.data());
    });
  });
}

void layer_norm(Index rows, Index features) {
  constexpr double kEps = 1e-5;
  const Shape x_shape{rows, features}, one{features};
  const NormShape shape = layer_norm_shape(x_shape, one, one, kEps);
  const double bytes = 4.0 * x_shape.size();
  const Numbers numbers{{"N", rows}, {"D", features}};
  add("layer_norm_forward", numbers, [=](benchmark::State& state) {
    Array x(x_shape), gamma(one), beta(one), y(x_shape), saved(layer_norm_saved(x_shape));
    measure(state, {0, 2 * bytes}, [&] {
      LEC7_PICK(layer_norm_forward<float>)
      (shape, kEps, x.data(), gamma.data(), beta.data(), y.data(), saved.data());
    });
  });
  add("layer_norm_backward", numbers, [=](benchmark::State& state) {
    Array x(x_shape), gamma(one), beta(one), y(x_shape), saved(layer_norm_saved(x_shape));
    Array dy(x_shape), dx(x_shape), dgamma(one), dbeta(one);
    LEC7_PICK(layer_norm_forward<float>)(shape, kEps, x.data(), gamma.data(), beta.data(), y.data(), saved.data());
    measure(state, {0, 3 * bytes}, [&] {
      LEC7_PICK(layer_norm_backward<float>)
      (shape, dy.data(), x.data(), gamma.data(), saved.data(), dx.data(), dgamma.data(), dbeta.data());
    });
  });
}

const Rows rows([] {
  local_response_norm(32, 55, 96, 5);  // AlexNet
  batch_norm(32, 56, 64);              // ResNet's first stage
  layer_norm(3200, 512);
  layer_norm(8192, 1024);
});

}  // namespace
}  // namespace lec7::bench
