// Values from outside that are checked before a kernel uses them: integers that index something (labels, tokens) or
// count (lengths), probabilities.
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
};

// Throws std::invalid_argument unless every index is in [begin, end) or is the ignored one. The message has the value
// and its position in the array: "embedding: tokens is 70 at (3, 1), outside [0, 65); tokens (...) = (5, 2)".
void check_indices(std::string_view op, const Named& array, const Indices& indices, Index begin, Index end,
                   std::optional<Index> ignored = {});

// The indices, which the host can read whatever the backend (lengths), once they are checked like that.
std::vector<Index> checked_on_host(std::string_view op, const Named& array, const Indices& indices, Index begin,
                                   Index end);

// The check of numbers: each is in [0, 1].
template <class T>
void check_probabilities(std::string_view op, const Named& array, const T* values);

}  // namespace lec7

LEC7_KERNELS(
    // The position of the first index outside [begin, end) that is not the ignored one, or -1.
    Index first_outside(const Indices& indices, Index begin, Index end, const Index* ignored);

    // The position of the first number that is not in [0, 1], or -1.
    template <class T> Index first_improbable(Index n, const T* values);)
