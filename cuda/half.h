// Numbers as arrays store them (float, float16, bfloat16) to and from the float32 of the kernels. Rounding is to the
// nearest, halves to the even one; what is too large for float16 becomes infinite.
#pragma once

#include <cuda_runtime.h>

#include "lec7/half.h"

#if defined(LEC7_CUDA_HOST)
#include <bit>
#endif

namespace lec7::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bfloat16 x) {
  return __int_as_float(static_cast<int>(static_cast<unsigned>(x.bits) << 16));
}
__device__ inline float to_float(float16 x) {
#if !defined(LEC7_CUDA_HOST)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
#else
  return static_cast<float>(std::bit_cast<_Float16>(x.bits));
#endif
}

template <class T>
__device__ T from_float(float x);

template <>
__device__ inline float from_float<float>(float x) {
  return x;
}

template <>
__device__ inline bfloat16 from_float<bfloat16>(float x) {
#if !defined(LEC7_CUDA_HOST) && __CUDA_ARCH__ >= 800
  bfloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
#else
  if (x != x) return {0x7fff};
  const auto bits = static_cast<unsigned>(__float_as_int(x));
  return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}

template <>
__device__ inline float16 from_float<float16>(float x) {
#if !defined(LEC7_CUDA_HOST)
  float16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
#else
  return {std::bit_cast<std::uint16_t>(static_cast<_Float16>(x))};
#endif
}

}  // namespace lec7::cuda
