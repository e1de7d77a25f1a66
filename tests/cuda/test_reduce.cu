// Reductions over warps and blocks, two in a row.
#include "reduce.h"

#include <cmath>

#include "device.h"

namespace lec7::test {
namespace {

using namespace cuda;

struct Reduced {
  float sum, largest, part;
};

template <int threads>
__global__ void reduce_kernel(const float* x, Reduced* y) {
  const float mine = x[threadIdx.x];
  const float sum = block_reduce<threads>(block_reduce<threads>(mine, Add{}) / threads, Add{});
  const float largest = block_reduce<threads>(mine, Larger{});
  y[threadIdx.x] = {sum, largest, warp_sum<8>(mine)};
}

template <int threads>
void check_reductions() {
  std::vector<float> x(threads);
  for (int i = 0; i < threads; ++i) x[i] = static_cast<float>(i * 37 % threads);
  Device<float> from(x);
  Device<Reduced> to(threads);
  launch("reduce_kernel", reduce_kernel<threads>, {1, threads}, static_cast<const float*>(from.data()), to.data());
  const std::vector<Reduced> y = to.host();
  for (int i = 0; i < threads; ++i) {
    float part = 0;
    for (int j = i / 8 * 8; j < i / 8 * 8 + 8; ++j) part += x[j];
    check_equal(y[i].sum, static_cast<float>(threads * (threads - 1) / 2));
    check_equal(y[i].largest, static_cast<float>(threads - 1));
    check_equal(y[i].part, part);
  }
}

TEST(every_thread_gets_the_sum_and_the_largest) {
  in_several_orders([] {
    check_reductions<32>();
    check_reductions<64>();
    check_reductions<1024>();
  });
}

}  // namespace
}  // namespace lec7::test
