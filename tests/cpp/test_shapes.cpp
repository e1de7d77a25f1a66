// The shape rules: what each op accepts, and the whole message where it refuses.
#include <functional>
#include <stdexcept>

#include "kernels.h"
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

struct Refusal {
  std::function<void()> call;
  const char* message;
};

void check_refusals(std::initializer_list<Refusal> refusals, const Place& place = Place::current()) {
  for (const Refusal& refusal : refusals)
    check_equal(thrown<std::invalid_argument>(refusal.call), refusal.message, place);
}

constexpr Index kHuge = Index{1} << 40;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(linear) {
  const Shape bias{5}, short_bias{4};
  const LinearShape shape = linear_shape({2, 3, 7}, {7, 5}, &bias);
  check_equal(shape.y.str(), "(2, 3, 5)");
  check_equal(shape.rows, 6);
  check_equal(linear_shape({7}, {7, 5}, nullptr).y.str(), "(5,)");
  check_refusals({
      {[] { linear_shape({}, {7, 5}, nullptr); },
       "linear: x needs an axis of features; x (..., I) = (), weight (I, O) = (7, 5)"},
      {[] { linear_shape({2, 7}, {7}, nullptr); },
       "linear: weight has 2 axes, not 1; x (..., I) = (2, 7), weight (I, O) = (7,)"},
      {[] { linear_shape({2, 6}, {7, 5}, nullptr); },
       "linear: weight takes 7 features, x has 6; x (..., I) = (2, 6), weight (I, O) = (7, 5)"},
      {[&] { linear_shape({2, 7}, {7, 5}, &short_bias); },
       "linear: bias has one number for each of the 5 outputs; x (..., I) = (2, 7), weight (I, O) = (7, 5), bias (O,) "
       "= (4,)"},
      {[] { linear_shape({kHuge, 0}, {0, kHuge}, nullptr); }, "linear: sizes overflow: 1099511627776 x 1099511627776"},
      {[] { linear_backward_shape({2, 4}, {2, 7}, {7, 5}, nullptr, Activation::none); },
       "linear: dy has the shape of y, (2, 5); dy (..., O) = (2, 4), x (..., I) = (2, 7), weight (I, O) = (7, 5)"},
      {[] { linear_backward_shape({2, 5}, {2, 7}, {7, 5}, nullptr, Activation::relu); },
       "linear: backward through an activation needs y"},
      {[&] { linear_backward_shape({2, 5}, {2, 7}, {7, 5}, &bias, Activation::relu); },
       "linear: y has the shape (2, 5); y (..., O) = (5,), x (..., I) = (2, 7), weight (I, O) = (7, 5)"},
      {[] { parse_activation("linear", "gelu"); },
       "linear: activation is None, \"relu\", \"sigmoid\" or \"tanh\"; got \"gelu\""},
  });
}

TEST(matmul) {
  const MatmulShape shape = matmul_shape({7, 2}, {5, 7}, true, true);
  CHECK(shape.m == 2 && shape.n == 5 && shape.k == 7);
  check_refusals({
      {[] { matmul_shape({2, 3, 4}, {4, 5}, false, false); }, "matmul: a and b have 2 axes; a = (2, 3, 4), b = (4, 5)"},
      {[] { matmul_shape({2, 3}, {4, 5}, false, false); },
       "matmul: the inner sizes differ; a (M, K) = (2, 3), b (K, N) = (4, 5)"},
      {[] { matmul_shape({2, 3}, {4, 5}, true, true); },
       "matmul: the inner sizes differ; a (K, M) = (2, 3), b (N, K) = (4, 5)"},
  });
}

TEST(softmax_and_losses) {
  const std::int32_t labels[] = {0, 2, -100, 1, 1, 1};
  const Indices six{labels, false, 6}, two{labels, false, 2};
  const Shape weight{3}, long_weight{4};
  check_equal(softmax_shape("softmax", {2, 3, 4}).rows, 6);
  const CrossEntropy shape = cross_entropy_shape({2, 3, 3}, {2, 3}, six, &weight, -100, 1, Reduction::sum);
  CHECK(shape.rows == 6 && shape.classes == 3 && shape.ignore_index == -100);
  const auto cross_entropy = [&](const Shape& logits, const Shape& of_labels, const Indices& values,
                                 const Shape* class_weight, double smoothing) {
    return [=] { cross_entropy_shape(logits, of_labels, values, class_weight, {}, smoothing, Reduction::mean); };
  };
  check_refusals({
      {[] { softmax_shape("softmax", {}); }, "softmax: x needs an axis of classes; x (..., K) = ()"},
      {[] { softmax_shape("softmax", {3, 0}); }, "softmax: there are no classes; x (..., K) = (3, 0)"},
      {[] { softmax_backward_shape("softmax", {3, 2}, {2, 3}); },
       "softmax: dy has the shape of y; dy (..., K) = (3, 2), y (..., K) = (2, 3)"},
      {[] { parse_reduction("mean_squared_error", "avg"); },
       "mean_squared_error: reduction is \"mean\", \"sum\" or \"none\"; got \"avg\""},
      {[] { check_loss_gradient("mean_squared_error", Reduction::mean, {2}, {2}); },
       "mean_squared_error: dy has the shape of the loss, (); dy = (2,)"},
      {[] { check_loss_gradient("mean_squared_error", Reduction::none, {}, {2, 3}); },
       "mean_squared_error: dy has the shape of the loss, (2, 3); dy = ()"},
      {[] { pointwise_loss_shape("binary_cross_entropy", "logits", {2}, {2, 1}); },
       "binary_cross_entropy: logits and targets have the same shape; logits = (2,), targets = (2, 1)"},
      {cross_entropy({}, {}, two, nullptr, 0),
       "softmax_cross_entropy: logits need an axis of classes; logits (..., K) = (), labels (...) = ()"},
      {cross_entropy({2, 0}, {2}, two, nullptr, 0),
       "softmax_cross_entropy: there are no classes; logits (..., K) = (2, 0), labels (...) = (2,)"},
      {cross_entropy({3, 3}, {2}, two, nullptr, 0),
       "softmax_cross_entropy: labels are one for each row of logits, (3,); logits (..., K) = (3, 3), labels (...) = "
       "(2,)"},
      {cross_entropy({2, 3}, {2}, two, &long_weight, 0),
       "softmax_cross_entropy: class_weight has one number for each of the 3 classes; logits (..., K) = (2, 3), labels "
       "(...) = (2,), class_weight (K,) = (4,)"},
      {cross_entropy({2, 3}, {2}, two, nullptr, kNan), "softmax_cross_entropy: label_smoothing is in [0, 1]; got nan"},
      {cross_entropy({2, 2}, {2}, two, nullptr, 0),
       "softmax_cross_entropy: labels is 2 at (1,), outside [0, 2); labels (...) = (2,)"},
      {cross_entropy({2, 3, 3}, {2, 3}, six, nullptr, 0),
       "softmax_cross_entropy: labels is -100 at (0, 2), outside [0, 3); labels (...) = (2, 3)"},
  });
}

