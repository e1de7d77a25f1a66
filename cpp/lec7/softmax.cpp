#include "lec7/softmax.h"

#include <cmath>

namespace lec7 {

SoftmaxShape softmax_shape(std::string_view op, const Shape& x) {
  if (x.rank() < 1) fail(op, "x needs an axis of classes", {{"x (..., K)", x}});
  if (x.back() < 1) fail(op, "there are no classes", {{"x (..., K)", x}});
  return {x.size(0, x.rank() - 1), x.back()};
}

SoftmaxShape softmax_backward_shape(std::string_view op, const Shape& dy, const Shape& y) {
  if (dy != y) fail(op, "dy has the shape of y", {{"dy (..., K)", dy}, {"y (..., K)", y}});
  return softmax_shape(op, y);
}

Reduction parse_reduction(std::string_view op, std::string_view text) {
  if (text == "mean") return Reduction::mean;
  if (text == "sum") return Reduction::sum;
  if (text == "none") return Reduction::none;
  fail(op, "reduction is \"mean\", \"sum\" or \"none\"; got \"" + std::string(text) + "\"");
}

void check_loss_gradient(std::string_view op, Reduction reduction, const Shape& dy, const Shape& terms) {
  const Shape loss = reduction == Reduction::none ? terms : Shape{};
  if (dy != loss) fail(op, "dy has the shape of the loss, " + loss.str(), {{"dy", dy}});
}

CrossEntropy cross_entropy_shape(const Shape& logits, const Shape& labels, const Indices& label_values,
                                 const Shape* class_weight, std::optional<Index> ignore_index, double label_smoothing,
                                 Reduction reduction) {
  constexpr std::string_view op = "softmax_cross_entropy";
  const Named named[] = {{"logits (..., K)", logits},
                         {"labels (...)", labels},
                         {"class_weight (K,)", class_weight ? *class_weight : Shape{}}};
  const std::span<const Named> arrays(named, class_weight == nullptr ? 2 : 3);
  if (logits.rank() < 1) fail(op, "logits need an axis of classes", arrays);
  if (logits.back() < 1) fail(op, "there are no classes", arrays);
  Shape rows;
  for (int axis = 0; axis + 1 < logits.rank(); ++axis) rows.append(logits[axis]);
  if (labels != rows) fail(op, "labels are one for each row of logits, " + rows.str(), arrays);
  if (class_weight != nullptr && *class_weight != Shape{logits.back()}) {
    fail(op, "class_weight has one number for each of the " + std::to_string(logits.back()) + " classes", arrays);
  }
  if (!(label_smoothing >= 0 && label_smoothing <= 1)) {
    fail(op, "label_smoothing is in [0, 1]; got " + std::to_string(label_smoothing));
  }
  check_indices(op, {"labels (...)", labels}, label_values, 0, logits.back(), ignore_index);
  return {rows.size(), logits.back(), label_smoothing, ignore_index, reduction};
}

Index pointwise_loss_shape(std::string_view op, const char* x_name, const Shape& x, const Shape& targets) {
  if (x != targets) {
    fail(op, std::string(x_name) + " and targets have the same shape", {{x_name, x}, {"targets", targets}});
  }
  return x.size();
}

}  // namespace lec7
