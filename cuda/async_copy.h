// Copies from global to shared memory that run while the thread computes: cp.async, from sm_80 on. On sm_75 they are
// plain loads and stores, done at once.
//
//   copy_async16(&tile[i], &x[i]);   any number of copies,
//   commit_copies();                 closed into a group;
//   ...                              work on an older tile
//   wait_for_copies<1>();            until at most the newest group is under way: for this thread's own copies
//   __syncthreads();                 and so for the block's
//
// Nobody touches a destination between the copy and the barrier after its wait. On the host it holds NaN until waited
// for, and AddressSanitizer refuses it. PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy".
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lec7::cuda {

#if !defined(LEC7_CUDA_HOST)

// 16 bytes, both addresses divisible by 16. Only the first `bytes` (a multiple of 4) are read; zeros fill the rest, so
// that with bytes = 0 the source may lie outside its array.
__device__ inline void copy_async16(void* shared, const void* global, int bytes = 16) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
      "l"(__cvta_generic_to_global(global)), "r"(bytes)
      : "memory");
#else
  if (bytes == 16) {
    *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
  } else {
    for (int word = 0; word < 4; ++word) {
      static_cast<unsigned*>(shared)[word] = 4 * word < bytes ? static_cast<const unsigned*>(global)[word] : 0;
    }
  }
#endif
}

// 4 bytes, both addresses divisible by 4; a zero where not `valid`.
__device__ inline void copy_async4(void* shared, const void* global, bool valid = true) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
      "l"(__cvta_generic_to_global(global)), "r"(valid ? 4 : 0)
      : "memory");
#else
  *static_cast<unsigned*>(shared) = valid ? *static_cast<const unsigned*>(global) : 0;
#endif
}

__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kGroupsLeft>
__device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

#else

inline void copy_async16(void* shared, const void* global, int bytes = 16, host::Where where = host::Where::current()) {
  if (bytes < 0 || bytes > 16 || bytes % 4 != 0) host::die("copies a part of 16 bytes that is not 0, 4, 8, ...", where);
  host::begin_copy(shared, global, 16, static_cast<std::size_t>(bytes), where);
}
inline void copy_async4(void* shared, const void* global, bool valid = true,
                        host::Where where = host::Where::current()) {
  host::begin_copy(shared, global, 4, valid ? 4 : 0, where);
}
inline void commit_copies() { host::commit_copies(); }
template <int kGroupsLeft>
void wait_for_copies(host::Where where = host::Where::current()) {
  host::wait_for_copies(kGroupsLeft, where);
}

#endif

}  // namespace lec7::cuda
