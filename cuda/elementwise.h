// Kernels that treat every number alike: bound by memory, so that four at a time move where all the arrays lie on
// boundaries of 16 bytes. A body is a struct of pointers and constants with
//
//   template <int width> __device__ void operator()(Index i) const;    // on elements i ... i + width - 1
#pragma once

#include <initializer_list>

#include "half.h"
#include "kernel.h"
#include "mma.h"

namespace lec7::cuda {

// One number or four.
template <int width>
struct Floats {
  static_assert(width == 1 || width == 4);
  float at[width];
};

// A plain assignment of a float4 may become four stores; __stwb is one, and otherwise no different.
template <int width, class T>
__device__ Floats<width> load(const T* p) {
  if constexpr (width == 1) {
    return {{to_float(*p)}};
  } else if constexpr (is_half<T>) {
    const uint2 v = *reinterpret_cast<const uint2*>(p);
    const float2 first = unpack<T>(v.x), second = unpack<T>(v.y);
    return {{first.x, first.y, second.x, second.y}};
  } else {
    const float4 v = *reinterpret_cast<const float4*>(p);
    return {{v.x, v.y, v.z, v.w}};
  }
}
template <int width, class T>
__device__ void store(T* p, const Floats<width>& v) {
  if constexpr (width == 1) {
    *p = from_float<T>(v.at[0]);
  } else if constexpr (is_half<T>) {
    *reinterpret_cast<uint2*>(p) = make_uint2(pack<T>(v.at[0], v.at[1]), pack<T>(v.at[2], v.at[3]));
  } else {
    __stwb(reinterpret_cast<float4*>(p), make_float4(v.at[0], v.at[1], v.at[2], v.at[3]));
  }
}

// Can each array's numbers, from the first on, be moved in fours?
inline bool in_fours(std::initializer_list<const void*> arrays) {
  for (const void* array : arrays) {
    if (reinterpret_cast<std::uintptr_t>(array) % sizeof(float4) != 0) return false;
  }
  return true;
}

template <int width, class Body>
__global__ void __launch_bounds__(kThreads) elementwise_kernel(Index n, Body body) {
  LEC7_STRIDED(i, n / width) body.template operator()<width>(i * width);
  if constexpr (width > 1) {
    const Index i = n / width * width + static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) body.template operator()<1>(i);
  }
}

// body on all of [0, n); `arrays` are the ones that it moves.
template <class Body>
void elementwise(const KernelName& name, Index n, std::initializer_list<const void*> arrays, const Body& body) {
  if (in_fours(arrays)) launch(name, elementwise_kernel<4, Body>, strided_grid(ceil_div(n, 4)), n, body);
  else launch(name, elementwise_kernel<1, Body>, strided_grid(n), n, body);
}

}  // namespace lec7::cuda
