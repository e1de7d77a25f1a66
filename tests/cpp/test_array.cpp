// Shapes, messages, and arithmetic that must not overflow.
#include "lec7/array.h"

#include <stdexcept>

#include "check.h"

namespace lec7::test {
namespace {

using Refused = std::invalid_argument;

TEST(shapes_print_as_tuples) {
  check_equal(Shape{}.str(), "()");
  check_equal(Shape{3}.str(), "(3,)");
  check_equal(Shape{8, 32, 0}.str(), "(8, 32, 0)");
}

TEST(shapes_compare_by_rank_and_dimensions) {
  CHECK((Shape{2, 3} == Shape{2, 3}));
  CHECK((Shape{2, 3} != Shape{3, 2}));
  CHECK((Shape{2} != Shape{2, 1}));
  CHECK(Shape{} == Shape());
}

TEST(sizes_are_products) {
  check_equal(Shape{}.size(), 1);
  check_equal(Shape{4, 5, 6}.size(), 120);
  check_equal((Shape{4, 5, 6}.size(1, 3)), 30);
  check_equal((Shape{4, 0, 6}.size()), 0);
  check_equal((Shape{1, 2, 3, 4, 5, 6, 7, 8}.back()), 8);
}

TEST(failures_name_op_rule_and_shapes) {
  const Named x{"x (N, D)", {8, 3}}, weight{"weight (I, O)", {4, 2}};
  check_equal(thrown<Refused>([&] { fail("linear", "sizes differ", {x, weight}); }),
              "linear: sizes differ; x (N, D) = (8, 3), weight (I, O) = (4, 2)");
  check_equal(thrown<Refused>([&] { fail("linear", "no"); }), "linear: no");
}

constexpr Index kMost = 0x7fffffffffffffff;
constexpr Index kElements = Index{1} << 47;

TEST(products_that_leave_63_bits_are_refused) {
  struct Case {
    Index a, b;
    const char* message;
  };
  for (const auto& [a, b, message] :
       {Case{kMost, 1, "nothing was thrown"}, Case{Index{1} << 31, Index{1} << 31, "nothing was thrown"},
        Case{Index{1} << 32, Index{1} << 31, "op: sizes overflow: 4294967296 x 2147483648"},
        Case{kMost, 2, "op: sizes overflow: 9223372036854775807 x 2"}}) {
    check_equal(thrown<Refused>([&] { checked_multiply("op", a, b); }), message);
  }
  check_equal(checked_multiply("op", Index{3} << 40, 5), Index{15} << 40);
}

TEST(results_that_no_memory_holds_are_refused) {
  check_equal(checked_size("op", {kElements}), kElements);
  check_equal(checked_size("op", {kMost, kMost, 0}), 0);
  check_equal(checked_size("op", {}), 1);
  check_equal(thrown<Refused>([] { checked_size("op", {2, kElements}); }),
              "op: the result would have 281474976710656 elements; shape = (2, 140737488355328)");
  check_equal(thrown<Refused>([] { checked_size("op", {kMost, 3}); }), "op: sizes overflow: 9223372036854775807 x 3");
}

}  // namespace
}  // namespace lec7::test
