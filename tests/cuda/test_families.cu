// The ops' own kernels, small: what a sanitizer finds in them, and that neither the order of threads and blocks nor
// their number at a time changes a bit of a result. What the results are is for the Python tests.
#include <cmath>
#include <initializer_list>

#include "clip.h"
#include "device.h"
#include "half.h"
#include "lec7/attention.h"
#include "lec7/conv.h"
#include "lec7/conv_transpose.h"
#include "lec7/dropout.h"
#include "lec7/embedding.h"
#include "lec7/linear.h"
#include "lec7/locally_connected.h"
#include "lec7/merge.h"
#include "lec7/norm.h"
#include "lec7/optimizer.h"
#include "lec7/pool.h"
#include "lec7/recurrent.h"
#include "lec7/softmax.h"

namespace lec7::test {
namespace {

using namespace cuda;

// What an op computed, array after array.
struct Results {
  std::vector<std::vector<float>> arrays;
  template <class... T>
  explicit Results(Device<T>&... results) {
    (add(results), ...);
  }
  template <class T>
  void add(Device<T>& result) {
    arrays.push_back(floats(result.host()));
  }

 private:
  static std::vector<float> floats(const std::vector<float>& values) { return values; }
  template <class T>
    requires is_half<T>
  static std::vector<float> floats(const std::vector<T>& values) {
    std::vector<float> result;
    for (const T x : values) result.push_back(to_float(x));
    return result;
  }
  template <class T>
  static std::vector<float> floats(const std::vector<T>& values) {
    return std::vector<float>(values.begin(), values.end());
  }
};

// Runs the op in several orders; every number must have been written, and be the same each time.
template <class Op>
void same_in_every_order(Op&& op, const Place& place = Place::current()) {
#if defined(LEC7_CUDA_HOST)
  const std::vector<host::Schedule> orders{{1, false, 0}, {2, true, 1}, {2, true, 2}};
#else
  const int orders[] = {0, 1};
#endif
  std::vector<std::vector<float>> first;
  for (const auto& order : orders) {
#if defined(LEC7_CUDA_HOST)
    host::schedule() = order;
#else
    (void)order;
#endif
    const Results results = op();
    if (first.empty()) {
      first = results.arrays;
      for (const std::vector<float>& array : first) {
        for (const float value : array) {
          if (std::isnan(value)) return report(place, "a number was not written");
        }
      }
    }
    test::check(results.arrays == first, "the result depends on the order of the threads", place);
  }
#if defined(LEC7_CUDA_HOST)
  host::schedule() = {};
#endif
}

template <class T = float>
Device<T> floats(Index count, unsigned seed) {
  const std::vector<float> values = random_floats(count, seed);
  if constexpr (is_half<T>) {
    std::vector<T> rounded;
    for (const float x : values) rounded.push_back(from_float<T>(x));
    return Device<T>(rounded);
  } else {
    return Device<T>(values);
  }
}
Device<float> floats(const Shape& shape, unsigned seed) { return floats(shape.size(), seed); }
template <class T = float>
Device<T> empty(Index count) {
  return Device<T>(static_cast<std::size_t>(count));
}
Device<float> empty(const Shape& shape) { return empty(shape.size()); }

std::vector<std::int32_t> random_integers(Index count, int end, unsigned seed) {
  std::vector<std::int32_t> values;
  for (const float x : random_floats(count, seed)) values.push_back(static_cast<int>((x + 1) / 2 * end) % end);
  return values;
}

TEST(activations) {
  for (const Activation kind : {Activation::relu, Activation::sigmoid, Activation::tanh}) {
    for (const Index n : {1, 255, 1031}) {
      auto x = floats(n, 1), dy = floats(n, 2);
      same_in_every_order([&] {
        auto y = empty(n), dx = empty(n);
        activation_forward<float>(kind, n, x.data(), y.data());
        activation_backward<float>(kind, n, dy.data(), y.data(), dx.data());
        return Results(y, dx);
      });
    }
  }
}

TEST(linear_layers) {
  for (const auto& [rows, in, out] : std::initializer_list<std::array<Index, 3>>{
           {1, 1, 1}, {1, 300, 70}, {3, 65, 129}, {64, 32, 64}, {130, 17, 33}, {257, 5, 3}}) {
    const Trying scope(text("rows=", rows, ", in=", in, ", out=", out));
    auto x = floats(rows * in, 1), weight = floats(in * out, 2), bias = floats(out, 3), dy = floats(rows * out, 4);
    const Shape x_shape{rows, in}, weight_shape{in, out}, bias_shape{out};
    const LinearShape shape = linear_shape(x_shape, weight_shape, &bias_shape);
    same_in_every_order([&] {
      auto y = empty(rows * out), dx = empty(rows * in), dweight = empty(in * out), dbias = empty(out);
      linear_forward<float>(shape, x.data(), weight.data(), bias.data(), Activation::tanh, y.data());
      linear_backward<float>(shape, dy.data(), x.data(), weight.data(), y.data(), Activation::tanh, dx.data(),
                             dweight.data(), dbias.data());
      return Results(y, dx, dweight, dbias);
    });
  }
}

// Products and convolutions on tensor cores while it lives.
struct Tf32 {
  Tf32() { set_allow_tf32(true); }
  ~Tf32() { set_allow_tf32(false); }
};

TEST(matrix_products_on_tensor_cores) {
  const Tf32 allowed;
  for (const auto& [m, n, k] : std::initializer_list<std::array<Index, 3>>{{131, 66, 9}, {132, 68, 140}}) {
    for (const bool transpose_a : {false, true}) {
      for (const bool transpose_b : {false, true}) {
        const Trying scope(text("m=", m, ", n=", n, ", k=", k, ", transposed ", transpose_a, transpose_b));
        auto a = floats(m * k, 1), b = floats(k * n, 2);
        same_in_every_order([&] {
          auto c = empty(m * n);
          matmul<float>({m, n, k}, a.data(), transpose_a, b.data(), transpose_b, c.data());
          return Results(c);
        });
      }
    }
  }
}

TEST(convolutions_on_tensor_cores) {
  const Tf32 allowed;
  for (const Index channels : {19, 20}) {
    const Trying scope(text("channels=", channels));
    const Shape x_shape{2, 9, 10, channels}, weight_shape{3, 3, channels, 68}, bias_shape{68};
    ConvOptions options;
    options.padding = {PaddingRule::numbers, {0, 1, 1}, {0, 1, 1}};
    const ConvShape shape = conv_shape("conv2d", 2, x_shape, weight_shape, &bias_shape, options);
    auto x = floats(x_shape, 1), weight = floats(weight_shape, 2), bias = floats(bias_shape, 3),
         dy = floats(shape.y, 4);
    same_in_every_order([&] {
      auto y = empty(shape.y), dx = empty(x_shape), dweight = empty(weight_shape), dbias = empty(bias_shape);
      conv_forward<float>(shape, x.data(), weight.data(), bias.data(), y.data());
      conv_backward<float>(shape, dy.data(), x.data(), weight.data(), y.data(), dx.data(), dweight.data(),
                           dbias.data());
      return Results(y, dx, dweight, dbias);
    });
  }
}

// As what chip the host picks kernels, until the end of a scope; a GPU stays what it is.
struct Chip {
  explicit Chip([[maybe_unused]] int capability) {
#if defined(LEC7_CUDA_HOST)
    set_compute_capability(capability);
#endif
  }
  ~Chip() {
#if defined(LEC7_CUDA_HOST)
    set_compute_capability(80);
#endif
  }
};

template <class T>
void products_and_convolutions_of_halves() {
  for (const auto& [m, n, k] :
       std::initializer_list<std::array<Index, 3>>{{131, 130, 9}, {136, 144, 72}, {9, 8, 300}}) {
    for (const bool transpose_a : {false, true}) {
      for (const bool transpose_b : {false, true}) {
        const Trying scope(text("m=", m, ", n=", n, ", k=", k, ", transposed ", transpose_a, transpose_b));
        auto a = floats<T>(m * k, 1), b = floats<T>(k * n, 2);
        same_in_every_order([&] {
          auto c = empty<T>(m * n);
          matmul<T>({m, n, k}, a.data(), transpose_a, b.data(), transpose_b, c.data());
          return Results(c);
        });
      }
    }
  }
  for (const Index channels : {3, 16}) {
    const Trying scope(text("channels=", channels));
    const Shape x_shape{2, 7, 8, channels}, weight_shape{3, 3, channels, 40}, bias_shape{40};
    ConvOptions options;
    options.padding = {PaddingRule::numbers, {0, 1, 1}, {0, 1, 1}};
    options.activation = Activation::tanh;
    const ConvShape shape = conv_shape("conv2d", 2, x_shape, weight_shape, &bias_shape, options);
    auto x = floats<T>(x_shape.size(), 1), weight = floats<T>(weight_shape.size(), 2), bias = floats<T>(40, 3),
         dy = floats<T>(shape.y.size(), 4);
    same_in_every_order([&] {
      auto y = empty<T>(shape.y.size()), dx = empty<T>(x_shape.size()), dweight = empty<T>(weight_shape.size()),
           dbias = empty<T>(40);
      conv_forward<T>(shape, x.data(), weight.data(), bias.data(), y.data());
      conv_backward<T>(shape, dy.data(), x.data(), weight.data(), y.data(), dx.data(), dweight.data(), dbias.data());
      return Results(y, dx, dweight, dbias);
    });
  }
}

TEST(halves_on_tensor_cores) {
  products_and_convolutions_of_halves<bfloat16>();
  products_and_convolutions_of_halves<float16>();
}

TEST(halves_on_float_tiles) {
  const Chip turing(75);
  products_and_convolutions_of_halves<float16>();
}

TEST(matrix_products) {
  for (const bool transpose_a : {false, true}) {
    for (const bool transpose_b : {false, true}) {
      const Index m = 70, n = 67, k = 41;
      auto a = floats(m * k, 1), b = floats(k * n, 2);
      same_in_every_order([&] {
        auto c = empty(m * n);
        matmul<float>({m, n, k}, a.data(), transpose_a, b.data(), transpose_b, c.data());
        return Results(c);
      });
    }
  }
}

struct ConvCase {
  Shape x, weight;
  ConvOptions options;
};

TEST(convolutions) {
  const auto options = [](Index stride, Index padding, Index dilation = 1, Index groups = 1) {
    ConvOptions result;
    result.stride = {1, stride, stride};
    result.padding = {PaddingRule::numbers, {0, padding, padding}, {0, padding, padding}};
    result.dilation = {1, dilation, dilation};
    result.groups = groups;
    result.activation = Activation::relu;
    return result;
  };
  const ConvCase cases[] = {
      {{1, 1, 1, 1}, {1, 1, 1, 1}, options(1, 0)},       {{2, 9, 7, 3}, {3, 3, 3, 5}, options(1, 1)},
      {{2, 8, 8, 16}, {3, 3, 16, 32}, options(1, 1)},    {{1, 13, 11, 3}, {5, 5, 3, 8}, options(4, 2)},
      {{3, 6, 6, 20}, {1, 1, 20, 36}, options(1, 0)},    {{2, 9, 9, 8}, {3, 3, 4, 6}, options(2, 1, 1, 2)},
      {{2, 9, 9, 6}, {3, 3, 1, 6}, options(1, 1, 1, 6)}, {{1, 9, 9, 4}, {3, 3, 4, 4}, options(1, 2, 2)},
  };
  for (const ConvCase& test : cases) {
    const Trying scope(text("x ", test.x.str(), ", weight ", test.weight.str()));
    const Shape bias_shape{test.weight.back()};
    const ConvShape shape = conv_shape("conv2d", 2, test.x, test.weight, &bias_shape, test.options);
    auto x = floats(test.x, 1), weight = floats(test.weight, 2), bias = floats(bias_shape, 3), dy = floats(shape.y, 4);
    for (const ConvAlgorithm algorithm : {ConvAlgorithm::direct, ConvAlgorithm::fast}) {
      set_conv_algorithm(algorithm);
      same_in_every_order([&] {
        auto y = empty(shape.y), dx = empty(test.x), dweight = empty(test.weight), dbias = empty(bias_shape);
        conv_forward<float>(shape, x.data(), weight.data(), bias.data(), y.data());
        conv_backward<float>(shape, dy.data(), x.data(), weight.data(), y.data(), dx.data(), dweight.data(),
                             dbias.data());
        return Results(y, dx, dweight, dbias);
      });
    }
  }
}

TEST(transposed_convolutions) {
  const Shape x_shape{2, 5, 6, 7}, weight_shape{3, 3, 4, 7}, bias_shape{4};
  ConvTransposeOptions options;
  options.stride = {1, 2, 2};
  options.padding = {PaddingRule::numbers, {0, 1, 1}, {0, 1, 1}};
  const ConvTransposeShape shape =
      conv_transpose_shape("conv_transpose2d", 2, x_shape, weight_shape, &bias_shape, options);
  auto x = floats(x_shape, 1), weight = floats(weight_shape, 2), bias = floats(bias_shape, 3), dy = floats(shape.y, 4);
  same_in_every_order([&] {
    auto y = empty(shape.y), dx = empty(x_shape), dweight = empty(weight_shape), dbias = empty(bias_shape);
    conv_transpose_forward<float>(shape, x.data(), weight.data(), bias.data(), y.data());
    conv_transpose_backward<float>(shape, dy.data(), x.data(), weight.data(), dx.data(), dweight.data(), dbias.data());
    return Results(y, dx, dweight, dbias);
  });
}

TEST(locally_connected_layers) {
  const Shape x_shape{3, 6, 7, 5}, weight_shape{2, 3, 3, 3, 5, 9}, bias_shape{2, 3, 9};
  const LocallyConnectedShape shape = locally_connected_shape(x_shape, weight_shape, &bias_shape, {1, 2, 2});
  auto x = floats(x_shape, 1), weight = floats(weight_shape, 2), bias = floats(bias_shape, 3), dy = floats(shape.y, 4);
  same_in_every_order([&] {
    auto y = empty(shape.y), dx = empty(x_shape), dweight = empty(weight_shape), dbias = empty(bias_shape);
    locally_connected_forward<float>(shape, x.data(), weight.data(), bias.data(), y.data());
    locally_connected_backward<float>(shape, dy.data(), x.data(), weight.data(), dx.data(), dweight.data(),
                                      dbias.data());
    return Results(y, dx, dweight, dbias);
  });
}

TEST(pooling) {
  PoolOptions options{};
  options.kernel = {1, 3, 3};
  options.stride = {1, 2, 2};
  options.dilation = {1, 1, 1};
  options.padding = {PaddingRule::numbers, {0, 1, 1}, {0, 1, 1}};
  for (const Index channels : {1, 4, 37}) {
    const Shape x_shape{2, 9, 8, channels};
    auto x = floats(x_shape, 1);
    const PoolShape shape = max_pool_shape("max_pool2d", 2, x_shape, options);
    auto dy = floats(shape.y, 2);
    same_in_every_order([&] {
      auto y = empty(shape.y), dx = empty(x_shape);
      Device<std::int32_t> argmax(static_cast<std::size_t>(shape.y.size()));
      max_pool_forward<float>(shape, x.data(), y.data(), argmax.data());
      const MaxPoolBackwardShape backward = max_pool_backward_shape("max_pool2d", 2, shape.y, shape.y, x_shape);
      max_pool_backward<float>(backward, dy.data(), {argmax.data(), false, shape.y.size()}, dx.data());
      return Results(y, dx, argmax);
    });
    same_in_every_order([&] {
      auto y = empty(shape.y), dx = empty(x_shape);
      sum_pool_forward<float>(shape, Average::cells, x.data(), y.data());
      sum_pool_backward<float>(shape, Average::cells, dy.data(), dx.data());
      return Results(y, dx);
    });
  }
}

TEST(normalization) {
  for (const auto& [rows, channels] :
       std::initializer_list<std::array<Index, 2>>{{2, 1}, {5, 7}, {70, 33}, {3, 300}, {260, 4}}) {
    const Trying scope(text("rows=", rows, ", channels=", channels));
    const Index n = rows * channels;
    auto x = floats(n, 1), dy = floats(n, 2), gamma = floats(channels, 3), beta = floats(channels, 4);
    same_in_every_order([&] {
      const LocalResponseNorm shape{rows, channels, 5, 1e-4, 0.75, 2};
      auto y = empty(n), saved = empty(n), dx = empty(n);
      local_response_norm_forward<float>(shape, x.data(), y.data(), saved.data());
      local_response_norm_backward<float>(shape, dy.data(), x.data(), saved.data(), dx.data());
      return Results(y, saved, dx);
    });
    for (const bool training : {true, false}) {
      same_in_every_order([&] {
        Device<float> mean(std::vector<float>(channels, 0.5f)), var(std::vector<float>(channels, 2.0f));
        auto y = empty(n), saved = empty(2 * channels), dx = empty(n), dgamma = empty(channels),
             dbeta = empty(channels);
        batch_norm_forward<float>({rows, channels}, {training, 0.1, 1e-5}, x.data(), gamma.data(), beta.data(),
                                  mean.data(), var.data(), y.data(), saved.data());
        batch_norm_backward<float>({rows, channels}, training, dy.data(), x.data(), gamma.data(), saved.data(),
                                   dx.data(), dgamma.data(), dbeta.data());
        return Results(y, saved, mean, var, dx, dgamma, dbeta);
      });
    }
    same_in_every_order([&] {
      auto y = empty(n), saved = empty(2 * rows), dx = empty(n), dgamma = empty(channels), dbeta = empty(channels);
      layer_norm_forward<float>({rows, channels}, 1e-5, x.data(), gamma.data(), beta.data(), y.data(), saved.data());
      layer_norm_backward<float>({rows, channels}, dy.data(), x.data(), gamma.data(), saved.data(), dx.data(),
                                 dgamma.data(), dbeta.data());
      return Results(y, saved, dx, dgamma, dbeta);
    });
  }
}

TEST(softmax_and_losses) {
  for (const auto& [rows, classes] : std::initializer_list<std::array<Index, 2>>{{1, 1}, {7, 10}, {3, 65}, {2, 1500}}) {
    const Trying scope(text("rows=", rows, ", classes=", classes));
    const Index n = rows * classes;
    auto x = floats(n, 1), dy = floats(n, 2), targets = floats(n, 3);
    same_in_every_order([&] {
      auto y = empty(n), dx = empty(n), log_y = empty(n), dlog = empty(n);
      softmax_forward<float>({rows, classes}, x.data(), y.data());
      softmax_backward<float>({rows, classes}, dy.data(), y.data(), dx.data());
      log_softmax_forward<float>({rows, classes}, x.data(), log_y.data());
      log_softmax_backward<float>({rows, classes}, dy.data(), log_y.data(), dlog.data());
      return Results(y, dx, log_y, dlog);
    });
    Device<std::int32_t> labels(random_integers(rows, static_cast<int>(classes), 5));
    const Indices label_values{labels.data(), false, rows};
    Device<float> one(std::vector<float>{1.5f});
    for (const Reduction reduction : {Reduction::none, Reduction::mean}) {
      same_in_every_order([&] {
        const CrossEntropy shape =
            cross_entropy_shape({rows, classes}, {rows}, label_values, nullptr, std::nullopt, 0.1, reduction);
        const bool each = reduction == Reduction::none;
        auto loss = empty(each ? rows : 1), lse = empty(rows), dx = empty(n);
        softmax_cross_entropy_forward<float>(shape, x.data(), label_values, nullptr, loss.data(), lse.data());
        softmax_cross_entropy_backward<float>(shape, each ? dy.data() : one.data(), x.data(), label_values, lse.data(),
                                              nullptr, dx.data());
        return Results(loss, lse, dx);
      });
      same_in_every_order([&] {
        const bool each = reduction == Reduction::none;
        auto loss = empty(each ? n : 1), dx = empty(n), square = empty(each ? n : 1), dsquare = empty(n);
        float* const gradient = each ? dy.data() : one.data();
        binary_cross_entropy_forward<float>(n, x.data(), targets.data(), reduction, loss.data());
        binary_cross_entropy_backward<float>(n, gradient, x.data(), targets.data(), reduction, dx.data());
        mean_squared_error_forward<float>(n, x.data(), targets.data(), reduction, square.data());
        mean_squared_error_backward<float>(n, gradient, x.data(), targets.data(), reduction, dsquare.data());
        return Results(loss, dx, square, dsquare);
      });
    }
  }
}

TEST(dropping_out) {
  for (const bool whole_channels : {false, true}) {
    const Shape x_shape{3, 5, 37};
    auto x = floats(x_shape, 1);
    same_in_every_order([&] {
      auto y = empty(x_shape);
      dropout<float>(dropout_shape(x_shape, 0.3, 7, 11, whole_channels), x.data(), y.data());
      return Results(y);
    });
  }
}

TEST(embeddings) {
  for (const auto& [count, features] : std::initializer_list<std::array<Index, 2>>{{1, 1}, {300, 5}, {70, 64}}) {
    const int embeddings = 19;
    Device<std::int32_t> tokens(random_integers(count, embeddings, 1));
    const Indices values{tokens.data(), false, count};
    auto weight = floats(embeddings * features, 2), dy = floats(count * features, 3);
    same_in_every_order([&] {
      auto y = empty(count * features), dweight = empty(embeddings * features);
      embedding_forward<float>(embedding_shape({count}, values, {embeddings, features}), values, weight.data(),
                               y.data());
      embedding_backward<float>(embedding_backward_shape({count, features}, {count}, values, embeddings), dy.data(),
                                values, dweight.data());
      return Results(y, dweight);
    });
  }
}

struct AttentionCase {
  Index n, heads, queries, keys, d, dv;
  bool causal, weights;
};

template <class T>
void run_attention(const AttentionCase& test) {
  const auto [n, heads, queries, keys, d, dv, causal, want_weights] = test;
  const Trying scope(text("queries=", queries, ", keys=", keys, ", d=", d, ", causal=", causal));
  const Shape q_shape{n, heads, queries, d}, k_shape{n, heads, keys, d}, v_shape{n, heads, keys, dv};
  const AttentionShape shape = attention_shape(q_shape, k_shape, v_shape, true);
  AttentionParams<float> params{};
  params.scale = 0.3f;
  params.causal = causal;
  if (n > 1) params.key_lengths = {keys, keys / 2};
  auto q = floats<T>(q_shape.size(), 1), k = floats<T>(k_shape.size(), 2), v = floats<T>(v_shape.size(), 3);
  auto dy = floats<T>(shape.y.size(), 4);
  same_in_every_order([&] {
    auto y = empty<T>(shape.y.size()), dq = empty<T>(q_shape.size()), dk = empty<T>(k_shape.size());
    auto dvalues = empty<T>(v_shape.size()), weights = empty<T>(want_weights ? shape.weights().size() : 0);
    auto lse = empty(shape.lse);
    attention_forward<T>(shape, params, q.data(), k.data(), v.data(), y.data(), lse.data(),
                         want_weights ? weights.data() : nullptr);
    attention_backward<T>(shape, params, dy.data(), q.data(), k.data(), v.data(), y.data(), lse.data(), dq.data(),
                          dk.data(), dvalues.data());
    return Results(y, lse, weights, dq, dk, dvalues);
  });
}

TEST(attention) {
  for (const AttentionCase& test :
       {AttentionCase{1, 1, 1, 1, 1, 1, false, true}, AttentionCase{2, 2, 1, 70, 16, 8, false, true},
        AttentionCase{1, 1, 2, 300, 4, 70, false, true}, AttentionCase{1, 1, 5, 70, 200, 260, true, true},
        AttentionCase{1, 2, 70, 67, 32, 32, false, true}, AttentionCase{1, 1, 65, 65, 64, 64, true, true},
        AttentionCase{2, 1, 33, 40, 20, 12, true, true}}) {
    run_attention<float>(test);
  }
}

struct Recurrence {
  Index steps, batch, inputs, hidden;
  bool reverse;
};

template <class T>
void run_recurrence(Cell cell, const Recurrence& test) {
  const RecurrentShape s{cell, test.steps, test.batch, test.inputs, test.hidden};
  const Trying scope(text("batch=", s.batch, ", hidden=", s.hidden, ", gates=", gate_count(cell)));
  const Index rows = s.steps * s.batch, state = s.batch * s.hidden;
  std::vector<Index> lengths;
  for (Index n = 0; n < s.batch; ++n) lengths.push_back(n % (s.steps + 1));
  auto x = floats<T>(rows * s.inputs, 1), h0 = floats<T>(state, 2), c0 = floats<T>(state, 3);
  auto bias = floats<T>(s.gates(), 4), weight_x = floats<T>(s.inputs * s.gates(), 5);
  auto weight_h = floats<T>(s.hidden * s.gates(), 6), dhs = floats<T>(rows * s.hidden, 7);
  auto dh_last = floats<T>(state, 8), dc_last = floats<T>(state, 9);
  same_in_every_order([&] {
    auto hs = empty<T>(rows * s.hidden), h_last = empty<T>(state), c_last = empty<T>(state);
    auto gates = empty<T>(rows * s.gates()), cells = empty<T>(rows * s.hidden);
    const bool lstm = cell == Cell::lstm;
    recurrent_forward<T>(
        s, {x.data(), h0.data(), c0.data(), weight_x.data(), weight_h.data(), bias.data(), lengths.data(), test.reverse,
            hs.data(), h_last.data(), lstm ? c_last.data() : nullptr, gates.data(), cells.data()});
    auto dx = empty<T>(rows * s.inputs), dh0 = empty<T>(state), dc0 = empty<T>(state);
    auto dweight_x = empty<T>(s.inputs * s.gates()), dweight_h = empty<T>(s.hidden * s.gates());
    auto dbias = empty<T>(s.gates());
    recurrent_backward<T>(
        s, {dhs.data(), dh_last.data(), lstm ? dc_last.data() : nullptr, x.data(), h0.data(), c0.data(),
            weight_x.data(), weight_h.data(), hs.data(), gates.data(), cells.data(), lengths.data(), test.reverse,
            dx.data(), dh0.data(), lstm ? dc0.data() : nullptr, dweight_x.data(), dweight_h.data(), dbias.data()});
    Results results(hs, h_last, dx, dh0, dweight_x, dweight_h, dbias);
    if (lstm) results.add(c_last), results.add(dc0);
    return results;
  });
}

// On tensor cores, with rows of 64, 128 and 256 numbers; few queries; by way of float32.
TEST(attention_of_16_bits) {
  for (const AttentionCase& test :
       {AttentionCase{1, 1, 70, 200, 64, 40, false, false}, AttentionCase{2, 1, 150, 150, 64, 64, true, false},
        AttentionCase{1, 1, 40, 100, 72, 128, false, false}, AttentionCase{1, 1, 33, 50, 256, 136, true, false},
        AttentionCase{1, 1, 2, 300, 8, 8, false, false}, AttentionCase{1, 1, 9, 20, 8, 12, false, true}}) {
    run_attention<bfloat16>(test);
  }
  run_attention<float16>({1, 1, 70, 100, 8, 16, true, false});
}

// One kernel for all steps; step by step where rows are many.
TEST(recurrence) {
  for (const Recurrence& test :
       {Recurrence{3, 2, 3, 5, false}, Recurrence{3, 21, 2, 20, true}, Recurrence{1, 3, 2, 9, false},
        Recurrence{2, 257, 1, 3, true}, Recurrence{2, 33, 1, 130, false}}) {
    for (const Cell cell : {Cell::rnn_tanh, Cell::lstm, Cell::gru}) run_recurrence<float>(cell, test);
  }
}

// On tensor cores, with several chunks of rows, and step by step.
TEST(recurrence_of_16_bits) {
  for (const Recurrence& test : {Recurrence{3, 2, 3, 5, false}, Recurrence{3, 77, 2, 24, true},
                                 Recurrence{2, 257, 1, 3, true}, Recurrence{2, 3, 1, 72, false}}) {
    for (const Cell cell : {Cell::rnn_tanh, Cell::lstm, Cell::gru}) run_recurrence<bfloat16>(cell, test);
  }
  run_recurrence<float16>(Cell::lstm, {3, 21, 2, 20, true});
}

TEST(merging) {
  auto a = floats(30 * 3, 1), b = floats(30 * 8, 2), dy = floats(30 * 11, 3);
  const Shape shapes[] = {{30, 3}, {30, 8}};
  same_in_every_order([&] {
    auto y = empty(30 * 11), da = empty(30 * 3), db = empty(30 * 8), sum = floats(30 * 8, 4);
    const ConcatShape shape = concat_shape(shapes);
    const float* const arrays[] = {a.data(), b.data()};
    float* const gradients[] = {da.data(), db.data()};
    concat_forward<float>(shape, arrays, y.data());
    concat_backward<float>(shape, dy.data(), gradients);
    add<float>(30 * 8, sum.data(), b.data());
    return Results(y, da, db, sum);
  });
}

TEST(optimizers) {
  for (const Index n : {1, 1000, 5003}) {
    auto gradients = floats(n, 1);
    same_in_every_order([&] {
      auto p = floats(n, 2), q = floats(n, 3), r = floats(n, 4);
      Device<float> buffer(std::vector<float>(n, 0.0f)), square(std::vector<float>(n, 0.0f)),
          mean(std::vector<float>(n, 0.0f)), variance(std::vector<float>(n, 0.0f));
      sgd_update<float>({0.1, 0.9, true, 1e-4, 1}, n, p.data(), gradients.data(), buffer.data());
      rmsprop_update<float>({0.1, 0.9, 1e-8, 1e-4, 1}, n, q.data(), gradients.data(), square.data());
      adam_update<float>({0.1, 1, 0.9, 0.999, 1e-8, 1e-4, true, 1}, n, r.data(), gradients.data(), mean.data(),
                         variance.data());
      Device<double> norm(1), factor(1), lr(std::vector<double>{0.1});
      global_norm<float>(n, gradients.data(), norm.data());
      scale<float>(n, p.data(), 0.5);
      // The same from numbers on the device.
      Device<Index> step(std::vector<Index>{2});
      clip_scale(norm.data(), 1e-3, factor.data());
      const Number<double> rate{0, lr.data()}, scaled{0, factor.data()};
      sgd_update<float>({rate, 0.9, true, 1e-4, scaled}, n, p.data(), gradients.data(), buffer.data());
      adam_update<float>({rate, {1, step.data()}, 0.9, 0.999, 1e-8, 1e-4, true, scaled}, n, r.data(), gradients.data(),
                         mean.data(), variance.data());
      return Results(p, q, r, buffer, square, mean, variance, norm, factor);
    });
  }
}

}  // namespace
}  // namespace lec7::test