TEST(embedding) {
  const std::int64_t tokens[] = {0, 6, 1, 2};
  const Indices four{tokens, true, 4}, none{tokens, true, 0};
  check_equal(embedding_shape({2, 2}, four, {7, 5}).y.str(), "(2, 2, 5)");
  check_equal(embedding_shape({0}, none, {0, 5}).y.str(), "(0, 5)");
  check_equal(embedding_backward_shape({4, 3}, {4}, four, 7).features, 3);
  check_refusals({
      {[&] { embedding_shape({4}, four, {7}); },
       "embedding: weight has 2 axes, not 1; tokens (...) = (4,), weight (V, D) = (7,)"},
      {[&] { embedding_shape({1, 1, 1, 1, 1, 1, 2, 2}, four, {7, 5}); },
       "embedding: tokens have too many axes; tokens (...) = (1, 1, 1, 1, 1, 1, 2, 2), weight (V, D) = (7, 5)"},
      {[&] { embedding_shape({2, 2}, four, {6, 5}); },
       "embedding: tokens is 6 at (0, 1), outside [0, 6); tokens (...) = (2, 2)"},
      {[&] { embedding_backward_shape({4, 3}, {4}, four, -1); },
       "embedding: num_embeddings is not negative; got -1; dy (..., D) = (4, 3), tokens (...) = (4,)"},
      {[&] { embedding_backward_shape({3, 3}, {4}, four, 7); },
       "embedding: dy has the shape of y, (4, 3); dy (..., D) = (3, 3), tokens (...) = (4,)"},
      {[&] { embedding_backward_shape({}, {4}, four, 7); },
       "embedding: dy needs an axis of features; dy (..., D) = (), tokens (...) = (4,)"},
      {[&] { embedding_backward_shape({4, kHuge}, {4}, four, kHuge); },
       "embedding: sizes overflow: 1099511627776 x 1099511627776"},
  });
}

TEST(dropout) {
  const Dropout shape = dropout_shape({2, 3, 4, 5}, 0.5, 1, 2, true);
  CHECK(shape.rows == 2 && shape.repeats == 12 && shape.channels == 5);
  check_equal(dropout_shape({}, 0, 1, 2, false).channels, 1);
  check_refusals({
      {[] { dropout_shape({3}, 1, 0, 0, false); }, "dropout: p is in [0, 1); got 1.000000"},
      {[] { dropout_shape({3}, -0.1, 0, 0, false); }, "dropout: p is in [0, 1); got -0.100000"},
      {[] { dropout_shape({3}, kNan, 0, 0, false); }, "dropout: p is in [0, 1); got nan"},
      {[] { dropout_shape({3}, 0.5, 0, 0, true); },
       "dropout: whole_channels needs an axis of examples and one of channels; x (N, ..., C) = (3,)"},
  });
}

// ---- windows ----

Padding numbers(PerAxis before, PerAxis after) { return {PaddingRule::numbers, before, after}; }

TEST(same_padding_keeps_ceil_of_in_over_stride) {
  for (const Index in : {1, 2, 5, 6, 7, 12}) {
    for (const Index kernel : {1, 2, 3, 4, 7}) {
      for (const Index stride : {1, 2, 3, 5}) {
        for (const Index dilation : {1, 2, 3}) {
          const Trying what(text("in=", in, ", kernel=", kernel, ", stride=", stride, ", dilation=", dilation));
          const auto window = [&](PaddingRule rule) {
            return windows_shape("op", 1, {1, 1, in}, {1, 1, kernel}, {1, 1, stride}, {1, 1, dilation}, {rule, {}, {}},
                                 false, {})[2];
          };
          const Window same = window(PaddingRule::same), lower = window(PaddingRule::same_lower);
          check_equal(same.out, (in + stride - 1) / stride);
          check_equal(lower.out, same.out);
          CHECK(same.pad_after - same.pad_before == 0 || same.pad_after - same.pad_before == 1);
          CHECK(lower.pad_before == same.pad_after && lower.pad_after == same.pad_before);
          const Index needed = (same.out - 1) * stride + same.extent() - in;
          check_equal(same.pad_before + same.pad_after, std::max<Index>(0, needed));
        }
      }
    }
  }
}

