#include "async_copy.h"

#include <numeric>

#include "device.h"

namespace lec7::test {
namespace {

using namespace cuda;

// Sums of windows of 4 floats per thread over tiles that arrive two steps ahead, in a ring of three.
__global__ void pipeline_kernel(int tiles, const float* x, float* y) {
  LEC7_SHARED(ring, float[3][256]);
  const unsigned t = threadIdx.x;
  const auto begin = [&](int tile) {
    if (tile < tiles) copy_async16(&ring[tile % 3][4 * t], x + 256 * tile + 4 * t);
    commit_copies();
  };
  begin(0);
  begin(1);
  float sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies<1>();
    __syncthreads();
    begin(tile + 2);
    for (int i = 0; i < 4; ++i) sum += ring[tile % 3][(64 * i + t * 5) % 256];
  }
  wait_for_copies<0>();
  y[t] = sum;
}

TEST(copies_arrive_group_by_group) {
  for (const int tiles : {1, 2, 3, 8}) {
    const Trying scope(text("tiles=", tiles));
    in_several_orders([&] {
      const std::vector<float> x = random_floats(256 * 8, 1);
      Device<float> from(x), to(64);
      launch("pipeline_kernel", pipeline_kernel, {1, 64}, tiles, static_cast<const float*>(from.data()), to.data());
      const std::vector<float> y = to.host();
      for (int t = 0; t < 64; ++t) {
        float sum = 0;
        for (int tile = 0; tile < tiles; ++tile) {
          for (int i = 0; i < 4; ++i) sum += x[static_cast<std::size_t>(256 * tile + (64 * i + t * 5) % 256)];
        }
        check_equal(y[static_cast<std::size_t>(t)], sum);
      }
    });
  }
}

__global__ void parts_kernel(int bytes, const float* x, float* y) {
  LEC7_SHARED(tile, float[32][4]);
  LEC7_SHARED(single, float[32]);
  const unsigned t = threadIdx.x;
  copy_async16(tile[t], x + 4 * t, bytes);
  copy_async4(&single[t], x + t, t % 3 != 0);
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) y[5 * t + i] = tile[31 - t][i];
  y[5 * t + 4] = single[31 - t];
}

TEST(what_is_not_read_is_zero) {
  for (const int bytes : {0, 4, 8, 12, 16}) {
    const Trying scope(text("bytes=", bytes));
    in_several_orders([&] {
      std::vector<float> x(128);
      std::iota(x.begin(), x.end(), 1.0f);
      Device<float> from(x), to(5 * 32);
      launch("parts_kernel", parts_kernel, {1, 32}, bytes, static_cast<const float*>(from.data()), to.data());
      const std::vector<float> y = to.host();
      for (int t = 0; t < 32; ++t) {
        const int source = 31 - t;
        for (int i = 0; i < 4; ++i) {
          check_equal(y[static_cast<std::size_t>(5 * t + i)],
                      4 * i < bytes ? x[static_cast<std::size_t>(4 * source + i)] : 0.0f);
        }
        check_equal(y[static_cast<std::size_t>(5 * t + 4)],
                    source % 3 != 0 ? x[static_cast<std::size_t>(source)] : 0.0f);
      }
    });
  }
}

}  // namespace
}  // namespace lec7::test
