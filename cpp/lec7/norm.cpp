#include "lec7/norm.h"

namespace lec7 {
namespace {

constexpr std::string_view kResponse = "local_response_norm", kBatch = "batch_norm", kLayer = "layer_norm";

NormShape image_rows(std::string_view op, std::span<const Named> arrays, const Shape& x) {
  if (x.rank() < 2) fail(op, "x has at least 2 axes, not " + std::to_string(x.rank()), arrays);
  return {x.size(0, x.rank() - 1), x.back()};
}

// Each of the arrays from `first` on has one number for each channel.
void check_vectors(std::string_view op, std::span<const Named> arrays, std::size_t first, Index channels) {
  for (std::size_t i = first; i < arrays.size(); ++i) {
    if (arrays[i].shape == Shape{channels}) continue;
    const std::string name(arrays[i].name.substr(0, arrays[i].name.find(' ')));
    fail(op, name + " has one number for each of the " + std::to_string(channels) + " channels", arrays);
  }
}

void check_size(Index size, std::span<const Named> arrays) {
  if (size < 1 || size % 2 == 0) fail(kResponse, "size is odd and positive; got " + std::to_string(size), arrays);
}

void check_batch(bool training, Index rows, std::span<const Named> arrays) {
  if (training && rows < 2) fail(kBatch, "training needs 2 or more values for each channel", arrays);
}

void check_eps(std::string_view op, double eps) {
  if (!(eps > 0)) fail(op, "eps is positive; got " + std::to_string(eps));
}

NormShape layer_rows(const Shape& x, std::span<const Named> arrays) {
  if (x.rank() < 1) fail(kLayer, "x needs an axis of channels", arrays);
  if (x.back() < 1) fail(kLayer, "there are no channels", arrays);
  return {x.size(0, x.rank() - 1), x.back()};
}

}  // namespace

LocalResponseNorm local_response_norm_shape(const Shape& x, Index size, double alpha, double beta, double k) {
  const Named arrays[] = {{"x (N, ..., C)", x}};
  const NormShape shape = image_rows(kResponse, arrays, x);
  check_size(size, arrays);
  return {shape.rows, shape.channels, size, alpha, beta, k};
}

LocalResponseNorm local_response_norm_backward_shape(const Shape& dy, const Shape& x, const Shape& saved, Index size,
                                                     double alpha, double beta) {
  const Named arrays[] = {{"dy", dy}, {"x (N, ..., C)", x}, {"saved", saved}};
  const NormShape shape = image_rows(kResponse, arrays, x);
  check_size(size, arrays);
  if (dy != x) fail(kResponse, "dy has the shape of x", arrays);
  if (saved != x) fail(kResponse, "saved has the shape of x", arrays);
  return {shape.rows, shape.channels, size, alpha, beta, 0};
}

NormShape batch_norm_shape(const Shape& x, const Shape& gamma, const Shape& beta, const Shape& running_mean,
                           const Shape& running_var, const BatchNormOptions& options) {
  const Named arrays[] = {{"x (N, ..., C)", x},
                          {"gamma (C,)", gamma},
                          {"beta (C,)", beta},
                          {"running_mean (C,)", running_mean},
                          {"running_var (C,)", running_var}};
  const NormShape shape = image_rows(kBatch, arrays, x);
  check_vectors(kBatch, arrays, 1, shape.channels);
  check_batch(options.training, shape.rows, arrays);
  if (!(options.momentum >= 0 && options.momentum <= 1)) {
    fail(kBatch, "momentum is in [0, 1]; got " + std::to_string(options.momentum));
  }
  check_eps(kBatch, options.eps);
  return shape;
}

NormShape batch_norm_backward_shape(const Shape& dy, const Shape& x, const Shape& gamma, const Shape& saved,
                                    bool training) {
  const Named arrays[] = {{"dy", dy}, {"x (N, ..., C)", x}, {"saved (2, C)", saved}, {"gamma (C,)", gamma}};
  const NormShape shape = image_rows(kBatch, arrays, x);
  if (dy != x) fail(kBatch, "dy has the shape of x", arrays);
  check_vectors(kBatch, arrays, 3, shape.channels);
  if (saved != Shape{2, shape.channels}) fail(kBatch, "saved is the forward's, 2 numbers for each channel", arrays);
  check_batch(training, shape.rows, arrays);
  return shape;
}

NormShape layer_norm_shape(const Shape& x, const Shape& gamma, const Shape& beta, double eps) {
  const Named arrays[] = {{"x (..., C)", x}, {"gamma (C,)", gamma}, {"beta (C,)", beta}};
  const NormShape shape = layer_rows(x, arrays);
  check_vectors(kLayer, arrays, 1, shape.channels);
  check_eps(kLayer, eps);
  return shape;
}

NormShape layer_norm_backward_shape(const Shape& dy, const Shape& x, const Shape& gamma, const Shape& saved) {
  const Named arrays[] = {{"dy", dy}, {"x (..., C)", x}, {"saved (2, ...)", saved}, {"gamma (C,)", gamma}};
  const NormShape shape = layer_rows(x, arrays);
  if (dy != x) fail(kLayer, "dy has the shape of x", arrays);
  check_vectors(kLayer, arrays, 3, shape.channels);
  if (saved != layer_norm_saved(x)) fail(kLayer, "saved is the forward's, 2 numbers for each row", arrays);
  return shape;
}

Shape layer_norm_saved(const Shape& x) {
  Shape saved{2};
  for (int axis = 0; axis + 1 < x.rank(); ++axis) saved.append(x[axis]);
  return saved;
}

}  // namespace lec7
