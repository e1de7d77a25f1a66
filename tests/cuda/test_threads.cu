// Threads of a block and of a grid: indices, shared memory, barriers, atomics.
#include <numeric>

#include "device.h"

namespace lec7::test {
namespace {

using namespace cuda;

struct Seen {
  uint3 thread, block;
  dim3 size, grid;
};

__global__ void note_indices_kernel(Seen* seen) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  seen[block * blockDim.x * blockDim.y * blockDim.z + thread] = {threadIdx, blockIdx, blockDim, gridDim};
}

TEST(every_thread_of_every_block_runs_once_with_its_indices) {
  in_several_orders([] {
    const dim3 grid(3, 2, 2), block(5, 3, 2);
    Device<Seen> seen(12 * 30);
    launch("note_indices_kernel", note_indices_kernel, {grid, block}, seen.data());
    const std::vector<Seen> all = seen.host();
    for (unsigned i = 0; i < all.size(); ++i) {
      const auto [t, b, size, blocks] = all[i];
      CHECK(t.x < 5 && t.y < 3 && t.z < 2 && t.x + 5 * (t.y + 3 * t.z) == i % 30);
      CHECK(b.x < 3 && b.y < 2 && b.z < 2 && b.x + 3 * (b.y + 2 * b.z) == i / 30);
      CHECK(size.x == 5 && size.y == 3 && size.z == 2 && blocks.x == 3 && blocks.y == 2 && blocks.z == 2);
    }
  });
}

// x of each block, reversed, through static and dynamic shared memory, again and again.
__global__ void reverse_kernel(int rounds, const int* x, int* y) {
  LEC7_SHARED(still, int[1024]);
  LEC7_DYNAMIC_SHARED(moving, int);
  const unsigned t = threadIdx.x, n = blockDim.x;
  still[t] = x[blockIdx.x * n + t];
  __syncthreads();
  for (int round = 0; round < rounds; ++round) {
    moving[t] = still[n - 1 - t];
    __syncthreads();
    still[t] = moving[t] + 1;
    __syncthreads();
  }
  y[blockIdx.x * n + t] = still[n - 1 - t];
}

TEST(barriers_order_what_threads_write_to_shared_memory) {
  for (const unsigned n : {1u, 31u, 32u, 33u, 256u, 1024u}) {
    const Trying scope(text("threads=", n));
    in_several_orders([&] {
      std::vector<int> x(4 * n);
      std::iota(x.begin(), x.end(), 0);
      Device<int> from(x), to(4 * n);
      launch("reverse_kernel", reverse_kernel, {4, n, n * sizeof(int)}, 7, from.data(), to.data());
      const std::vector<int> y = to.host();
      for (unsigned i = 0; i < 4 * n; ++i) check_equal(y[i], x[i] + 7);  // turned eight times
    });
  }
}

__global__ void many_arrays_kernel(float* y) {
  LEC7_SHARED(one, float);
  LEC7_SHARED(some, double[3][5]);
  LEC7_SHARED(wide, float4[4]);
  LEC7_DYNAMIC_SHARED(rest, float4);
  if (threadIdx.x == 0) {
    one = 1;
    for (auto& row : some) {
      for (double& value : row) value = 2;
    }
    for (float4& value : wide) value = {3, 3, 3, 3};
    for (int i = 0; i < 6; ++i) rest[i] = {4, 4, 4, 4};
  }
  __syncthreads();
  float sum = one;
  for (const auto& row : some) {
    for (const double value : row) sum += static_cast<float>(value);
  }
  for (const float4& value : wide) sum += value.x + value.w;
  for (int i = 0; i < 6; ++i) sum += rest[i].y;
  y[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

TEST(shared_arrays_of_one_block_are_apart_and_aligned) {
  in_several_orders([] {
    Device<float> y(6 * 40);
    launch("many_arrays_kernel", many_arrays_kernel, {6, 40, 6 * sizeof(float4)}, y.data());
    for (const float sum : y.host()) check_equal(sum, 1.0f + 30 + 24 + 24);
  });
}

__global__ void count_kernel(int* total, unsigned* bits) {
  atomicAdd(total, static_cast<int>(threadIdx.x) - 10);
  atomicAdd(bits, 1u);
}

TEST(atomics_count_every_thread) {
  in_several_orders([] {
    Device<int> total(std::vector<int>{5});
    Device<unsigned> bits(std::vector<unsigned>{7});
    launch("count_kernel", count_kernel, {9, 100}, total.data(), bits.data());
    check_equal(total.host()[0], 5 + 9 * (4950 - 1000));
    check_equal(bits.host()[0], 7u + 900);
  });
}

TEST(a_grid_without_blocks_runs_nothing) {
  Device<int> total(std::vector<int>{5});
  Device<unsigned> bits(std::vector<unsigned>{7});
  launch("count_kernel", count_kernel, {0, 100}, total.data(), bits.data());
  check_equal(total.host()[0], 5);
}

TEST(a_launch_that_no_gpu_runs_is_refused_with_the_kernels_name) {
  Device<int> x(1);
  const auto refused = [&](const Grid& grid, const char* why) {
    const std::string message = thrown<std::runtime_error>(
        [&] { launch("reverse_kernel", reverse_kernel, grid, 1, static_cast<const int*>(x.data()), x.data()); });
    const Trying scope(message);
    CHECK(message.find("reverse_kernel") != std::string::npos && message.find(why) != std::string::npos);
  };
  refused({dim3(1, 65536), 32}, "(2147483647, 65535, 65535)");
  refused({dim3(1, 1, 65536), 32}, "(2147483647, 65535, 65535)");
  refused({1, 1025}, "invalid configuration");
  refused({1, dim3(1, 1, 65)}, "invalid configuration");
  refused({1, 32, std::size_t{300} << 10}, "invalid argument");
}

}  // namespace
}  // namespace lec7::test