TEST(windows) {
  const auto windows = [&](Index in, Index kernel, Index stride, Index dilation, Index before, Index after, bool ceil) {
    const Named x{"x (N, L, C)", {1, in, 1}};
    return windows_shape("pool", 1, {1, 1, in}, {1, 1, kernel}, {1, 1, stride}, {1, 1, dilation},
                         numbers({0, 0, before}, {0, 0, after}), ceil, std::span(&x, 1))[2];
  };
  check_equal(windows(7, 3, 2, 1, 0, 0, false).out, 3);
  check_equal(windows(8, 3, 2, 1, 0, 0, true).out, 4);
  check_equal(windows(4, 2, 3, 1, 0, 1, true).out, 2);
  check_equal(windows(3, 2, 3, 1, 0, 1, true).out, 1);  // a second window would begin in the padding
  constexpr Index kLargest = (Index{1} << 31) - 1;
  check_equal(windows(1, 1, kLargest, kLargest, kLargest, kLargest, false).out, 3);
  check_refusals({
      {[&] { windows(5, 0, 1, 1, 0, 0, false); },
       "pool: kernel_size is 0 along L; it must be at least 1; x (N, L, C) = (1, 5, 1)"},
      {[&] { windows(5, 2, -1, 1, 0, 0, false); },
       "pool: stride is -1 along L; it must be at least 1; x (N, L, C) = (1, 5, 1)"},
      {[&] { windows(5, 2, 1, 0, 0, 0, false); },
       "pool: dilation is 0 along L; it must be at least 1; x (N, L, C) = (1, 5, 1)"},
      {[&] { windows(5, 2, 1, 1, 0, -2, false); },
       "pool: padding is -2 along L; it must be at least 0; x (N, L, C) = (1, 5, 1)"},
      {[&] { windows(5, 2, Index{1} << 31, 1, 0, 0, false); },
       "pool: stride is 2147483648 along L; it must be at most 2147483647; x (N, L, C) = (1, 5, 1)"},
      {[&] { windows(0, 1, 1, 1, 1, 1, false); },
       "pool: x's size is 0 along L; it must be at least 1; x (N, L, C) = (1, 0, 1)"},
      {[&] { windows(5, 7, 1, 1, 0, 1, false); },
       "pool: kernel 7 is larger than the padded input 6 along L; x (N, L, C) = (1, 5, 1)"},
      {[&] { windows(5, 3, 1, 3, 0, 1, false); },
       "pool: kernel 3, 7 cells with dilation 3, is larger than the padded input 6 along L; x (N, L, C) = (1, 5, 1)"},
  });
}

TEST(conv) {
  const Shape bias{16}, short_bias{3};
  ConvOptions grouped;
  grouped.groups = 2;
  check_equal(conv_shape("conv2d", 2, {8, 32, 30, 3}, {3, 3, 3, 16}, &bias, {}).y.str(), "(8, 30, 28, 16)");
  check_equal(conv_shape("conv1d", 1, {8, 9, 4}, {2, 2, 6}, nullptr, grouped).y.str(), "(8, 8, 6)");
  check_refusals({
      {[] { conv_shape("conv2d", 2, {8, 32, 32, 4}, {3, 3, 3, 16}, nullptr, {}); },
       "conv2d: filters have 3 input channels, x has 4; x (N, H, W, C) = (8, 32, 32, 4), filters (KH, KW, C, F) = (3, "
       "3, 3, 16)"},
      {[] { conv_shape("conv2d", 2, {32, 32, 3}, {3, 3, 3, 16}, nullptr, {}); },
       "conv2d: x has 4 axes, not 3; x (N, H, W, C) = (32, 32, 3), filters (KH, KW, C, F) = (3, 3, 3, 16)"},
      {[] { conv_shape("conv1d", 1, {8, 32, 3}, {3, 3, 3, 16}, nullptr, {}); },
       "conv1d: filters have 3 axes, not 4; x (N, L, C) = (8, 32, 3), filters (KL, C, F) = (3, 3, 3, 16)"},
      {[&] { conv_shape("conv1d", 1, {8, 9, 4}, {2, 2, 7}, nullptr, grouped); },
       "conv1d: groups (2) divides the 4 channels of x and the 7 filters; x (N, L, C) = (8, 9, 4), filters (KL, C, F) "
       "= (2, 2, 7)"},
      {[&] { conv_shape("conv1d", 1, {8, 9, 4}, {2, 4, 6}, nullptr, grouped); },
       "conv1d: filters have 4 input channels, x has 4 in 2 groups; x (N, L, C) = (8, 9, 4), filters (KL, C, F) = (2, "
       "4, 6)"},
      {[&] { conv_shape("conv2d", 2, {8, 5, 5, 3}, {3, 3, 3, 16}, &short_bias, {}); },
       "conv2d: bias has one number for each of the 16 filters; x (N, H, W, C) = (8, 5, 5, 3), filters (KH, KW, C, F) "
       "= (3, 3, 3, 16), bias (F,) = (3,)"},
      {[] { conv_shape("conv2d", 2, {8, 5, 2, 3}, {3, 3, 3, 16}, nullptr, {}); },
       "conv2d: kernel 3 is larger than the padded input 2 along W; x (N, H, W, C) = (8, 5, 2, 3), filters (KH, KW, C, "
       "F) = (3, 3, 3, 16)"},
      {[] { conv_backward_shape("conv2d", 2, {8, 5, 5, 16}, {8, 5, 5, 3}, {3, 3, 3, 16}, nullptr, {}); },
       "conv2d: dy has the shape of the output, (8, 3, 3, 16); dy (N, H, W, F) = (8, 5, 5, 16), x (N, H, W, C) = (8, "
       "5, 5, 3), filters (KH, KW, C, F) = (3, 3, 3, 16)"},
  });
}

