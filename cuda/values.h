// Values from outside that are checked on the device: labels, tokens, probabilities, winners of a pooling.
//
// check_indices and check_probabilities (lec7/indices.h) launch a kernel here, and the host does not wait for it. The
// first bad value is noted in memory that both see, and thrown by the next call that waits (synchronize, .numpy()), as
// the std::invalid_argument that the CPU throws at once. Until then the op's own kernels run, and stay inside their
// arrays whatever the value is.
#pragma once

#include <cuda_runtime.h>

#include "lec7/indices.h"

namespace lec7::cuda {

__device__ inline Index index_at(const Indices& indices, Index i) {
  return indices.wide ? static_cast<const std::int64_t*>(indices.data)[i]
                      : static_cast<const std::int32_t*>(indices.data)[i];
}

// Throws for the first bad value that was noted since the last call; the stream has been waited for.
void throw_bad_values();

}  // namespace lec7::cuda
