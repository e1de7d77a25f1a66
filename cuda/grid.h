// Cooperative launches: all blocks run at the same time and may wait for each other.
#pragma once

#if !defined(LEC7_CUDA_HOST)
#include <cooperative_groups.h>
#endif

#include "kernel.h"

namespace lec7::cuda {

// A barrier for all threads of a cooperative launch: what any of them wrote before it, all read after it.
#if !defined(LEC7_CUDA_HOST)
__device__ inline void sync_grid() { cooperative_groups::this_grid().sync(); }
#else
inline void sync_grid(host::Where where = host::Where::current()) { host::sync_grid(where); }
#endif

// Can the current device run all blocks of this launch at the same time? Never where there is none.
template <class... Parameters>
bool fits_at_once(void (*kernel)(Parameters...), const Grid& grid) {
  const std::size_t blocks = std::size_t{grid.grid.x} * grid.grid.y * grid.grid.z;
  if (blocks == 0 || grid.dynamic_shared > properties().shared_per_block) return false;
  int each = 0;
  check(allow_shared(kernel), "cudaFuncSetAttribute");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
            &each, kernel, static_cast<int>(grid.block.x * grid.block.y * grid.block.z), grid.dynamic_shared),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  return blocks <= static_cast<std::size_t>(each) * static_cast<std::size_t>(properties().multiprocessors);
}

}  // namespace lec7::cuda