TEST(conv_transpose) {
  const Shape x{8, 7, 9, 4}, weight{3, 2, 5, 4}, bias{10}, short_bias{5};
  const auto shape_of = [&](const ConvTransposeOptions& options, const Shape* bias_shape = nullptr) {
    return conv_transpose_shape("conv_transpose2d", 2, {8, 7, 9, 4}, {3, 2, 5, 4}, bias_shape, options);
  };
  const ConvTransposeOptions doubled{
      .stride = {1, 2, 2}, .padding = numbers({0, 1, 0}, {0, 1, 1}), .output_padding = {0, 1, 0}, .groups = 2};
  check_equal(shape_of({}).y.str(), "(8, 9, 10, 5)");
  check_equal(shape_of(doubled, &bias).y.str(), "(8, 14, 17, 10)");
  check_equal(shape_of({.stride = {1, 2, 3}, .padding = {PaddingRule::same, {}, {}}}).y.str(), "(8, 14, 27, 5)");
  constexpr Index kLargest = (Index{1} << 31) - 1;
  check_refusals({
      {[&] { conv_transpose_shape("conv_transpose2d", 2, {8, 7, 9, 3}, weight, nullptr, {}); },
       "conv_transpose2d: filters have 4 input channels, x has 3; x (N, H, W, C) = (8, 7, 9, 3), filters (KH, KW, F, "
       "C) = (3, 2, 5, 4)"},
      {[&] { conv_transpose_shape("conv_transpose2d", 2, {7, 9, 4}, weight, nullptr, {}); },
       "conv_transpose2d: x has 4 axes, not 3; x (N, H, W, C) = (7, 9, 4), filters (KH, KW, F, C) = (3, 2, 5, 4)"},
      {[&] { conv_transpose_shape("conv_transpose1d", 1, {7, 9, 4}, weight, nullptr, {}); },
       "conv_transpose1d: filters have 3 axes, not 4; x (N, L, C) = (7, 9, 4), filters (KL, F, C) = (3, 2, 5, 4)"},
      {[&] { shape_of({.groups = 3}); },
       "conv_transpose2d: groups (3) divides the 4 channels of x; x (N, H, W, C) = (8, 7, 9, 4), filters (KH, KW, F, "
       "C) = (3, 2, 5, 4)"},
      {[&] { shape_of(doubled, &short_bias); },
       "conv_transpose2d: bias has one number for each of the 10 filters; x (N, H, W, C) = (8, 7, 9, 4), filters (KH, "
       "KW, F, C) = (3, 2, 5, 4), bias (F,) = (5,)"},
      {[&] { shape_of({.stride = {1, 2, 1}, .output_padding = {0, 2, 0}}); },
       "conv_transpose2d: output_padding is 2 along H; it must be at least 0 and less than the stride, 2; x (N, H, W, "
       "C) = (8, 7, 9, 4), filters (KH, KW, F, C) = (3, 2, 5, 4)"},
      {[&] { shape_of({.stride = {1, 2, 1}, .padding = {PaddingRule::same, {}, {}}, .output_padding = {0, 1, 0}}); },
       "conv_transpose2d: \"same\" padding leaves no choice of output_padding; x (N, H, W, C) = (8, 7, 9, 4), filters "
       "(KH, KW, F, C) = (3, 2, 5, 4)"},
      {[&] { shape_of({.padding = numbers({0, 0, 4}, {0, 0, 6})}); },
       "conv_transpose2d: padding 4 + 6 leaves nothing of 10 cells along W; x (N, H, W, C) = (8, 7, 9, 4), filters "
       "(KH, KW, F, C) = (3, 2, 5, 4)"},
      {[] {
         conv_transpose_shape("conv_transpose1d", 1, {0, kHuge, 1}, {1, 1, 1}, nullptr, {.stride = {1, 1, kLargest}});
       },
       "conv_transpose1d: the result is too large along L: 1099511627776 cells with stride 2147483647; x (N, L, C) = "
       "(0, 1099511627776, 1), filters (KL, F, C) = (1, 1, 1)"},
      {[&] { conv_transpose_backward_shape("conv_transpose2d", 2, {8, 9, 10, 4}, x, weight, {}); },
       "conv_transpose2d: dy has the shape of the output, (8, 9, 10, 5); dy (N, H, W, F) = (8, 9, 10, 4), x (N, H, W, "
       "C) = (8, 7, 9, 4), filters (KH, KW, F, C) = (3, 2, 5, 4)"},
  });
}

