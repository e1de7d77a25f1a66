#include "window.h"

#include "parse.h"

namespace lec7::bindings {
namespace {

void expect_count(std::string_view op, const char* argument, const py::tuple& values, int count) {
  if (static_cast<int>(values.size()) != count) {
    fail(op, std::string(argument) + " has " + std::to_string(values.size()) + " values for " + std::to_string(count) +
                 (count == 1 ? " spatial axis" : " spatial axes"));
  }
}

}  // namespace

PerAxis parse_per_axis(std::string_view op, const char* argument, py::handle value, int spatial, Index absent) {
  PerAxis result;
  result.fill(absent);
  const int first = kSpatialAxes - spatial;
  if (is_integer(value)) {
    std::fill(result.begin() + first, result.end(), parse_integer(op, argument, value));
    return result;
  }
  const std::string wanted = "an integer or one for each of " + std::to_string(spatial) + " axes";
  const py::tuple values = items(op, argument, value, wanted);
  expect_count(op, argument, values, spatial);
  for (int axis = 0; axis < spatial; ++axis) {
    if (!is_integer(values[axis])) refuse(op, argument, value, wanted);
    result[first + axis] = parse_integer(op, argument, values[axis]);
  }
  return result;
}

Padding parse_padding(std::string_view op, py::handle value, int spatial) {
  constexpr const char* argument = "padding";
  if (PyUnicode_Check(value.ptr())) {
    const std::string text = py::str(value);
    if (text == "valid") return {};
    if (text == "same") return {PaddingRule::same, {}, {}};
    if (text == "same_lower") return {PaddingRule::same_lower, {}, {}};
    fail(op, "padding is numbers, \"valid\", \"same\" or \"same_lower\"; got \"" + text + "\"");
  }
  Padding padding;
  if (is_integer(value)) {
    padding.before = padding.after = parse_per_axis(op, argument, value, spatial, 0);
    return padding;
  }
  const std::string wanted =
      "an integer, one for each axis, a (before, after) pair for each axis, \"valid\", \"same\" or \"same_lower\"";
  const py::tuple values = items(op, argument, value, wanted);
  expect_count(op, argument, values, spatial);
  for (int axis = 0; axis < spatial; ++axis) {
    const py::handle item = values[axis];
    const int at = kSpatialAxes - spatial + axis;
    if (is_integer(item)) {
      padding.before[at] = padding.after[at] = parse_integer(op, argument, item);
      continue;
    }
    const py::tuple pair = items(op, argument, item, wanted);
    if (pair.size() != 2 || !is_integer(pair[0]) || !is_integer(pair[1])) refuse(op, argument, value, wanted);
    padding.before[at] = parse_integer(op, argument, pair[0]);
    padding.after[at] = parse_integer(op, argument, pair[1]);
  }
  return padding;
}

Shape parse_shape(std::string_view op, const char* argument, py::handle value) {
  const std::string wanted = "a sequence of integers";
  const py::tuple values = items(op, argument, value, wanted);
  if (values.size() > Shape::kMaxRank) {
    fail(op, std::string(argument) + " has " + std::to_string(values.size()) + " axes; at most 8 are possible");
  }
  Shape shape;
  for (const py::handle item : values) {
    if (!is_integer(item)) refuse(op, argument, value, wanted);
    shape.append(parse_integer(op, argument, item));
  }
  for (const Index dim : shape) {
    if (dim < 0) fail(op, std::string(argument) + " has a negative axis", {{argument, shape}});
  }
  checked_size(op, shape);
  return shape;
}

}  // namespace lec7::bindings
