#include "lec7/linear.h"

namespace lec7 {

LinearShape linear_shape(const Shape& x, const Shape& weight, const Shape* bias) {
  const Named named[] = {{"x (..., I)", x}, {"weight (I, O)", weight}, {"bias (O,)", bias ? *bias : Shape{}}};
  const std::span<const Named> arrays(named, bias == nullptr ? 2 : 3);
  if (x.rank() < 1) fail("linear", "x needs an axis of features", arrays);
  if (weight.rank() != 2) fail("linear", "weight has 2 axes, not " + std::to_string(weight.rank()), arrays);
  if (x.back() != weight[0]) {
    fail("linear", "weight takes " + std::to_string(weight[0]) + " features, x has " + std::to_string(x.back()),
         arrays);
  }
  if (bias != nullptr && *bias != Shape{weight[1]}) {
    fail("linear", "bias has one number for each of the " + std::to_string(weight[1]) + " outputs", arrays);
  }
  LinearShape shape{x.size(0, x.rank() - 1), weight[0], weight[1], x};
  shape.y[x.rank() - 1] = weight[1];
  checked_size("linear", shape.y);
  return shape;
}

LinearShape linear_backward_shape(const Shape& dy, const Shape& x, const Shape& weight, const Shape* y,
                                  Activation activation) {
  const LinearShape shape = linear_shape(x, weight, nullptr);
  if (dy != shape.y) {
    fail("linear", "dy has the shape of y, " + shape.y.str(),
         {{"dy (..., O)", dy}, {"x (..., I)", x}, {"weight (I, O)", weight}});
  }
  if (activation != Activation::none && y == nullptr) fail("linear", "backward through an activation needs y");
  if (y != nullptr && *y != shape.y) {
    fail("linear", "y has the shape " + shape.y.str(),
         {{"y (..., O)", *y}, {"x (..., I)", x}, {"weight (I, O)", weight}});
  }
  return shape;
}

MatmulShape matmul_shape(const Shape& a, const Shape& b, bool transpose_a, bool transpose_b) {
  if (a.rank() != 2 || b.rank() != 2) fail("matmul", "a and b have 2 axes", {{"a", a}, {"b", b}});
  const MatmulShape shape{a[transpose_a ? 1 : 0], b[transpose_b ? 0 : 1], a[transpose_a ? 0 : 1]};
  if (shape.k != b[transpose_b ? 1 : 0]) {
    fail("matmul", "the inner sizes differ",
         {{transpose_a ? "a (K, M)" : "a (M, K)", a}, {transpose_b ? "b (N, K)" : "b (K, N)", b}});
  }
  checked_size("matmul", Shape{shape.m, shape.n});
  return shape;
}

}  // namespace lec7
