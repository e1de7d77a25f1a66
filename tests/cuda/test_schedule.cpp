// The host's schedules: orders differ from seed to seed, and repeat for the same seed; memory that nobody wrote is NaN.
#include <atomic>
#include <cmath>
#include <set>
#include <thread>

#include "arrays.h"
#include "device.h"

namespace lec7::test {
namespace {

using namespace cuda;

__global__ void note_order_kernel(int* count, int* order) {
  order[atomicAdd(count, 1)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  __syncthreads();
  order[atomicAdd(count, 1)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

std::vector<int> order_of(const host::Schedule& schedule) {
  host::schedule() = schedule;
  Device<int> count(std::vector<int>{0}), order(6 * 40 * 2);
  launch("note_order_kernel", note_order_kernel, {6, 40}, count.data(), order.data());
  host::schedule() = {};
  return order.host();
}

TEST(threads_run_in_order_unless_they_are_shuffled) {
  const std::vector<int> plain = order_of({1, false, 1});
  for (int i = 0; i < 480; ++i) {
    const int block = i / 80, thread = i % 40;
    if (i % 80 < 40) check_equal(plain[static_cast<std::size_t>(i)], 40 * block + thread);
  }
  std::set<std::vector<int>> orders;
  for (const std::uint64_t seed : {1u, 2u, 3u, 4u, 5u}) {
    const std::vector<int> shuffled = order_of({1, true, seed});
    CHECK(shuffled == order_of({1, true, seed}));
    orders.insert(shuffled);
    // Each thread twice.
    const std::multiset<int> threads(shuffled.begin(), shuffled.end());
    for (int i = 0; i < 240; ++i) check_equal(threads.count(i), 2u);
  }
  check_equal(orders.size(), 5u);
  CHECK(orders.count(plain) == 0);
}

__global__ void note_worker_kernel(std::thread::id* ids) {
  if (threadIdx.x == 0) ids[blockIdx.x] = std::this_thread::get_id();
}

TEST(blocks_are_shared_out_among_workers) {
  host::schedule() = {3, false, 1};
  std::set<std::thread::id> workers;
  for (int attempt = 0; attempt < 1000 && workers.size() < 2; ++attempt) {
    Device<std::thread::id> ids(600);
    launch("note_worker_kernel", note_worker_kernel, {600, 64}, ids.data());
    const std::vector<std::thread::id> all = ids.host();
    workers = std::set<std::thread::id>(all.begin(), all.end());
  }
  host::schedule() = {};
  CHECK(workers.size() >= 2 && workers.size() <= 3);
}

__global__ void increment_kernel(int* x) {
  LEC7_SHARED(values, int[64]);
  values[63 - threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = values[63 - threadIdx.x] + 1;
}

TEST(several_host_threads_launch_at_the_same_time) {
  host::schedule() = {2, true, 1};
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&right] {
      Device<int> x(std::vector<int>(64, 0));
      for (int round = 0; round < 20; ++round) launch("increment_kernel", increment_kernel, {1, 64}, x.data());
      right += x.host() == std::vector<int>(64, 20);
    });
  }
  for (std::thread& thread : threads) thread.join();
  host::schedule() = {};
  check_equal(right.load(), 4);
}

__global__ void read_unwritten_kernel(float* y) {
  LEC7_SHARED(values, float[2]);
  LEC7_DYNAMIC_SHARED(more, float);
  if (blockIdx.x == 0) values[0] = more[0] = 1;  // which block 1 must not see
  y[3 * blockIdx.x] = values[0];
  y[3 * blockIdx.x + 1] = values[1];
  y[3 * blockIdx.x + 2] = more[0];
}

TEST(memory_that_nobody_wrote_is_nan) {
  Device<float> fresh(5);
  for (const float value : fresh.host()) CHECK(std::isnan(value));
  Device<float> y(6);
  launch("read_unwritten_kernel", read_unwritten_kernel, {2, 1, 8}, y.data());
  const std::vector<float> values = y.host();
  for (int i = 0; i < 6; ++i) CHECK(std::isnan(values[static_cast<std::size_t>(i)]) == (i != 0 && i != 2));
}

TEST(memory_that_is_freed_comes_back_as_nan) {
  for (int i = 0; i < 5; ++i) {
    Device<float> x(1000);
    for (const float value : x.host()) CHECK(std::isnan(value));
    fill_words(x.data(), 0, 1000);
  }
}

}  // namespace
}  // namespace lec7::test
