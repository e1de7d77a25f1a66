// Reductions over warps and blocks: every thread has the result, and the lower lane's part comes first.
#include "reduce.h"

#include <algorithm>

#include "device.h"

namespace lec7::test {
namespace {

using namespace cuda;

// Neither commutative nor, in floats, associative: 3 a + b tells the order of what was combined.
struct InOrder {
  __device__ float operator()(float a, float b) const { return 3 * a + b; }
};
float in_order(const std::vector<float>& x) {  // as a tree: neighbours last
  if (x.size() == 1) return x[0];
  const std::size_t half = x.size() / 2;
  std::vector<float> pairs;
  for (std::size_t i = 0; i < half; ++i) pairs.push_back(3 * x[i] + x[i + half]);
  return in_order(pairs);
}

template <int lanes>
__global__ void warp_kernel(const float* x, float* ordered, float* sum, float* largest) {
  const float mine = x[threadIdx.x];
  ordered[threadIdx.x] = warp_reduce<lanes>(mine, InOrder{});
  sum[threadIdx.x] = warp_sum<lanes>(mine);
  largest[threadIdx.x] = warp_max<lanes>(mine);
}

template <int lanes>
void groups_of() {
  const Trying scope(text("lanes=", lanes));
  const std::vector<float> x = random_floats(64, lanes);
  Device<float> from(x), ordered(64), sum(64), largest(64);
  launch("warp_kernel", warp_kernel<lanes>, {1, 64}, static_cast<const float*>(from.data()), ordered.data(), sum.data(),
         largest.data());
  const std::vector<float> got = ordered.host(), sums = sum.host(), most = largest.host();
  for (int t = 0; t < 64; ++t) {
    const int first = t / lanes * lanes;
    const std::vector<float> group(x.begin() + first, x.begin() + first + lanes);
    check_equal(got[t], in_order(group));
    check_equal(sums[t], sums[first]);
    check_equal(most[t], *std::max_element(group.begin(), group.end()));
  }
}

TEST(groups_of_lanes_are_reduced_in_order) {
  in_several_orders([] {
    groups_of<1>();
    groups_of<2>();
    groups_of<8>();
    groups_of<32>();
  });
}

// One after the other: the second must not write where the first is still read.
template <int threads>
__global__ void block_kernel(const int* x, int* results) {
  const int mine = x[threadIdx.x];
  const int sum = block_sum<threads>(mine), more = block_sum<threads>(mine + sum);
  const Pair<double> pair = block_sum<threads>(Pair<double>{1.0 * mine, -2.0 * mine});
  const int largest = block_reduce<threads>(mine, Larger{});
  int* const out = results + 5 * threadIdx.x;
  out[0] = sum;
  out[1] = more;
  out[2] = static_cast<int>(pair.first);
  out[3] = static_cast<int>(pair.second);
  out[4] = largest;
}

template <int threads>
void block_of() {
  const Trying scope(text("threads=", threads));
  std::vector<int> x(threads);
  int sum = 0;
  for (int t = 0; t < threads; ++t) sum += x[t] = t * 37 % 101;
  const int largest = *std::max_element(x.begin(), x.end());
  Device<int> from(x), results(5 * threads);
  launch("block_kernel", block_kernel<threads>, {1, threads}, static_cast<const int*>(from.data()), results.data());
  const std::vector<int> got = results.host();
  for (int t = 0; t < threads; ++t) {
    check_equal(got[5 * t], sum);
    check_equal(got[5 * t + 1], sum + threads * sum);
    check_equal(got[5 * t + 2], sum);
    check_equal(got[5 * t + 3], -2 * sum);
    check_equal(got[5 * t + 4], largest);
  }
}

TEST(blocks_are_reduced_for_every_thread) {
  in_several_orders([] {
    block_of<32>();
    block_of<64>();
    block_of<256>();
    block_of<1024>();
  });
}

}  // namespace
}  // namespace lec7::test
