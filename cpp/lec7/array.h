// Shapes and the checks that every shape rule uses. No Python here.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

namespace lec7 {

using Index = std::int64_t;

// The dimensions of an array, in row-major order.
class Shape {
 public:
  static constexpr int kMaxRank = 8;

  Shape() = default;
  Shape(std::initializer_list<Index> dims) {
    for (Index d : dims) append(d);
  }

  int rank() const { return rank_; }
  Index operator[](int axis) const { return dims_[axis]; }
  Index& operator[](int axis) { return dims_[axis]; }
  const Index* begin() const { return dims_; }
  const Index* end() const { return dims_ + rank_; }
  void append(Index dim) { dims_[rank_++] = dim; }
  Index back() const { return dims_[rank_ - 1]; }

  // The product of the dimensions [first, last). Arrays that exist cannot overflow it; shapes made
  // by a rule go through `checked_size` first.
  Index size(int first, int last) const {
    Index n = 1;
    for (int axis = first; axis < last; ++axis) n *= dims_[axis];
    return n;
  }
  Index size() const { return size(0, rank_); }

  bool operator==(const Shape& other) const;
  std::string str() const;  // "(8, 32, 32, 4)"

 private:
  int rank_ = 0;
  Index dims_[kMaxRank] = {};
};

// An array's role in an error message: its name with axes, "x (N, H, W, C)", and its shape.
struct Named {
  std::string_view name;
  Shape shape;
};

// Throws std::invalid_argument "<op>: <rule>; x (N, D) = (8, 3), ...".
[[noreturn]] void fail(std::string_view op, const std::string& rule, std::initializer_list<Named> arrays);
[[noreturn]] void fail(std::string_view op, const std::string& rule, std::span<const Named> arrays = {});

// The same for one value of an array: "embedding: tokens is 70 at (3, 1), outside [0, 65); tokens (...) = (5, 2)".
[[noreturn]] void fail_at(std::string_view op, const Named& array, Index position, const std::string& value,
                          const std::string& what);

// a * b, or an error that names the op where the product leaves 63 bits.
Index checked_multiply(std::string_view op, Index a, Index b);

// The number of elements of a shape that a rule computed; refuses what no memory can hold.
Index checked_size(std::string_view op, const Shape& shape);

}  // namespace lec7