TEST(locally_connected) {
  const Shape x{8, 7, 9, 4}, weight{3, 8, 3, 2, 4, 5}, bias{3, 8, 5}, flat_bias{5};
  const PerAxis stride{1, 2, 1};
  check_equal(locally_connected_shape(x, weight, &bias, stride).y.str(), "(8, 3, 8, 5)");
  check_refusals({
      {[&] { locally_connected_shape(x, {3, 8, 3, 2, 20}, nullptr, stride); },
       "locally_connected2d: filters have 6 axes, not 5; x (N, H, W, C) = (8, 7, 9, 4), filters (OH, OW, KH, KW, C, F) "
       "= (3, 8, 3, 2, 20)"},
      {[&] { locally_connected_shape({7, 9, 4}, weight, nullptr, stride); },
       "locally_connected2d: x has 4 axes, not 3; x (N, H, W, C) = (7, 9, 4), filters (OH, OW, KH, KW, C, F) = (3, 8, "
       "3, 2, 4, 5)"},
      {[&] { locally_connected_shape({8, 7, 9, 5}, weight, nullptr, stride); },
       "locally_connected2d: filters have 4 input channels, x has 5; x (N, H, W, C) = (8, 7, 9, 5), filters (OH, OW, "
       "KH, KW, C, F) = (3, 8, 3, 2, 4, 5)"},
      {[&] { locally_connected_shape(x, weight, nullptr, {1, 1, 1}); },
       "locally_connected2d: there are filters for 3 x 8 positions, the windows have 5 x 8; x (N, H, W, C) = (8, 7, 9, "
       "4), filters (OH, OW, KH, KW, C, F) = (3, 8, 3, 2, 4, 5)"},
      {[&] { locally_connected_shape({8, 2, 9, 4}, weight, nullptr, stride); },
       "locally_connected2d: kernel 3 is larger than the padded input 2 along H; x (N, H, W, C) = (8, 2, 9, 4), "
       "filters (OH, OW, KH, KW, C, F) = (3, 8, 3, 2, 4, 5)"},
      {[&] { locally_connected_shape(x, weight, &flat_bias, stride); },
       "locally_connected2d: bias has one number for each filter; x (N, H, W, C) = (8, 7, 9, 4), filters (OH, OW, KH, "
       "KW, C, F) = (3, 8, 3, 2, 4, 5), bias (OH, OW, F) = (5,)"},
      {[&] { locally_connected_backward_shape({8, 3, 8, 4}, x, weight, stride); },
       "locally_connected2d: dy has the shape of the output, (8, 3, 8, 5); dy (N, OH, OW, F) = (8, 3, 8, 4), x (N, H, "
       "W, C) = (8, 7, 9, 4), filters (OH, OW, KH, KW, C, F) = (3, 8, 3, 2, 4, 5)"},
  });
}

TEST(merge) {
  const Shape arrays[] = {{2, 3, 4}, {2, 3, 0}, {2, 3, 5}}, uneven[] = {{2, 3, 4}, {2, 2, 4}}, scalars[] = {{}};
  const Shape wide[] = {{kHuge, kHuge}, {kHuge, kHuge}};
  const Index channels[] = {4, 0, 5}, negative[] = {10, -1}, too_many[] = {5, 5};
  check_equal(concat_shape(arrays).y.str(), "(2, 3, 9)");
  check_equal(concat_shape(arrays).rows, 6);
  check_equal(concat_backward_shape({2, 3, 9}, channels).rows, 6);
  check_add({2, 3}, {2, 3}, false);
  check_refusals({
      {[] { concat_shape({}); }, "concat: there is at least one array"},
      {[&] { concat_shape(scalars); }, "concat: each array has an axis of channels; arrays[0] = ()"},
      {[&] { concat_shape(uneven); },
       "concat: the arrays agree in all axes but the last; arrays[0] = (2, 3, 4), arrays[1] = (2, 2, 4)"},
      {[&] { concat_shape(wide); }, "concat: sizes overflow: 1099511627776 x 2199023255552"},
      {[] { concat_backward_shape({2, 9}, {}); },
       "concat: channels has one number for each array, and there is at least one; dy = (2, 9)"},
      {[&] { concat_backward_shape({}, channels); }, "concat: dy has an axis of channels; dy = ()"},
      {[&] { concat_backward_shape({2, 9}, negative); },
       "concat: channels are not negative and add up to the 9 of dy; got (10, -1); dy (N, ..., C) = (2, 9)"},
      {[&] { concat_backward_shape({2, 9}, too_many); },
       "concat: channels are not negative and add up to the 9 of dy; got (5, 5); dy (N, ..., C) = (2, 9)"},
      {[] { check_add({2, 3}, {3, 2}, false); }, "add_: y and x have the same shape; y = (2, 3), x = (3, 2)"},
      {[] { check_add({2, 3}, {2, 3}, true); }, "add_: x overlaps y in memory without being y; y = (2, 3), x = (2, 3)"},
  });
}

TEST(pool) {
  const auto square = [](Index kernel, Index padding) {
    return PoolOptions{{1, kernel, kernel},
                       {1, kernel, kernel},
                       {1, 1, 1},
                       numbers({0, padding, padding}, {0, padding, padding}),
                       false};
  };
  check_equal(max_pool_shape("max_pool2d", 2, {8, 6, 7, 3}, square(2, 0)).y.str(), "(8, 3, 3, 3)");
  check_equal(max_pool_backward_shape("max_pool2d", 2, {8, 9, 1, 3}, {8, 9, 1, 3}, {8, 6, 7, 3}).cells_out, 9);
  check_refusals({
      {[&] { pool_shape("avg_pool2d", 2, {8, 6, 7}, square(2, 0)); },
       "avg_pool2d: x has 4 axes, not 3; x (N, H, W, C) = (8, 6, 7)"},
      {[&] { pool_shape("avg_pool2d", 2, {8, 6, 7, 3}, square(2, 2)); },
       "avg_pool2d: padding 2 is not smaller than the window, 2 cells; x (N, H, W, C) = (8, 6, 7, 3)"},
      {[&] { max_pool_shape("max_pool2d", 2, {0, kHuge, 4, 0}, square(1, 0)); },
       "max_pool2d: an image has more cells than int32 can number; x (N, H, W, C) = (0, 1099511627776, 4, 0)"},
      {[&] { max_pool_shape("max_pool2d", 2, {0, kHuge, kHuge, 0}, square(1, 0)); },
       "max_pool2d: sizes overflow: 1099511627776 x 1099511627776"},
      {[&] { pool_backward_shape("sum_pool2d", 2, {8, 6, 7, 3}, {8, 6, 7, 3}, square(2, 0)); },
       "sum_pool2d: dy has the shape of y, (8, 3, 3, 3); dy = (8, 6, 7, 3), x (N, H, W, C) = (8, 6, 7, 3)"},
      {[&] { max_pool_backward_shape("max_pool2d", 2, {8, 9, 1, 3}, {8, 9, 2, 3}, {8, 6, 7, 3}); },
       "max_pool2d: dy and argmax have the same shape; dy = (8, 9, 1, 3), argmax = (8, 9, 2, 3), x (N, H, W, C) = (8, "
       "6, 7, 3)"},
      {[&] { max_pool_backward_shape("max_pool2d", 2, {8, 9, 1, 4}, {8, 9, 1, 4}, {8, 6, 7, 3}); },
       "max_pool2d: dy has the axes of x, and as many examples and channels; dy = (8, 9, 1, 4), argmax = (8, 9, 1, 4), "
       "x (N, H, W, C) = (8, 6, 7, 3)"},
  });
}

