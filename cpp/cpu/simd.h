// Vectors of the ISA that this file is compiled for, and the functions that GCC's vector extensions lack.
//
// Vec<float> has 16, 8 or 4 lanes (AVX-512, AVX2, baseline), Vec<double> half of that. The width must be the
// ISA's own: wider vectors are legal C++ but are split through memory (1-10 % of the speed).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "lec7/array.h"

#define LEC7_INLINE inline __attribute__((always_inline))
#define LEC7_LAMBDA_INLINE __attribute__((always_inline))
#define LEC7_UNROLL _Pragma("GCC unroll 32")

namespace lec7::cpu::LEC7_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
inline constexpr int W = kVectorBytes / static_cast<int>(sizeof(T));

// The integer of T's size, and a vector of it: masks and bit tricks.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <class T>
LEC7_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
LEC7_INLINE void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

template <class T>
LEC7_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// Keeps a product from being fused into the sum that it goes into. In a * b + c * d the compiler may fuse either, and
// two copies of the same code need not choose alike: rounded(a * b) + c * d leaves it no choice.
template <class V>
LEC7_INLINE V rounded(V v) {
#if defined(__SSE2__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// The first n of W lanes (0 <= n <= W); the others read as zero and are not written.
template <class T>
LEC7_INLINE Vec<T> load_first(const T* p, Index n) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return (Vec<T>)_mm512_maskz_loadu_ps((1u << n) - 1, p);
  if constexpr (std::is_same_v<T, double>) return (Vec<T>)_mm512_maskz_loadu_pd((1u << n) - 1, p);
#endif
  Vec<T> v{};
  std::memcpy(&v, p, static_cast<std::size_t>(n) * sizeof(T));
  return v;
}

template <class T>
LEC7_INLINE void store_first(T* p, Vec<T> v, Index n) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(p, (1u << n) - 1, (__m512)v);
  if constexpr (std::is_same_v<T, double>) return _mm512_mask_storeu_pd(p, (1u << n) - 1, (__m512d)v);
#endif
  std::memcpy(p, &v, static_cast<std::size_t>(n) * sizeof(T));
}

// Runs body(i, n) over [0, size) in steps of W lanes: n = W, and at the end the rest.
template <class T, class Body>
LEC7_INLINE void for_lanes(Index size, Body&& body) {
  Index i = 0;
  for (; i + W<T> <= size; i += W<T>) body(i, std::integral_constant<Index, W<T>>{});
  if (i < size) body(i, size - i);
}

template <class T, class N>
LEC7_INLINE Vec<T> load_lanes(const T* p, N n) {
  if constexpr (std::is_same_v<N, std::integral_constant<Index, W<T>>>) return load(p);
  else return load_first(p, n);
}

template <class T, class N>
LEC7_INLINE void store_lanes(T* p, Vec<T> v, N n) {
  if constexpr (std::is_same_v<N, std::integral_constant<Index, W<T>>>) store(p, v);
  else store_first(p, v, n);
}

// min and max give b where either is NaN: put the data second and NaN propagates. GCC 12 turns a < b ? a : b on
// vectors into a compare and a blend, so the instruction is named.
template <class T>
LEC7_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return (Vec<T>)_mm512_min_ps((__m512)a, (__m512)b);
  else return (Vec<T>)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) return (Vec<T>)_mm256_min_ps((__m256)a, (__m256)b);
  else return (Vec<T>)_mm256_min_pd((__m256d)a, (__m256d)b);
#else
  return a < b ? a : b;
#endif
}

template <class T>
LEC7_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return (Vec<T>)_mm512_max_ps((__m512)a, (__m512)b);
  else return (Vec<T>)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) return (Vec<T>)_mm256_max_ps((__m256)a, (__m256)b);
  else return (Vec<T>)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
  return a > b ? a : b;
#endif
}

// Lanes of a, then of b: 2W numbers; the first or second half of their interleaving.
template <class V, int... I>
LEC7_INLINE V interleave_low(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(a, b, (I % 2 == 0 ? I / 2 : n + I / 2)...);
}
template <class V, int... I>
LEC7_INLINE V interleave_high(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(a, b, (I % 2 == 0 ? n / 2 + I / 2 : n + n / 2 + I / 2)...);
}

// Transposes W x W numbers in registers: log2 W rounds of perfect shuffles of rows i and i + W/2.
template <class T>
LEC7_INLINE void transpose(Vec<T> (&rows)[W<T>]) {
  constexpr auto lanes = std::make_integer_sequence<int, W<T>>{};
  LEC7_UNROLL
  for (int width = W<T>; width > 1; width /= 2) {
    Vec<T> next[W<T>];
    LEC7_UNROLL
    for (int i = 0; i < W<T> / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + W<T> / 2], lanes);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + W<T> / 2], lanes);
    }
    LEC7_UNROLL
    for (int i = 0; i < W<T>; ++i) rows[i] = next[i];
  }
}

