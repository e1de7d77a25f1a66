// What the host finds in kernels that are wrong: each bug is planted, and must be caught with the place and the thread.
// Some need a sanitizer to be found; what the plain build says of them is checked too.
#include "planted.h"

#include <cmath>
#include <cstdio>

#include "async_copy.h"
#include "device.h"
#include "grid.h"
#include "mma.h"

namespace lec7::test {
namespace {

using namespace cuda;

std::string at(unsigned line) { return "test_planted.cpp:" + std::to_string(line); }

// Without a sanitizer a wrong result is what shows the bug; the process says so and fails.
[[noreturn]] void wrong_result() {
  std::fprintf(stderr, "the result is wrong\n");
  std::exit(1);
}
void expect_race(const std::string& name, unsigned line, bool shows_in_results) {
  if (kThreadSanitizer) expect_caught(name, {"ThreadSanitizer: data race", at(line)});
  else if (shows_in_results) expect_caught(name, {"the result is wrong"});
}
void expect_outside(const std::string& name, unsigned line, const std::string& without_sanitizer) {
  if (kAddressSanitizer) expect_caught(name, {"AddressSanitizer", at(line)});
  else if (!kThreadSanitizer) expect_caught(name, {without_sanitizer});
}

// ---- races ----

constexpr unsigned kNeighborLine = __LINE__ + 4;
__global__ void removed_barrier_kernel(float* y) {
  LEC7_SHARED(values, float[64]);
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  y[threadIdx.x] = values[(threadIdx.x + 1) % 64];  // a __syncthreads() is missing before
}

PLANT(removed_barrier) {
  host::schedule() = {1, true, 1};
  Device<float> y(64);
  launch("removed_barrier_kernel", removed_barrier_kernel, {1, 64}, y.data());
  for (const float value : y.host()) {
    if (std::isnan(value)) wrong_result();
  }
}
TEST(a_removed_barrier) { expect_race("removed_barrier", kNeighborLine, true); }

// The barrier that protects a tile from the next round's writers.
constexpr unsigned kOverwriteLine = __LINE__ + 5;
__global__ void removed_second_barrier_kernel(float* y) {
  LEC7_SHARED(values, float[64]);
  float sum = 0;
  for (int round = 0; round < 4; ++round) {
    values[threadIdx.x] = static_cast<float>(round);
    __syncthreads();
    sum += values[63 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}

PLANT(removed_second_barrier) {
  host::schedule() = {1, true, 1};
  Device<float> y(64);
  launch("removed_second_barrier_kernel", removed_second_barrier_kernel, {1, 64}, y.data());
  if (y.host() != std::vector<float>(64, 6.0f)) wrong_result();
}
TEST(a_removed_barrier_at_the_end_of_a_loop) { expect_race("removed_second_barrier", kOverwriteLine, true); }

constexpr unsigned kLaneLine = __LINE__ + 6;
__global__ void removed_warp_barrier_kernel(float* y) {
  LEC7_SHARED(values, float[32]);
  const float x = static_cast<float>(threadIdx.x);
  values[threadIdx.x] = x;
  const float other = __shfl_xor_sync(~0u, x, 1);  // orders no accesses to memory
  y[threadIdx.x] = values[threadIdx.x ^ 2] + other;
}

PLANT(removed_warp_barrier) {
  Device<float> y(32);
  launch("removed_warp_barrier_kernel", removed_warp_barrier_kernel, {1, 32}, y.data());
}
TEST(a_shuffle_in_place_of_a_warps_barrier) { expect_race("removed_warp_barrier", kLaneLine, false); }

constexpr unsigned kBlocksLine = __LINE__ + 2;
__global__ void blocks_race_kernel(float* y) {
  if (threadIdx.x == 0) *y += static_cast<float>(blockIdx.x);
}

PLANT(blocks_race) {
  host::schedule() = {2, false, 1};
  Device<float> y(std::vector<float>{0});
  launch("blocks_race_kernel", blocks_race_kernel, {2, 32}, y.data());
}
TEST(a_race_between_two_blocks) { expect_race("blocks_race", kBlocksLine, false); }

constexpr unsigned kGridLine = __LINE__ + 4;
__global__ void removed_grid_barrier_kernel(float* x, float* y) {
  x[blockIdx.x] = 1;
  __syncthreads();
  y[blockIdx.x] = x[(blockIdx.x + 1) % gridDim.x];
}

PLANT(removed_grid_barrier) {
  Device<float> x(4), y(4);
  launch("removed_grid_barrier_kernel", removed_grid_barrier_kernel, {4, 1, 0, true}, x.data(), y.data());
  for (const float value : y.host()) {
    if (std::isnan(value)) wrong_result();
  }
}
TEST(a_removed_barrier_of_the_grid) { expect_race("removed_grid_barrier", kGridLine, true); }

// ---- accesses outside ----

constexpr unsigned kStaticLine = __LINE__ + 4;
__global__ void static_overrun_kernel(float* y) {
  LEC7_SHARED(values, float[64]);
  LEC7_SHARED(others, float[64]);
  (&values[0])[threadIdx.x + 1] = 1;
  others[threadIdx.x] = 2;
  __syncthreads();
  y[threadIdx.x] = values[63 - threadIdx.x] + others[threadIdx.x];
}

PLANT(static_overrun) {
  Device<float> y(64);
  launch("static_overrun_kernel", static_overrun_kernel, {1, 64}, y.data());
}
TEST(a_write_beyond_a_static_shared_array) {
  expect_outside(
      "static_overrun", kStaticLine,
      "static_overrun_kernel: block (0, 0, 0), thread (0, 0, 0) or another thread of its block wrote outside");
}

constexpr unsigned kDynamicLine = __LINE__ + 3;
__global__ void dynamic_overrun_kernel(float* y) {
  LEC7_DYNAMIC_SHARED(values, float);
  values[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = values[63 - threadIdx.x];
}

PLANT(dynamic_overrun) {
  Device<float> y(64);
  launch("dynamic_overrun_kernel", dynamic_overrun_kernel, {1, 64, 63 * sizeof(float)}, y.data());
}
TEST(a_write_beyond_dynamic_shared_memory) {
  expect_outside("dynamic_overrun", kDynamicLine, "wrote outside an array");
}

constexpr unsigned kBeforeLine = __LINE__ + 5;
__global__ void read_before_kernel(float* y) {
  LEC7_SHARED(values, float[64]);
  values[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = (&values[0])[static_cast<int>(threadIdx.x) - 1];
}

PLANT(read_before) {
  Device<float> y(64);
  launch("read_before_kernel", read_before_kernel, {1, 64}, y.data());
  if (std::isnan(y.host()[0])) wrong_result();
}
TEST(a_read_before_a_shared_array) { expect_outside("read_before", kBeforeLine, "the result is wrong"); }

constexpr unsigned kGlobalLine = __LINE__ + 1;
__global__ void global_overrun_kernel(float* y) { y[threadIdx.x] = 1; }

PLANT(global_overrun) {
  Device<float> y(63);
  launch("global_overrun_kernel", global_overrun_kernel, {1, 64}, y.data());
}
TEST(a_write_beyond_an_array_of_the_device) {
  expect_outside("global_overrun", kGlobalLine, "wrote beyond the end of 252 bytes");
}

__global__ void too_much_shared_kernel(float* y) {
  LEC7_SHARED(one, float[8000]);
  LEC7_SHARED(two, float[8000]);
  one[threadIdx.x] = two[threadIdx.x] = 1;
  y[threadIdx.x] = one[threadIdx.x] + two[threadIdx.x];
}

PLANT(too_much_shared) {
  Device<float> y(1);
  launch("too_much_shared_kernel", too_much_shared_kernel, {1, 1}, y.data());
}
TEST(more_static_shared_memory_than_a_block_can_have) {
  expect_caught("too_much_shared", {"too_much_shared_kernel", "has more than 48 KiB of static shared memory"});
}

__global__ void no_dynamic_kernel(float* y) {
  LEC7_DYNAMIC_SHARED(values, float);
  *y = values[0];
}

PLANT(no_dynamic) {
  Device<float> y(1);
  launch("no_dynamic_kernel", no_dynamic_kernel, {1, 1}, y.data());
}
TEST(dynamic_shared_memory_that_was_not_asked_for) {
  expect_caught("no_dynamic", {"no_dynamic_kernel", "uses dynamic shared memory that its launch does not have"});
}

__global__ void deep_kernel(int depth, float* y) {
  float frame[4096];
  for (float& value : frame) value = y[0];
  for (int i = 0; i < depth; ++i) frame[i % 4096] += frame[(i * 7) % 4096];
  if (depth > 0) deep_kernel(depth - 1, y);
  y[0] += frame[depth % 4096];
}

PLANT(deep) {
  Device<float> y(1);
  launch("deep_kernel", deep_kernel, {1, 1}, 1000, y.data());
}
TEST(a_stack_that_overflows) { expect_caught("deep", {}); }

// ---- asynchronous copies ----

constexpr unsigned kWaitLine = __LINE__ + 6;
__global__ void missing_wait_kernel(const float* x, float* y) {
  LEC7_SHARED(tile, float[128]);
  copy_async16(&tile[4 * threadIdx.x], x + 4 * threadIdx.x);
  commit_copies();
  __syncthreads();  // but no wait
  y[threadIdx.x] = tile[threadIdx.x];
  wait_for_copies<0>();
}

template <class Kernel>
void copy_plant(Kernel* kernel) {
  Device<float> x(random_floats(256, 1)), y(32);
  launch("copy_kernel", kernel, {1, 32}, static_cast<const float*>(x.data()), y.data());
  for (const float value : y.host()) {
    if (std::isnan(value)) wrong_result();
  }
}
PLANT(missing_wait) { copy_plant(missing_wait_kernel); }
TEST(a_missing_wait_for_a_copy) { expect_outside("missing_wait", kWaitLine, "the result is wrong"); }

constexpr unsigned kGroupLine = __LINE__ + 9;
__global__ void wrong_group_kernel(const float* x, float* y) {
  LEC7_SHARED(tiles, float[2][128]);
  for (int i = 0; i < 2; ++i) {
    copy_async16(&tiles[i][4 * threadIdx.x], x + 128 * i + 4 * threadIdx.x);
    commit_copies();
  }
  wait_for_copies<1>();
  __syncthreads();
  y[threadIdx.x] = tiles[1][threadIdx.x];  // tile 0 has arrived
  wait_for_copies<0>();
}
PLANT(wrong_group) { copy_plant(wrong_group_kernel); }
TEST(a_wait_for_another_group) { expect_outside("wrong_group", kGroupLine, "the result is wrong"); }

// Its own copies a thread has waited for; the others' only after the barrier.
constexpr unsigned kOthersLine = __LINE__ + 6;
__global__ void wait_without_barrier_kernel(const float* x, float* y) {
  LEC7_SHARED(tile, float[128]);
  copy_async16(&tile[4 * threadIdx.x], x + 4 * threadIdx.x);
  commit_copies();
  wait_for_copies<0>();
  y[threadIdx.x] = tile[127 - 4 * threadIdx.x];
}
PLANT(wait_without_barrier) { copy_plant(wait_without_barrier_kernel); }
TEST(a_wait_without_a_barrier) { expect_race("wait_without_barrier", kOthersLine, true); }

constexpr unsigned kReturnLine = __LINE__ + 3;
__global__ void return_while_copying_kernel(const float* x, float* y) {
  LEC7_SHARED(tile, float[128]);
  copy_async16(&tile[4 * threadIdx.x], x + 4 * threadIdx.x);
  commit_copies();
  y[threadIdx.x] = x[threadIdx.x];
}
PLANT(return_while_copying) { copy_plant(return_while_copying_kernel); }
TEST(a_thread_that_returns_while_it_copies) {
  expect_caught("return_while_copying", {at(kReturnLine), "copy_kernel: block (0, 0, 0), thread (0, 0, 0)",
                                         "returned before it waited for its copies"});
}

constexpr unsigned kMisalignedLine = __LINE__ + 3;
__global__ void misaligned_copy_kernel(const float* x, float* y) {
  LEC7_SHARED(tile, float[128]);
  copy_async16(&tile[4 * threadIdx.x], x + 4 * threadIdx.x + 1);
  commit_copies();
  wait_for_copies<0>();
  y[threadIdx.x] = tile[4 * threadIdx.x];
}
PLANT(misaligned_copy) { copy_plant(misaligned_copy_kernel); }
TEST(a_copy_of_16_bytes_from_another_address) {
  expect_caught("misaligned_copy", {at(kMisalignedLine), "not aligned"});
}

// ---- barriers ----

constexpr unsigned kDivergentLine = __LINE__ + 3;
__global__ void divergent_barrier_kernel(float* y) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 1;
}

PLANT(divergent_barrier) {
  Device<float> y(64);
  launch("divergent_barrier_kernel", divergent_barrier_kernel, {1, 64}, y.data());
}
TEST(threads_of_a_block_at_different_barriers) {
  expect_caught("divergent_barrier",
                {at(kDivergentLine + 2) + ": divergent_barrier_kernel: block (0, 0, 0), thread (32, 0, 0)",
                 "meets another barrier than the threads that wait at", at(kDivergentLine)});
}

constexpr unsigned kNeverLine = __LINE__ + 2;
__global__ void some_at_a_barrier_kernel(float* y) {
  if (threadIdx.x % 2 == 1) __syncthreads();
  y[threadIdx.x] = 1;
}

PLANT(some_at_a_barrier) {
  Device<float> y(2 * 64);
  launch("some_at_a_barrier_kernel", some_at_a_barrier_kernel, {2, dim3(4, 16)}, y.data());
}
TEST(a_thread_that_returned_before_a_barrier) {
  expect_caught("some_at_a_barrier", {at(kNeverLine), "some_at_a_barrier_kernel: block (0, 0, 0), thread (1, 0, 0)",
                                      "waits at a barrier after a thread of its block returned"});
}

constexpr unsigned kOthersNeverLine = __LINE__ + 2;
__global__ void returned_later_kernel(float* y) {
  if (threadIdx.x % 2 == 0) __syncthreads();
  y[threadIdx.x] = 1;
}

PLANT(returned_later) {
  Device<float> y(64);
  launch("returned_later_kernel", returned_later_kernel, {1, 64}, y.data());
}
TEST(a_barrier_that_others_never_reach) {
  expect_caught("returned_later", {at(kOthersNeverLine), "waits at a barrier"});
}

constexpr unsigned kNotCooperativeLine = __LINE__ + 1;
__global__ void not_cooperative_kernel() { sync_grid(); }

PLANT(not_cooperative) { launch("not_cooperative_kernel", not_cooperative_kernel, {2, 32}); }
TEST(a_grids_barrier_in_an_ordinary_launch) {
  expect_caught("not_cooperative", {at(kNotCooperativeLine), "in a launch that is not cooperative"});
}

// ---- operations of a warp ----

template <class Kernel>
void warp_plant(Kernel* kernel, unsigned threads = 32) {
  Device<float> y(64);
  launch("warp_kernel", kernel, {1, threads}, y.data());
}

constexpr unsigned kOwnLaneLine = __LINE__ + 1;
__global__ void without_own_lane_kernel(float* y) { y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 0); }
PLANT(without_own_lane) { warp_plant(without_own_lane_kernel); }
TEST(a_mask_without_the_callers_lane) {
  expect_caught("without_own_lane", {at(kOwnLaneLine), "warp_kernel: block (0, 0, 0), thread (16, 0, 0)",
                                     "with a mask without its own lane"});
}

constexpr unsigned kMasksLine = __LINE__ + 2;
__global__ void different_masks_kernel(float* y) {
  y[threadIdx.x] = __shfl_sync(threadIdx.x < 16 ? ~0u : 0xffff0001u, 1.0f, 16);
}
PLANT(different_masks) { warp_plant(different_masks_kernel); }
TEST(lanes_with_different_masks) {
  expect_caught("different_masks",
                {at(kMasksLine), "thread (16, 0, 0)", "with another mask than the lanes that wait at"});
}

constexpr unsigned kLanesNeverLine = __LINE__ + 2;
__global__ void lanes_never_come_kernel(float* y) {
  if (threadIdx.x < 20) y[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}
PLANT(lanes_never_come) { warp_plant(lanes_never_come_kernel); }
TEST(a_mask_that_names_lanes_that_never_come) {
  expect_caught("lanes_never_come", {at(kLanesNeverLine), "waits in a warp operation for lanes of its mask"});
}

constexpr unsigned kOutsideLine = __LINE__ + 2;
__global__ void lane_outside_kernel(float* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 20);
}
PLANT(lane_outside) { warp_plant(lane_outside_kernel); }
TEST(a_shuffle_from_a_lane_outside_its_mask) {
  expect_caught("lane_outside", {at(kOutsideLine), "thread (15, 0, 0)", "reads a lane that takes no part"});
}

constexpr unsigned kDivergentShuffleLine = __LINE__ + 3;
__global__ void divergent_shuffle_kernel(float* y) {
  if (threadIdx.x < 16) {
    y[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
  } else {
    y[threadIdx.x] = __shfl_xor_sync(~0u, 2.0f, 1);
  }
}
PLANT(divergent_shuffle) { warp_plant(divergent_shuffle_kernel); }
TEST(lanes_of_one_mask_at_different_lines) {
  expect_caught("divergent_shuffle", {at(kDivergentShuffleLine + 2), "at another line than the lanes that wait at",
                                      at(kDivergentShuffleLine)});
}

// ---- tensor cores ----

constexpr unsigned kNotRoundedLine = __LINE__ + 5;
__global__ void not_rounded_kernel(float* y) {
  float d[4] = {};
  const float a[4] = {1, 1, 1, 1.0f / 3};
  const float b[2] = {1, 1};
  mma_tf32(d, a, b);
  y[threadIdx.x] = d[0];
}
PLANT(not_rounded) { warp_plant(not_rounded_kernel); }
TEST(operands_that_are_not_rounded_to_tf32) {
  expect_caught("not_rounded", {at(kNotRoundedLine), "not rounded to tf32"});
}

constexpr unsigned kPartOfAWarpLine = __LINE__ + 4;
__global__ void part_of_a_warp_kernel(float* y) {
  float d[4] = {};
  const unsigned a[4] = {}, b[2] = {};
  mma_bf16(d, a, b);
  y[threadIdx.x] = d[0];
}
PLANT(part_of_a_warp) { warp_plant(part_of_a_warp_kernel, 40); }
TEST(a_matrix_product_by_part_of_a_warp) {
  expect_caught("part_of_a_warp", {at(kPartOfAWarpLine), "thread (39, 0, 0)", "needs all 32 lanes"});
}

constexpr unsigned kRowLine = __LINE__ + 6;
__global__ void misaligned_row_kernel(float* y) {
  LEC7_SHARED(tile, float[32][5]);
  for (float& value : tile[threadIdx.x]) value = 1;
  __syncwarp();
  unsigned r[4];
  load_matrices(r, tile[threadIdx.x]);
  y[threadIdx.x] = __int_as_float(static_cast<int>(r[0]));
}
PLANT(misaligned_row) { warp_plant(misaligned_row_kernel); }
TEST(a_matrix_row_that_is_not_aligned) { expect_caught("misaligned_row", {at(kRowLine), "not 16-byte aligned"}); }

}  // namespace
}  // namespace lec7::test
