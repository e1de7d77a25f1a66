// Reductions over the lanes of a warp and the threads of a block: every thread gets the result, the same bits in all of
// them, combined in an order that depends on the number of threads alone.
//
//   warp_sum(v), warp_max(v)          over 32 lanes;  warp_sum<8>(v): over each group of 8 neighbours
//   block_sum<256>(v), block_max<256>(v)
//   warp_reduce<32>(v, combine), block_reduce<256>(v, combine)    for numbers, Pair, and what has a from_lane_xor
//
// All threads of the warp (the block) call them: 5 shuffles (and two barriers).
#pragma once

#include "kernel.h"

namespace lec7::cuda {

inline constexpr unsigned kAllLanes = ~0u;
inline constexpr int kWarp = 32;

// Two sums at once.
template <class T>
struct Pair {
  T first, second;
  __device__ Pair operator+(const Pair& other) const { return {first + other.first, second + other.second}; }
};

// ---- what is combined ----

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
// Of a NaN and a number, the number.
struct Larger {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

// ---- warps ----

// The value of the lane whose number differs in these bits.
template <class T>
__device__ T from_lane_xor(T value, int bits) {
  return __shfl_xor_sync(kAllLanes, value, bits);
}
template <class T>
__device__ Pair<T> from_lane_xor(const Pair<T>& v, int bits) {
  return {from_lane_xor(v.first, bits), from_lane_xor(v.second, bits)};
}

// Over each group of `lanes` neighbours, a power of two. The lower lane's part comes first on both sides: where
// combine(a, b) and combine(b, a) round differently (a fused multiply-add is enough), lanes would disagree.
template <int lanes = kWarp, class T, class Combine>
__device__ T warp_reduce(T value, Combine combine) {
  static_assert(lanes >= 1 && lanes <= kWarp && (lanes & (lanes - 1)) == 0);
#pragma unroll
  for (int bits = lanes / 2; bits > 0; bits /= 2) {
    const T other = from_lane_xor(value, bits);
    value = (threadIdx.x & static_cast<unsigned>(bits)) == 0 ? combine(value, other) : combine(other, value);
  }
  return value;
}

// For a sum or a maximum of numbers the order within a pair changes nothing.
template <int lanes = kWarp, class T>
__device__ T warp_sum(T value) {
  static_assert(lanes >= 1 && lanes <= kWarp && (lanes & (lanes - 1)) == 0);
#pragma unroll
  for (int bits = lanes / 2; bits > 0; bits /= 2) value += from_lane_xor(value, bits);
  return value;
}
template <int lanes = kWarp>
__device__ float warp_max(float value) {
  static_assert(lanes >= 1 && lanes <= kWarp && (lanes & (lanes - 1)) == 0);
#pragma unroll
  for (int bits = lanes / 2; bits > 0; bits /= 2) value = fmaxf(value, from_lane_xor(value, bits));
  return value;
}

// ---- blocks ----

// Over a block of `threads` in x, a power of two of warps. Each warp reduces the partial results of all by itself; the
// second barrier lets the next reduction write where this one still reads.
template <int threads, class T, class Combine>
__device__ T block_reduce(T value, Combine combine) {
  constexpr int warps = threads / kWarp;
  static_assert(threads % kWarp == 0 && warps <= kWarp && (warps & (warps - 1)) == 0);
  value = warp_reduce(value, combine);
  if constexpr (warps > 1) {
    LEC7_SHARED(partial, T[warps]);
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = warp_reduce<warps>(partial[threadIdx.x % warps], combine);
    __syncthreads();
  }
  return value;
}

template <int threads, class T>
__device__ T block_sum(T value) {
  return block_reduce<threads>(value, Add{});
}
template <int threads>
__device__ float block_max(float value) {
  return block_reduce<threads>(value, Larger{});
}

}  // namespace lec7::cuda
