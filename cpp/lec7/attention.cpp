#include "lec7/attention.h"

#include <cmath>

namespace lec7 {

AttentionShape attention_shape(const Shape& q, const Shape& k, const Shape& v, bool weights) {
  const Named arrays[] = {{"q (N, heads, Tq, d)", q}, {"k (N, heads, Tk, d)", k}, {"v (N, heads, Tk, dv)", v}};
  if (q.rank() != 4 || k.rank() != 4 || v.rank() != 4) fail("attention", "q, k and v have 4 axes", arrays);
  if (k[0] != q[0] || v[0] != q[0] || k[1] != q[1] || v[1] != q[1]) {
    fail("attention", "q, k and v share N and heads", arrays);
  }
  if (k[3] != q[3]) fail("attention", "q and k share the head size d", arrays);
  if (v[2] != k[2]) fail("attention", "k and v share the number of keys Tk", arrays);
  if (q[3] < 1 || v[3] < 1) fail("attention", "the head sizes d and dv are at least 1", arrays);
  const AttentionShape shape{
      q[0], q[1], q[2], k[2], q[3], v[3], Shape{q[0], q[1], q[2], v[3]}, Shape{q[0], q[1], q[2]}};
  checked_size("attention", shape.y);
  if (weights) checked_size("attention", shape.weights());
  return shape;
}

AttentionShape attention_backward_shape(const Shape& dy, const Shape& q, const Shape& k, const Shape& v, const Shape& y,
                                        const Shape& lse) {
  const AttentionShape shape = attention_shape(q, k, v, false);
  const Named arrays[] = {{"dy (N, heads, Tq, dv)", dy}, {"y (N, heads, Tq, dv)", y}, {"lse (N, heads, Tq)", lse},
                          {"q (N, heads, Tq, d)", q},    {"k (N, heads, Tk, d)", k},  {"v (N, heads, Tk, dv)", v}};
  if (dy != shape.y) fail("attention", "dy has the shape of the output, " + shape.y.str(), arrays);
  if (y != shape.y) fail("attention", "y has the shape of the output, " + shape.y.str(), arrays);
  if (lse != shape.lse) fail("attention", "lse has one number a query, " + shape.lse.str(), arrays);
  return shape;
}

void attention_mask_strides(const AttentionShape& shape, const Shape& mask, Index (&stride)[4]) {
  const Shape scores = shape.weights();
  bool fits = mask.rank() <= 4;
  Index step = 1;
  for (int axis = 3; axis >= 0; --axis) {
    const int own = axis - (4 - mask.rank());
    const Index dim = fits && own >= 0 ? mask[own] : 1;
    fits = fits && (dim == 1 || dim == scores[axis]);
    stride[axis] = dim == 1 ? 0 : step;
    step *= dim;
  }
  if (!fits) {
    fail("attention", "the mask does not broadcast to (N, heads, Tq, Tk) = " + scores.str(), {{{"mask", mask}}});
  }
}

std::vector<Index> attention_key_lengths(const AttentionShape& shape, const Shape& lengths, const Indices& values) {
  const Named named{"key_lengths (N,)", lengths};
  if (lengths != Shape{shape.n}) {
    fail("attention", "key_lengths has one number for each of the " + std::to_string(shape.n) + " batch entries",
         {named});
  }
  return checked_on_host("attention", named, values, 0, shape.keys + 1);
}

double attention_scale(const AttentionShape& shape, std::optional<double> scale) {
  if (!scale) return 1 / std::sqrt(static_cast<double>(shape.d));
  if (!std::isfinite(*scale)) fail("attention", "scale is a finite number, not " + std::to_string(*scale));
  return *scale;
}

}  // namespace lec7