// Sums lanes pairwise, so that the order does not depend on the compiler.
template <class T>
LEC7_INLINE T reduce_sum(Vec<T> v) {
  T lanes[W<T>];
  store(lanes, v);
  LEC7_UNROLL
  for (int half = W<T> / 2; half > 0; half /= 2) {
    LEC7_UNROLL
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

template <class T>
LEC7_INLINE T reduce_max(Vec<T> v) {  // NaN if any lane is
  T lanes[W<T>];
  store(lanes, v);
  T most = lanes[0];
  LEC7_UNROLL
  for (int i = 1; i < W<T>; ++i) most = lanes[i] > most || lanes[i] != lanes[i] ? lanes[i] : most;
  return most;
}

// float64 is for checking: the C library's functions, lane by lane.
template <class T, class F>
LEC7_INLINE Vec<T> each_lane(Vec<T> x, F f) {
  T lanes[W<T>];
  store(lanes, x);
  for (int i = 0; i < W<T>; ++i) lanes[i] = f(lanes[i]);
  return load(lanes);
}

namespace detail {

// x = n ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
struct Split {
  Vec<float> r;
  Vec<float> n;
  Vec<std::int32_t> n_int;
};
LEC7_INLINE Split split_ln2(Vec<float> x) {
  constexpr float magic = 12582912.f;
  const Vec<float> t = x * 1.44269504088896341f + magic;
  const Vec<float> n = t - magic;
  Vec<float> r = x - n * 0.693145751953125f;
  r = r - n * 1.42860682030941723e-6f;
  return {r, n, (Vec<std::int32_t>)t - 0x4b400000};
}

}  // namespace detail

// exp to 2 ulp over the whole range: 0 below -104, infinity above 88.8, NaN for NaN.
template <class T>
LEC7_INLINE Vec<T> exp(Vec<T> x) {
  if constexpr (std::is_same_v<T, double>) {
    return each_lane<T>(x, [](T v) { return std::exp(v); });
  } else {
    x = max<T>(broadcast(-104.f), min<T>(broadcast(89.f), x));
    const auto [r, n, n_int] = detail::split_ln2(x);
    Vec<T> p = broadcast(1.38894200e-3f);
    p = p * r + 8.36848188e-3f;
    p = p * r + 4.16695364e-2f;
    p = p * r + 1.66664705e-1f;
    p = p * r + 4.99999851e-1f;
    p = p * (r * r) + r;
    p = p + 1.0f;
#if defined(__AVX512F__)
    return (Vec<T>)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    // 2^n in two factors, each a normal number: n alone reaches -150 and 128.
    const Vec<std::int32_t> half = n_int >> 1;
    const Vec<std::int32_t> low = (half + 127) << 23;
    const Vec<std::int32_t> high = (n_int - half + 127) << 23;
    return p * (Vec<T>)low * (Vec<T>)high;
#endif
  }
}

template <class T>
LEC7_INLINE Vec<T> sigmoid(Vec<T> x) {
  return T{1} / (T{1} + exp<T>(-x));
}

// Through expm1(2|x|) = e: e / (e + 2) keeps the relative error small near 0, where 1 - 2/(exp + 1) would cancel.
template <class T>
LEC7_INLINE Vec<T> tanh(Vec<T> x) {
  if constexpr (std::is_same_v<T, double>) {
    return each_lane<T>(x, [](T v) { return std::tanh(v); });
  } else {
    using VI = Vec<std::int32_t>;
    const VI sign = (VI)x & static_cast<std::int32_t>(0x80000000);
    Vec<T> a = (Vec<T>)((VI)x & 0x7fffffff);
    a = min<T>(broadcast(9.2f), a);
    a = a + a;
    const auto [r, n, n_int] = detail::split_ln2(a);
    Vec<T> p = broadcast(1.98527617e-4f);
    p = p * r + 1.39304355e-3f;
    p = p * r + 8.33336064e-3f;
    p = p * r + 4.16664847e-2f;
    p = p * r + 1.66666666e-1f;
    p = p * r + 0.5f;
    p = p * (r * r) + r;
    const VI power = (n_int + 127) << 23;
    const Vec<T> scale = (Vec<T>)power;
    const Vec<T> e = p * scale + (scale - 1.0f);
    const Vec<T> y = e / (e + 2.0f);
    return (Vec<T>)((VI)y | sign);
  }
}

}  // namespace lec7::cpu::LEC7_ISA