TEST(local_response_norm) {
  const LocalResponseNorm shape = local_response_norm_shape({2, 3, 4, 5}, 7, 1, 2, 3);
  check_equal(shape.rows, 24);
  check_equal(shape.channels, 5);
  check_refusals({
      {[] { local_response_norm_shape({5}, 5, 1, 1, 1); },
       "local_response_norm: x has at least 2 axes, not 1; x (N, ..., C) = (5,)"},
      {[] { local_response_norm_shape({2, 5}, 4, 1, 1, 1); },
       "local_response_norm: size is odd and positive; got 4; x (N, ..., C) = (2, 5)"},
      {[] { local_response_norm_shape({2, 5}, -1, 1, 1, 1); },
       "local_response_norm: size is odd and positive; got -1; x (N, ..., C) = (2, 5)"},
      {[] { local_response_norm_backward_shape({2, 5}, {2, 5}, {2, 5}, 0, 1, 1); },
       "local_response_norm: size is odd and positive; got 0; dy = (2, 5), x (N, ..., C) = (2, 5), saved = (2, 5)"},
      {[] { local_response_norm_backward_shape({2, 4}, {2, 5}, {2, 5}, 5, 1, 1); },
       "local_response_norm: dy has the shape of x; dy = (2, 4), x (N, ..., C) = (2, 5), saved = (2, 5)"},
      {[] { local_response_norm_backward_shape({2, 5}, {2, 5}, {5}, 5, 1, 1); },
       "local_response_norm: saved has the shape of x; dy = (2, 5), x (N, ..., C) = (2, 5), saved = (5,)"},
  });
}

TEST(batch_norm) {
  const BatchNormOptions training{true, 0.1, 1e-5}, frozen{false, 0.1, 1e-5};
  const NormShape shape = batch_norm_shape({2, 3, 4, 5}, {5}, {5}, {5}, {5}, training);
  check_equal(shape.rows, 24);
  check_equal(shape.channels, 5);
  check_equal(batch_norm_shape({0, 5}, {5}, {5}, {5}, {5}, frozen).rows, 0);
  check_equal(batch_norm_backward_shape({1, 5}, {1, 5}, {5}, {2, 5}, false).rows, 1);
  check_refusals({
      {[&] { batch_norm_shape({5}, {5}, {5}, {5}, {5}, frozen); },
       "batch_norm: x has at least 2 axes, not 1; x (N, ..., C) = (5,), gamma (C,) = (5,), beta (C,) = (5,), "
       "running_mean (C,) = (5,), running_var (C,) = (5,)"},
      {[&] { batch_norm_shape({2, 5}, {5}, {5}, {4}, {5}, frozen); },
       "batch_norm: running_mean has one number for each of the 5 channels; x (N, ..., C) = (2, 5), gamma (C,) = "
       "(5,), beta (C,) = (5,), running_mean (C,) = (4,), running_var (C,) = (5,)"},
      {[&] { batch_norm_shape({1, 1, 5}, {5}, {5}, {5}, {5}, training); },
       "batch_norm: training needs 2 or more values for each channel; x (N, ..., C) = (1, 1, 5), gamma (C,) = (5,), "
       "beta (C,) = (5,), running_mean (C,) = (5,), running_var (C,) = (5,)"},
      {[] { batch_norm_shape({2, 5}, {5}, {5}, {5}, {5}, {true, -0.5, 1e-5}); },
       "batch_norm: momentum is in [0, 1]; got -0.500000"},
      {[] { batch_norm_shape({2, 5}, {5}, {5}, {5}, {5}, {true, kNan, 1e-5}); },
       "batch_norm: momentum is in [0, 1]; got nan"},
      {[] { batch_norm_shape({2, 5}, {5}, {5}, {5}, {5}, {true, 0.1, 0}); },
       "batch_norm: eps is positive; got 0.000000"},
      {[] { batch_norm_backward_shape({2, 4}, {2, 5}, {5}, {2, 5}, true); },
       "batch_norm: dy has the shape of x; dy = (2, 4), x (N, ..., C) = (2, 5), saved (2, C) = (2, 5), gamma (C,) = "
       "(5,)"},
      {[] { batch_norm_backward_shape({2, 5}, {2, 5}, {1, 5}, {2, 5}, true); },
       "batch_norm: gamma has one number for each of the 5 channels; dy = (2, 5), x (N, ..., C) = (2, 5), saved (2, "
       "C) = (2, 5), gamma (C,) = (1, 5)"},
      {[] { batch_norm_backward_shape({2, 5}, {2, 5}, {5}, {5}, true); },
       "batch_norm: saved is the forward's, 2 numbers for each channel; dy = (2, 5), x (N, ..., C) = (2, 5), saved "
       "(2, C) = (5,), gamma (C,) = (5,)"},
      {[] { batch_norm_backward_shape({1, 5}, {1, 5}, {5}, {2, 5}, true); },
       "batch_norm: training needs 2 or more values for each channel; dy = (1, 5), x (N, ..., C) = (1, 5), saved (2, "
       "C) = (2, 5), gamma (C,) = (5,)"},
  });
}

