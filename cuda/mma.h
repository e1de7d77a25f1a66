// Tensor cores: what one warp multiplies with one instruction, d += a b, with d of 16 x 8 floats.
//
//   mma_tf32   a (16, 8), b (8, 8): float32 rounded to tf32, 8 bits of exponent and 10 of fraction
//   mma_bf16   a (16, 16), b (16, 8): bfloat16, 8 bits of exponent and 7 of fraction, two in a register
//   mma_f16    the same shapes: float16, 5 bits of exponent and 10 of fraction
//
// The products are exact, their sum is made in float32, in an order that the GPU chooses (the host: k = 0, 1, ...). All
// 32 lanes take part, and each holds a few elements of each matrix. With g = lane / 4 and t = lane % 4 (PTX ISA 8.7,
// 9.7.14.5.7, "Matrix Fragments for mma.m16n8k8", and 9.7.14.5.8, "... m16n8k16 with floating point type"):
//
//   d[0], d[1]   row g,     columns 2t, 2t + 1         the same for all
//   d[2], d[3]   row g + 8, columns 2t, 2t + 1
//
//   tf32   a[0] (g, t)   a[1] (g + 8, t)   a[2] (g, t + 4)   a[3] (g + 8, t + 4)
//          b[0] (t, g)   b[1] (t + 4, g)
//   16 bit a[0] (g, 2t..2t + 1)   a[1] (g + 8, 2t..)   a[2] (g, 2t + 8..)   a[3] (g + 8, 2t + 8..)
//          b[0] (2t..2t + 1, g)   b[1] (2t + 8.., g)   the first of two in the low half
//
// From sm_80 on: on sm_75 a kernel that calls mma is never launched (properties().compute_capability tells).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "half.h"

namespace lec7::cuda {

// ---- conversions ----

// The nearest tf32, ties away from zero: cvt.rna.tf32.f32. Every operand of mma_tf32 went through it (the GPU would cut
// the rest off).
__device__ inline float round_to_tf32(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#else
  const auto bits = static_cast<unsigned>(__float_as_int(x));
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;  // infinite or NaN
  return __int_as_float(static_cast<int>((bits + 0x1000u) & ~0x1fffu));
#endif
}

// Two nearest bfloat16, ties to even, in one register: cvt.rn.bf16x2.f32.
__device__ inline unsigned pack_bf16(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  const auto nearest = [](float x) {
    const auto bits = static_cast<unsigned>(__float_as_int(x));
    return x == x ? (bits + 0x7fffu + (bits >> 16 & 1)) >> 16 : 0x7fffu;
  };
  return nearest(high) << 16 | nearest(low);
#endif
}
__device__ inline float bf16_low(unsigned pair) { return __int_as_float(static_cast<int>(pair << 16)); }
__device__ inline float bf16_high(unsigned pair) { return __int_as_float(static_cast<int>(pair & 0xffff0000u)); }

// Two nearest float16, ties to even, in one register: cvt.rn.f16x2.f32. From 65520 on, infinite.
__device__ inline unsigned pack_f16(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return static_cast<unsigned>(from_float<float16>(high).bits) << 16 | from_float<float16>(low).bits;
#endif
}
__device__ inline float f16_low(unsigned pair) { return to_float(float16{static_cast<std::uint16_t>(pair)}); }
__device__ inline float f16_high(unsigned pair) { return f16_low(pair >> 16); }

// The same for a type that is known when this is compiled: float16 or bfloat16.
template <class T>
__device__ unsigned pack(float low, float high) {
  static_assert(is_half<T>);
  if constexpr (std::is_same_v<T, float16>) return pack_f16(low, high);
  else return pack_bf16(low, high);
}
template <class T>
__device__ float2 unpack(unsigned pair) {
  static_assert(is_half<T>);
  if constexpr (std::is_same_v<T, float16>) return make_float2(f16_low(pair), f16_high(pair));
  else return make_float2(bf16_low(pair), bf16_high(pair));
}

// ---- the warp's instructions ----

#if !defined(LEC7_CUDA_HOST)

__device__ inline void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#else
  __trap();
#endif
}

__device__ inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

__device__ inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

// Four 8 x 8 matrices of 16-bit elements (or 8 x 4 of floats) from shared memory: the eight lanes 8i..8i + 7 give the
// addresses of the rows of matrix i, 16 bytes each, divisible by 16; r[i] gets the two elements of matrix i in row g,
// columns 2t and 2t + 1 (or the float in column t). PTX ISA 8.7, 9.7.14.5.15, "ldmatrix".
__device__ inline void load_matrices(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}

