// Integers from outside that index something: labels, tokens, or count: lengths. They are checked before a kernel reads
// through them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "lec7/array.h"
#include "lec7/isa.h"

namespace lec7 {

struct Indices {
  const void* data;
  bool wide;  // int64, else int32
  Index count;

  Index operator[](Index i) const {
    return wide ? static_cast<const std::int64_t*>(data)[i] : static_cast<const std::int32_t*>(data)[i];
  }
  std::vector<Index> copy() const;
};

// Throws std::invalid_argument unless every index is in [begin, end) or is the ignored one. The message has the value
// and its position in the array: "embedding: tokens is 70 at (3, 1), outside [0, 65); tokens (...) = (5, 2)".
void check_indices(std::string_view op, const Named& array, const Indices& indices, Index begin, Index end,
                   std::optional<Index> ignored = {});

// The same message for a position that a kernel found; `what` is the rule that the value breaks.
[[noreturn]] void fail_at(std::string_view op, const Named& array, Index position, const std::string& value,
                          const std::string& what);

}  // namespace lec7

LEC7_KERNELS(
    // The position of the first index outside [begin, end) that is not the ignored one, or -1.
    Index first_outside(const Indices& indices, Index begin, Index end, const Index* ignored);)