TEST(layer_norm) {
  const NormShape shape = layer_norm_shape({2, 3, 4, 5}, {5}, {5}, 1e-5);
  check_equal(shape.rows, 24);
  check_equal(shape.channels, 5);
  check_equal(layer_norm_saved({2, 3, 4, 5}).str(), "(2, 2, 3, 4)");
  check_equal(layer_norm_saved({5}).str(), "(2,)");
  check_refusals({
      {[] { layer_norm_shape({}, {5}, {5}, 1e-5); },
       "layer_norm: x needs an axis of channels; x (..., C) = (), gamma (C,) = (5,), beta (C,) = (5,)"},
      {[] { layer_norm_shape({2, 0}, {0}, {0}, 1e-5); },
       "layer_norm: there are no channels; x (..., C) = (2, 0), gamma (C,) = (0,), beta (C,) = (0,)"},
      {[] { layer_norm_shape({2, 5}, {5}, {4}, 1e-5); },
       "layer_norm: beta has one number for each of the 5 channels; x (..., C) = (2, 5), gamma (C,) = (5,), beta (C,) "
       "= (4,)"},
      {[] { layer_norm_shape({2, 5}, {5}, {5}, kNan); }, "layer_norm: eps is positive; got nan"},
      {[] { layer_norm_backward_shape({2, 5, 1}, {2, 5}, {5}, {2, 2}); },
       "layer_norm: dy has the shape of x; dy = (2, 5, 1), x (..., C) = (2, 5), saved (2, ...) = (2, 2), gamma (C,) = "
       "(5,)"},
      {[] { layer_norm_backward_shape({2, 5}, {2, 5}, {4}, {2, 2}); },
       "layer_norm: gamma has one number for each of the 5 channels; dy = (2, 5), x (..., C) = (2, 5), saved (2, ...) "
       "= (2, 2), gamma (C,) = (4,)"},
      {[] { layer_norm_backward_shape({2, 5}, {2, 5}, {5}, {2, 5}); },
       "layer_norm: saved is the forward's, 2 numbers for each row; dy = (2, 5), x (..., C) = (2, 5), saved (2, ...) "
       "= (2, 5), gamma (C,) = (5,)"},
  });
}

// ---- recurrent and attention ----

TEST(recurrent) {
  const Shape x{9, 2, 3}, h{2, 5}, weight_x{3, 20}, weight_h{5, 20}, bias{20}, narrow{2, 4}, empty{0, 2, 3},
      no_units{2, 0};
  const Index lengths[] = {9, 10, -1, 0};
  const RecurrentArguments fine{
      .x = &x, .h0 = &h, .c0 = &h, .weight_x = &weight_x, .weight_h = &weight_h, .bias = &bias};
  const RecurrentShape shape = recurrent_shape("lstm", Cell::lstm, false, fine);
  CHECK(shape.steps == 9 && shape.batch == 2 && shape.inputs == 3 && shape.hidden == 5 && shape.gates() == 20);
  const auto with = [&](const Shape* RecurrentArguments::* argument, const Shape& value, bool step = false) {
    return [=, &value] {
      RecurrentArguments arguments = fine;
      arguments.*argument = &value;
      recurrent_shape(step ? "lstm_step" : "lstm", Cell::lstm, step, arguments);
    };
  };
  check_refusals({
      {with(&RecurrentArguments::x, h),
       "lstm: x has 3 axes, not 2; x (T, N, D) = (2, 5), h0 (N, H) = (2, 5), weight_x (D, G*H) = (3, 20), weight_h (H, "
       "G*H) = (5, 20)"},
      {with(&RecurrentArguments::x, x, true),
       "lstm_step: x has 2 axes, not 3; x (N, D) = (9, 2, 3), h (N, H) = (2, 5), weight_x (D, G*H) = (3, 20), weight_h "
       "(H, G*H) = (5, 20)"},
      {with(&RecurrentArguments::x, empty),
       "lstm: the sequence has no steps; x (T, N, D) = (0, 2, 3), h0 (N, H) = (2, 5), weight_x (D, G*H) = (3, 20), "
       "weight_h (H, G*H) = (5, 20)"},
      {with(&RecurrentArguments::h0, no_units),
       "lstm: the hidden size is 0; x (T, N, D) = (9, 2, 3), h0 (N, H) = (2, 0), weight_x (D, G*H) = (3, 20), weight_h "
       "(H, G*H) = (5, 20)"},
      {with(&RecurrentArguments::c0, narrow),
       "lstm: c0 has shape (2, 4), not (2, 5); x (T, N, D) = (9, 2, 3), h0 (N, H) = (2, 5), weight_x (D, G*H) = (3, "
       "20), weight_h (H, G*H) = (5, 20)"},
      {with(&RecurrentArguments::weight_x, weight_h),
       "lstm: weight_x has shape (5, 20), not (3, 20); x (T, N, D) = (9, 2, 3), h0 (N, H) = (2, 5), weight_x (D, G*H) "
       "= (5, 20), weight_h (H, G*H) = (5, 20)"},
      {with(&RecurrentArguments::saved_gates, x),
       "lstm: saved gates has shape (9, 2, 3), not (9, 2, 20); x (T, N, D) = (9, 2, 3), h0 (N, H) = (2, 5), weight_x "
       "(D, G*H) = (3, 20), weight_h (H, G*H) = (5, 20)"},
      {[&] { recurrent_lengths("lstm", shape, {3}, {lengths, true, 3}); },
       "lstm: lengths has one number for each of the 2 rows; lengths (N,) = (3,)"},
      {[&] { recurrent_lengths("lstm", shape, {2}, {lengths, true, 2}); },
       "lstm: lengths is 10 at (1,), outside [0, 10); lengths (N,) = (2,)"},
      {[&] { recurrent_lengths("lstm", shape, {2}, {lengths + 2, true, 2}); },
       "lstm: lengths is -1 at (0,), outside [0, 10); lengths (N,) = (2,)"},
  });
}

