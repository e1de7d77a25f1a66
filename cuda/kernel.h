// What every kernel file includes: shared memory, launches, scratch.
//
// The same .cu file is compiled by nvcc for GPUs, and by the host's compiler with cuda/host in front of the toolkit's
// headers, where the threads of a block are fibers. So kernels keep to these few rules:
//
//   LEC7_SHARED(tile, float[16][17]);    in place of __shared__: one object of a trivial type for the block
//   launch("x_kernel", x_kernel, {grid, block}, arguments...);    in place of <<<>>>
//   mma, cp.async                     through mma.h and async_copy.h: both have a body for the host
//
// A kernel never reads memory that nobody wrote, adds floats in an order that depends on the problem's size alone (no
// atomics), and every thread of a block meets every __syncthreads().
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime.h"

#if !defined(LEC7_CUDA_HOST)
#define LEC7_SHARED(name, ...) __shared__ __align__(16) std::type_identity_t<__VA_ARGS__> name
// The launch's dynamic shared memory, as an array of `type`.
#define LEC7_DYNAMIC_SHARED(name, type)                          \
  extern __shared__ __align__(128) unsigned char lec7_dynamic[]; \
  type* const name = reinterpret_cast<type*>(lec7_dynamic)
#else
#define LEC7_SHARED(name, ...)                                   \
  static const char name##_site = 0;                             \
  auto& name = *static_cast<std::type_identity_t<__VA_ARGS__>*>( \
      ::lec7::host::shared_memory(&name##_site, sizeof(std::type_identity_t<__VA_ARGS__>), 16))
#define LEC7_DYNAMIC_SHARED(name, type) type* const name = static_cast<type*>(::lec7::host::dynamic_shared_memory())
#endif

namespace lec7::cuda {

// The shape of a launch. Nothing is launched where an axis of the grid is 0.
struct Grid {
  dim3 grid, block;
  std::size_t dynamic_shared = 0;
  bool cooperative = false;  // all blocks run at the same time: sync_grid() of grid.h may be used
};

// The kernel's name with the place that launches it, for errors.
struct KernelName {
  const char* text;
  std::source_location where;
  KernelName(const char* name, std::source_location place = std::source_location::current())
      : text(name), where(place) {}
};

// Refuses a grid that no GPU runs; notes the kernel's name for errors that appear later.
void begin_launch(const KernelName& name, const Grid& grid);
void end_launch(const KernelName& name, cudaError_t error);

// The most dynamic shared memory that a kernel can have beside its static one: always that, since the setting is the
// kernel's, and other threads launch it too.
template <class... Parameters>
cudaError_t allow_shared(void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(properties().shared_per_block - attributes.sharedSizeBytes));
}

// kernel(arguments...) on the current stream.
template <class... Parameters, class... Arguments>
void launch(KernelName name, void (*kernel)(Parameters...), const Grid& grid, Arguments&&... arguments) {
  if (grid.grid.x == 0 || grid.grid.y == 0 || grid.grid.z == 0) return;
  begin_launch(name, grid);
  std::tuple<std::decay_t<Parameters>...> values(static_cast<Parameters>(std::forward<Arguments>(arguments))...);
#if !defined(LEC7_CUDA_HOST)
  std::array<void*, sizeof...(Parameters)> pointers;
  std::apply([&](auto&... value) { pointers = {static_cast<void*>(&value)...}; }, values);
  constexpr std::size_t kAlwaysAllowed = 48 << 10;
  cudaError_t error = cudaSuccess;
  if (grid.dynamic_shared > kAlwaysAllowed) error = allow_shared(kernel);
  if (error == cudaSuccess) {
    using Launch = cudaError_t (*)(const void*, dim3, dim3, void**, std::size_t, cudaStream_t);
    const Launch run =
        grid.cooperative ? static_cast<Launch>(cudaLaunchCooperativeKernel) : static_cast<Launch>(cudaLaunchKernel);
    error = run(reinterpret_cast<const void*>(kernel), grid.grid, grid.block, pointers.data(), grid.dynamic_shared,
                current_stream());
  }
  end_launch(name, error);
#else
  const host::Launch shape{name.text, grid.grid, grid.block, grid.dynamic_shared, grid.cooperative};
  const cudaError_t error = host::check_launch(shape);
  if (error == cudaSuccess) {
    host::submit(current_stream(), [=] { host::run(shape, [&] { std::apply(kernel, values); }); });
  }
  end_launch(name, error);
#endif
}

// ---- for elementwise kernels: a grid that strides over n ----

inline constexpr int kThreads = 256;

// Enough blocks to fill the GPU: each thread takes elements i, i + all threads, ...
Grid strided_grid(Index n);
#define LEC7_STRIDED(i, n)                                                                           \
  for (::lec7::Index i = static_cast<::lec7::Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < (n); \
       i += static_cast<::lec7::Index>(gridDim.x) * blockDim.x)

inline Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

}  // namespace lec7::cuda
