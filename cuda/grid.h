// A barrier for all threads of a cooperative launch: what any of them wrote before it, all read after it.
#pragma once

#include <cuda_runtime.h>

#if !defined(LEC7_CUDA_HOST)
#include <cooperative_groups.h>
#endif

namespace lec7::cuda {

#if !defined(LEC7_CUDA_HOST)
__device__ inline void sync_grid() { cooperative_groups::this_grid().sync(); }
#else
inline void sync_grid(host::Where where = host::Where::current()) { host::sync_grid(where); }
#endif

}  // namespace lec7::cuda