TEST(attention) {
  const Shape q{2, 3, 5, 8}, k{2, 3, 7, 8}, v{2, 3, 7, 4};
  const AttentionShape shape = attention_shape(q, k, v, true);
  check_equal(shape.y.str(), "(2, 3, 5, 4)");
  check_equal(shape.weights().str(), "(2, 3, 5, 7)");
  check_equal(attention_scale(shape, {}), 1 / std::sqrt(8.0));
  const std::int32_t lengths[] = {7, 8};
  Index stride[4];
  check_refusals({
      {[&] { attention_shape({3, 5, 8}, k, v, false); },
       "attention: q, k and v have 4 axes; q (N, heads, Tq, d) = (3, 5, 8), k (N, heads, Tk, d) = (2, 3, 7, 8), v (N, "
       "heads, Tk, dv) = (2, 3, 7, 4)"},
      {[&] { attention_shape({2, 4, 5, 8}, k, v, false); },
       "attention: q, k and v share N and heads; q (N, heads, Tq, d) = (2, 4, 5, 8), k (N, heads, Tk, d) = (2, 3, 7, "
       "8), v (N, heads, Tk, dv) = (2, 3, 7, 4)"},
      {[&] { attention_shape(q, {2, 3, 7, 6}, v, false); },
       "attention: q and k share the head size d; q (N, heads, Tq, d) = (2, 3, 5, 8), k (N, heads, Tk, d) = (2, 3, 7, "
       "6), v (N, heads, Tk, dv) = (2, 3, 7, 4)"},
      {[&] { attention_shape(q, k, {2, 3, 6, 4}, false); },
       "attention: k and v share the number of keys Tk; q (N, heads, Tq, d) = (2, 3, 5, 8), k (N, heads, Tk, d) = (2, "
       "3, 7, 8), v (N, heads, Tk, dv) = (2, 3, 6, 4)"},
      {[&] { attention_mask_strides(shape, {4, 7}, stride); },
       "attention: the mask does not broadcast to (N, heads, Tq, Tk) = (2, 3, 5, 7); mask = (4, 7)"},
      {[&] { attention_mask_strides(shape, {1, 2, 3, 5, 7}, stride); },
       "attention: the mask does not broadcast to (N, heads, Tq, Tk) = (2, 3, 5, 7); mask = (1, 2, 3, 5, 7)"},
      {[&] { attention_key_lengths(shape, {3}, {lengths, false, 3}); },
       "attention: key_lengths has one number for each of the 2 batch entries; key_lengths (N,) = (3,)"},
      {[&] { attention_key_lengths(shape, {2}, {lengths, false, 2}); },
       "attention: key_lengths is 8 at (1,), outside [0, 8); key_lengths (N,) = (2,)"},
      {[&] { attention_scale(shape, kNan); }, "attention: scale is a finite number, not nan"},
  });
  attention_mask_strides(shape, {3, 1, 7}, stride);
  CHECK(stride[0] == 0 && stride[1] == 7 && stride[2] == 0 && stride[3] == 1);
}

// ---- optimizer ----

TEST(optimizer) {
  const Named params{"params", {3, 4}}, grads{"grads", {3, 4}}, mean{"mean", {12}};
  const Named fine[] = {params, grads}, wrong[] = {params, grads, mean};
  check_equal(update_shape("adam_update_", fine), 12);
  check(Sgd{0.1, 0.9, true, 0, 1}, true);
  check(Adam{0.1, 1, 0, 0, 0, 0, false, 1});
  check_refusals({
      {[&] { update_shape("adam_update_", wrong); },
       "adam_update_: mean has the shape of params; params = (3, 4), grads = (3, 4), mean = (12,)"},
      {[] { check(Sgd{kNan, 0, false, 0, 1}, false); }, "sgd_update_: lr is a finite number; got nan"},
      {[] { check(Sgd{0.1, 0.9, false, 0, 1}, false); }, "sgd_update_: momentum needs a momentum_buffer"},
      {[] { check(Sgd{0.1, 0, true, 0, 1}, true); }, "sgd_update_: nesterov needs a momentum that is not 0"},
      {[] { check(RmsProp{0.1, 1, 1e-8, 0, 1}); }, "rmsprop_update_: decay is in [0, 1); got 1.000000"},
      {[] { check(RmsProp{0.1, 0.9, -1, 0, 1}); }, "rmsprop_update_: eps is not negative; got -1.000000"},
      {[] { check(Adam{0.1, 0, 0.9, 0.999, 1e-8, 0, false, 1}); },
       "adam_update_: step is 1 at the first update; got 0"},
      {[] { check(Adam{0.1, 1, 0.9, 1.5, 1e-8, 0, false, 1}); }, "adam_update_: beta2 is in [0, 1); got 1.500000"},
  });
}

}  // namespace
}  // namespace lec7::test
