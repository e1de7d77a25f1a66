// Cooperative launches: all blocks run at the same time, and meet.
#include "grid.h"

#include "device.h"

namespace lec7::test {
namespace {

using namespace cuda;

// Each block reads in every step what the next one wrote in the step before.
__global__ void pass_on_kernel(int steps, int* from, int* to) {
  const unsigned n = blockDim.x, next = (blockIdx.x + 1) % gridDim.x;
  for (int step = 0; step < steps; ++step) {
    to[blockIdx.x * n + threadIdx.x] = from[next * n + (threadIdx.x + 1) % n] + 1;
    sync_grid();
    int* const other = from;
    from = to;
    to = other;
  }
}

TEST(what_blocks_write_is_seen_after_the_barrier_of_the_grid) {
  in_several_orders([] {
    constexpr int kBlocks = 4, kSteps = 6, n = 48;
    std::vector<int> x(kBlocks * n);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int>(1000 * i);
    Device<int> a(x), b(x.size());
    launch("pass_on_kernel", pass_on_kernel, {kBlocks, n, 0, true}, kSteps, a.data(), b.data());
    const std::vector<int> y = a.host();
    for (int block = 0; block < kBlocks; ++block) {
      for (int t = 0; t < n; ++t) {
        check_equal(y[static_cast<std::size_t>(block * n + t)],
                    1000 * ((block + kSteps) % kBlocks * n + (t + kSteps) % n) + kSteps);
      }
    }
  });
}

}  // namespace
}  // namespace lec7::test
