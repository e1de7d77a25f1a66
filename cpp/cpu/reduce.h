// Sums and maxima over a row, and sums of many numbers in float64.
#pragma once

#include "simd.h"

namespace lec7::cpu::LEC7_ISA {

namespace detail {
template <class T>
struct LaneNumbers {
  Bits<T> number[W<T>];
  constexpr LaneNumbers() : number() {
    for (int i = 0; i < W<T>; ++i) number[i] = i;
  }
};
template <class T>
inline constexpr LaneNumbers<T> kLaneNumbers;
}  // namespace detail

// v in the first n lanes, `other` in the rest; n as for_lanes gives it.
template <class T, class N>
LEC7_INLINE Vec<T> first_lanes(Vec<T> v, N n, T other) {
  if constexpr (std::is_same_v<N, std::integral_constant<Index, W<T>>>) return v;
  else return load(detail::kLaneNumbers<T>.number) < static_cast<Bits<T>>(n) ? v : broadcast(other);
}

// Calls step(accumulator, i, n) over [0, size), with four accumulators in turn to hide the latency of an addition.
template <class T, class Sum, class Step>
LEC7_INLINE void for_lanes_of_four(Sum (&sums)[4], Index size, Step&& step) {
  constexpr auto all = std::integral_constant<Index, W<T>>{};
  Index i = 0;
  for (; i + 4 * W<T> <= size; i += 4 * W<T>) {
    LEC7_UNROLL
    for (int j = 0; j < 4; ++j) step(sums[j], i + j * W<T>, all);
  }
  for (; i + W<T> <= size; i += W<T>) step(sums[0], i, all);
  if (i < size) step(sums[1], i, size - i);
}

// Reduces the lanes of v in pairs, in registers: combine(v, v with its halves swapped), then quarters, ...
template <class T, class Combine>
LEC7_INLINE T reduce_lanes(Vec<T> v, Combine&& combine) {
  const auto step = [&]<int distance, int... I>(std::integral_constant<int, distance>, std::integer_sequence<int, I...>)
                        LEC7_LAMBDA_INLINE { v = combine(v, __builtin_shufflevector(v, v, (I ^ distance)...)); };
  constexpr auto lanes = std::make_integer_sequence<int, W<T>>{};
  if constexpr (W<T> >= 16) step(std::integral_constant<int, 8>{}, lanes);
  if constexpr (W<T> >= 8) step(std::integral_constant<int, 4>{}, lanes);
  if constexpr (W<T> >= 4) step(std::integral_constant<int, 2>{}, lanes);
  step(std::integral_constant<int, 1>{}, lanes);
  return v[0];
}

// The sum of the lanes of four vectors.
template <class T>
LEC7_INLINE T reduce_four(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d) {
  return reduce_lanes<T>((a + b) + (c + d), [](Vec<T> v, Vec<T> w) LEC7_LAMBDA_INLINE { return v + w; });
}

// The largest of a row. Where the row holds NaN: NaN or the largest of some of the others.
template <class T>
LEC7_INLINE T row_max(const T* x, Index size) {
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  Vec<T> most[4] = {broadcast(lowest), broadcast(lowest), broadcast(lowest), broadcast(lowest)};
  for_lanes_of_four<T>(most, size, [&](Vec<T>& m, Index i, auto n) LEC7_LAMBDA_INLINE {
    m = max<T>(m, first_lanes<T>(load_lanes(x + i, n), n, lowest));
  });
  return reduce_lanes<T>(max<T>(max<T>(most[0], most[1]), max<T>(most[2], most[3])),
                         [](Vec<T> a, Vec<T> b) LEC7_LAMBDA_INLINE { return max<T>(a, b); });
}

// The sum over [0, size) of term(i, n); lanes past the end do not count.
template <class T, class Term>
LEC7_INLINE T row_sum(Index size, Term&& term) {
  Vec<T> sums[4] = {};
  for_lanes_of_four<T>(
      sums, size, [&](Vec<T>& sum, Index i, auto n) LEC7_LAMBDA_INLINE { sum += first_lanes<T>(term(i, n), n, T{0}); });
  return reduce_four<T>(sums[0], sums[1], sums[2], sums[3]);
}

// Adds vectors up in float64: for sums of millions of numbers.
class Sum64 {
 public:
  LEC7_INLINE void add(Vec<double> v) { low_ += v; }
  LEC7_INLINE void add(Vec<float> v) {
    const auto [low, high] = widen(v);
    low_ += low;
    high_ += high;
  }
  LEC7_INLINE void add_square(Vec<double> v) { low_ += v * v; }
  LEC7_INLINE void add_square(Vec<float> v) {
    const auto [low, high] = widen(v);
    low_ += low * low;
    high_ += high * high;
  }
  double total() const { return reduce_sum<double>(low_ + high_); }

 private:
  struct Pair {
    Vec<double> low, high;
  };
  // GCC 12 makes __builtin_convertvector of vectors half as wide.
  static LEC7_INLINE Pair widen(Vec<float> v) {
#if defined(__AVX512F__)
    return {(Vec<double>)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v)),
            (Vec<double>)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1))};
#elif defined(__AVX2__)
    return {(Vec<double>)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v)),
            (Vec<double>)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1))};
#else
    typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
    Half half[2];
    std::memcpy(half, &v, sizeof v);
    return {__builtin_convertvector(half[0], Vec<double>), __builtin_convertvector(half[1], Vec<double>)};
#endif
  }

  Vec<double> low_{};
  Vec<double> high_{};
};

}  // namespace lec7::cpu::LEC7_ISA
