#include "lec7/array.h"

#include <algorithm>
#include <stdexcept>

namespace lec7 {

bool Shape::operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

std::string Shape::str() const {
  std::string text = "(";
  for (int axis = 0; axis < rank_; ++axis) {
    if (axis > 0) text += ", ";
    text += std::to_string(dims_[axis]);
  }
  if (rank_ == 1) text += ",";
  return text + ")";
}

void fail(std::string_view op, const std::string& rule, std::span<const Named> arrays) {
  std::string text = std::string(op) + ": " + rule;
  const char* separator = "; ";
  for (const Named& array : arrays) {
    text += separator + std::string(array.name) + " = " + array.shape.str();
    separator = ", ";
  }
  throw std::invalid_argument(text);
}

void fail(std::string_view op, const std::string& rule, std::initializer_list<Named> arrays) {
  fail(op, rule, std::span<const Named>(arrays.begin(), arrays.size()));
}

void fail_at(std::string_view op, const Named& array, Index position, const std::string& value,
             const std::string& what) {
  Shape at = array.shape;
  for (int axis = array.shape.rank() - 1; axis >= 0; --axis) {
    at[axis] = position % array.shape[axis];
    position /= array.shape[axis];
  }
  const std::string name(array.name.substr(0, array.name.find(' ')));
  fail(op, name + " is " + value + " at " + at.str() + ", " + what, {array});
}

Index checked_multiply(std::string_view op, Index a, Index b) {
  Index product;
  if (__builtin_mul_overflow(a, b, &product)) {
    fail(op, "sizes overflow: " + std::to_string(a) + " x " + std::to_string(b));
  }
  return product;
}

Index checked_size(std::string_view op, const Shape& shape) {
  // An empty axis makes the array empty whatever the others are, so it is looked for first.
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  Index n = 1;
  for (Index dim : shape) n = checked_multiply(op, n, dim);
  constexpr Index kLargest = Index{1} << 47;  // elements: more than an x86-64 address space of bytes
  if (n > kLargest) fail(op, "the result would have " + std::to_string(n) + " elements", {{"shape", shape}});
  return n;
}

}  // namespace lec7
