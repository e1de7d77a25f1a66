// Floats of 16 bits, as arrays of the CUDA backend store them: what is computed with them is computed in float32
// (cuda/half.h converts).
#pragma once

#include <cstdint>
#include <type_traits>

namespace lec7 {

// IEEE 754's binary16: 5 bits of exponent, 10 of fraction; the largest is 65504.
struct float16 {
  std::uint16_t bits;
};

// The upper half of a float32: 8 bits of exponent, 7 of fraction.
struct bfloat16 {
  std::uint16_t bits;
};

template <class T>
inline constexpr bool is_half = std::is_same_v<T, float16> || std::is_same_v<T, bfloat16>;

// The type of sums and statistics of numbers that are stored as T.
template <class T>
using Accumulator = std::conditional_t<is_half<T>, float, T>;

}  // namespace lec7