// The same matrices transposed: r[i] gets the 16-bit elements in rows 2t and 2t + 1, column g.
__device__ inline void load_transposed_matrices(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}

#else

// The lanes show each other their elements of a and b; then each one sums its own four elements of d. The element of a
// lane at column k of a, or row k of b, is at(register, k), in the lane holder(k) of a group of four.
namespace detail {

template <class T>
host::Exchange exchange_all(const T& mine, host::Where where) {
  const host::Exchange given = host::exchange(~0u, mine, where);
  if (given.lanes != ~0u) host::die("needs all 32 lanes of its warp", where);
  return given;
}

template <unsigned kDepth, class Register, class Holder, class At>
void multiply(float (&d)[4], const Register (&a)[4], const Register (&b)[2], Holder holder, At at, host::Where where) {
  struct Fragments {
    Register a[4], b[2];
  };
  const Fragments mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const host::Exchange given = exchange_all(mine, where);
  const unsigned g = host::lane() / 4, t = host::lane() % 4;
  for (unsigned k = 0; k < kDepth; ++k) {
    const unsigned half = k / (kDepth / 2);  // the registers of the first or the second half of k
    const auto rows = given.get<Fragments>(4 * g + holder(k));
    for (unsigned column = 0; column < 2; ++column) {
      const float factor = at(given.get<Fragments>(4 * (2 * t + column) + holder(k)).b[half], k);
      d[column] += at(rows.a[2 * half], k) * factor;
      d[2 + column] += at(rows.a[2 * half + 1], k) * factor;
    }
  }
}

struct Row {
  unsigned pairs[4];
};
inline host::Exchange exchange_rows(const void* row, host::Where where) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0)
    host::die("loads a matrix row that is not 16-byte aligned", where);
  Row mine;
  std::memcpy(&mine, row, sizeof mine);
  return exchange_all(mine, where);
}

}  // namespace detail

inline void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2],
                     host::Where where = host::Where::current()) {
  for (const float x : {a[0], a[1], a[2], a[3], b[0], b[1]}) {
    if (x == x && (__float_as_int(x) & 0x1fff) != 0) host::die("multiplies floats that are not rounded to tf32", where);
  }
  detail::multiply<8>(d, a, b, [](unsigned k) { return k % 4; }, [](float x, unsigned) { return x; }, where);
}

inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     host::Where where = host::Where::current()) {
  detail::multiply<16>(
      d, a, b, [](unsigned k) { return k % 8 / 2; },
      [](unsigned pair, unsigned k) { return k % 2 == 0 ? bf16_low(pair) : bf16_high(pair); }, where);
}

inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                    host::Where where = host::Where::current()) {
  detail::multiply<16>(
      d, a, b, [](unsigned k) { return k % 8 / 2; },
      [](unsigned pair, unsigned k) { return k % 2 == 0 ? f16_low(pair) : f16_high(pair); }, where);
}

inline void load_matrices(unsigned (&r)[4], const void* row, host::Where where = host::Where::current()) {
  const host::Exchange rows = detail::exchange_rows(row, where);
  const unsigned g = host::lane() / 4, t = host::lane() % 4;
  for (unsigned i = 0; i < 4; ++i) r[i] = rows.get<detail::Row>(8 * i + g).pairs[t];
}

inline void load_transposed_matrices(unsigned (&r)[4], const void* row, host::Where where = host::Where::current()) {
  const host::Exchange rows = detail::exchange_rows(row, where);
  const unsigned g = host::lane() / 4, t = host::lane() % 4;
  const auto element = [&](unsigned matrix, unsigned r, unsigned column) {
    return rows.get<detail::Row>(8 * matrix + r).pairs[column / 2] >> (column % 2 * 16) & 0xffffu;
  };
  for (unsigned i = 0; i < 4; ++i) r[i] = element(i, 2 * t + 1, g) << 16 | element(i, 2 * t, g);
}

#endif

// mma_f16 or mma_bf16.
template <class T>
__device__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  static_assert(is_half<T>);
  if constexpr (std::is_same_v<T, float16>) mma_f16(d, a, b);
  else mma_bf16(d, a, b);
}

}  // namespace lec7::cuda
