// What the host takes for CUDA's threads (cuda/host): a switch at a barrier or a shuffle, a thread without one, a
// kernel that computes.
#include <benchmark/benchmark.h>

#include <vector>

#include "kernel.h"
#include "mma.h"

namespace lec7::bench {
namespace {

using namespace cuda;

constexpr int kTimes = 100;
float results[256];

__global__ void barrier_kernel() {
  for (int i = 0; i < kTimes; ++i) __syncthreads();
}
__global__ void shuffle_kernel(float* y) {
  float x = 1;
  for (int i = 0; i < kTimes; ++i) x += __shfl_xor_sync(~0u, x, 1);
  y[threadIdx.x] = x;
}
__global__ void mma_kernel(float* y) {
  float d[4] = {};
  const float a[4] = {1, 2, 3, 4}, b[2] = {5, 6};
  for (int i = 0; i < kTimes; ++i) mma_tf32(d, a, b);
  y[threadIdx.x] = d[0];
}
__global__ void thread_kernel(float* y) { y[threadIdx.x] = 1; }

// 64 x 64 of c for each block, 4 x 4 for each thread.
constexpr int kSize = 512;
__global__ void matmul_kernel(const float* a, const float* b, float* c) {
  LEC7_SHARED(a_tile, float[16][64]);
  LEC7_SHARED(b_tile, float[16][64]);
  const int t = static_cast<int>(threadIdx.x), i0 = static_cast<int>(blockIdx.y) * 64,
            j0 = static_cast<int>(blockIdx.x) * 64;
  float sums[4][4] = {};
  for (int k0 = 0; k0 < kSize; k0 += 16) {
    for (int e = t; e < 1024; e += 256) {
      a_tile[e % 16][e / 16] = a[(i0 + e / 16) * kSize + k0 + e % 16];
      b_tile[e / 64][e % 64] = b[(k0 + e / 64) * kSize + j0 + e % 64];
    }
    __syncthreads();
    for (int k = 0; k < 16; ++k) {
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) sums[i][j] += a_tile[k][t / 16 * 4 + i] * b_tile[k][t % 16 * 4 + j];
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) c[(i0 + t / 16 * 4 + i) * kSize + j0 + t % 16 * 4 + j] = sums[i][j];
  }
}

// The time is that of one operation of one thread.
template <class... Parameters, class... Arguments>
void measure(benchmark::State& state, int operations, void (*kernel)(Parameters...), Arguments... arguments) {
  host::schedule() = {1, state.range(0) != 0, 1};
  constexpr unsigned kBlocks = 40, kThreads = 256;
  for (auto _ : state) launch("kernel", kernel, {kBlocks, kThreads}, arguments...);
  state.counters["each"] =
      benchmark::Counter(double{kBlocks} * kThreads * operations,
                         benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  host::schedule() = {};
}

void barrier(benchmark::State& state) { measure(state, kTimes, barrier_kernel); }
void shuffle(benchmark::State& state) { measure(state, kTimes, shuffle_kernel, results); }
void mma(benchmark::State& state) { measure(state, kTimes, mma_kernel, results); }
void thread(benchmark::State& state) { measure(state, 1, thread_kernel, results); }
void matmul(benchmark::State& state) {
  host::schedule() = {1, state.range(0) != 0, 1};
  std::vector<float> a(kSize * kSize, 1), b(a), c(a);
  for (auto _ : state) {
    launch("matmul_kernel", matmul_kernel, {dim3(kSize / 64, kSize / 64), 256}, a.data(), b.data(), c.data());
  }
  host::schedule() = {};
}

BENCHMARK(barrier)->ArgName("shuffled")->Arg(0)->Arg(1);
BENCHMARK(shuffle)->ArgName("shuffled")->Arg(0)->Arg(1);
BENCHMARK(mma)->ArgName("shuffled")->Arg(0)->Arg(1);
BENCHMARK(thread)->ArgName("shuffled")->Arg(0)->Arg(1);
BENCHMARK(matmul)->ArgName("shuffled")->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace lec7::bench

BENCHMARK_MAIN();
