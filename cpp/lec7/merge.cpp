#include "lec7/merge.h"

namespace lec7 {
namespace {

constexpr std::string_view kConcat = "concat";

// Named as Python writes them, "arrays[1]".
[[noreturn]] void fail_arrays(const std::string& rule, std::span<const Shape> arrays) {
  std::vector<std::string> names;
  std::vector<Named> named;
  for (std::size_t i = 0; i < arrays.size(); ++i) names.push_back("arrays[" + std::to_string(i) + "]");
  for (std::size_t i = 0; i < arrays.size(); ++i) named.push_back({names[i], arrays[i]});
  fail(kConcat, rule, named);
}

}  // namespace

ConcatShape concat_shape(std::span<const Shape> arrays) {
  if (arrays.empty()) fail(kConcat, "there is at least one array");
  const Shape& first = arrays.front();
  ConcatShape shape{0, {}, first};
  Index width = 0;
  for (const Shape& array : arrays) {
    if (array.rank() == 0) fail_arrays("each array has an axis of channels", arrays);
    bool alike = array.rank() == first.rank();
    for (int axis = 0; alike && axis < first.rank() - 1; ++axis) alike = array[axis] == first[axis];
    if (!alike) fail_arrays("the arrays agree in all axes but the last", arrays);
    if (__builtin_add_overflow(width, array.back(), &width)) fail_arrays("too many channels", arrays);
    shape.channels.push_back(array.back());
  }
  shape.y[first.rank() - 1] = width;
  checked_size(kConcat, shape.y);
  shape.rows = width == 0 ? 0 : first.size(0, first.rank() - 1);
  return shape;
}

ConcatShape concat_backward_shape(const Shape& dy, std::span<const Index> channels) {
  if (channels.empty())
    fail(kConcat, "channels has one number for each array, and there is at least one", {{"dy", dy}});
  if (dy.rank() == 0) fail(kConcat, "dy has an axis of channels", {{"dy", dy}});
  Index left = dy.back();
  for (const Index c : channels) left = c < 0 || c > left ? -1 : left - c;  // -1 stays: no c is as small
  if (left != 0) {
    std::string listed;
    for (const Index c : channels) listed += (listed.empty() ? "" : ", ") + std::to_string(c);
    fail(kConcat,
         "channels are not negative and add up to the " + std::to_string(dy.back()) + " of dy; got (" + listed + ")",
         {{"dy (N, ..., C)", dy}});
  }
  return {dy.back() == 0 ? 0 : dy.size(0, dy.rank() - 1), {channels.begin(), channels.end()}, dy};
}

void check_add(const Shape& y, const Shape& x, bool overlap) {
  if (y != x) fail("add_", "y and x have the same shape", {{"y", y}, {"x", x}});
  if (overlap) fail("add_", "x overlaps y in memory without being y", {{"y", y}, {"x", x}});
}

}  // namespace lec7
