// Times between CUDA events, around as many calls as take 5 ms: the GPU's own time, or the host's where it launches
// slower than the GPU computes. Calls repeat on the same arrays, so those that fit in L2 are there already.
#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "bench.h"

namespace lec7::bench {
namespace {

constexpr double kBlock = 5e-3;  // seconds
constexpr Index kMost = 1000;    // calls

double flops_peak = 0, bandwidth_peak = 0;  // FLOP/s, bytes/s

class Event {
 public:
  Event() { cuda::check(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record() { cuda::check(cudaEventRecord(event_, cuda::current_stream()), "cudaEventRecord"); }
  double seconds_since(const Event& start) const {
    float milliseconds = 0;
    cuda::check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "cudaEventElapsedTime");
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_;
};

double seconds(Index calls, const std::function<void()>& body) {
  Event start, stop;
  start.record();
  for (Index i = 0; i < calls; ++i) body();
  stop.record();
  cuda::synchronize();
  return stop.seconds_since(start);
}

}  // namespace

void measure(benchmark::State& state, const Work& work, const std::function<void()>& body) {
  body();  // the kernels loaded, the pool filled
  cuda::synchronize();
  const double estimate = std::max(seconds(1, body), kBlock / kMost);
  const Index calls = std::max<Index>(1, static_cast<Index>(kBlock / estimate));
  double total = 0;
  while (state.KeepRunningBatch(calls)) {
    const double block = seconds(calls, body);
    state.SetIterationTime(block);
    total += block;
  }
  const double each = total / static_cast<double>(state.iterations());
  if (work.flops > 0) state.counters["GFLOP/s"] = work.flops / each / 1e9;
  state.counters["GB/s"] = work.bytes / each / 1e9;
  // A floor is the least time that the peaks allow.
  state.counters["%floor"] = 100 * std::max(work.flops / flops_peak, work.bytes / bandwidth_peak) / each;
}

void copy_in(void* to, const void* from, std::size_t bytes) {
  cuda::copy_to_device(to, from, bytes);
  cuda::synchronize();
}

void configure(benchmark::internal::Benchmark& benchmark) { benchmark.UseManualTime(); }

void prepare() {
  if (cuda::device_count() == 0) throw std::runtime_error("bench_cuda: there is no NVIDIA GPU with a driver here");
  const char* const wanted = std::getenv("LEC7_TF32");
  const bool tf32 = wanted != nullptr && *wanted == '1';
  cuda::set_allow_tf32(tf32);
  const cuda::Peaks peaks = cuda::peaks();
  flops_peak = tf32 && peaks.tf32 > 0 ? peaks.tf32 : peaks.float32;
  bandwidth_peak = peaks.bandwidth;
  cudaDeviceProp device;
  cuda::check(cudaGetDeviceProperties(&device, cuda::current_device()), "cudaGetDeviceProperties");
  benchmark::AddCustomContext("gpu", device.name);
  benchmark::AddCustomContext("tf32", tf32 ? "yes" : "no");
  benchmark::AddCustomContext("peak_gflops", std::to_string(flops_peak / 1e9));
  benchmark::AddCustomContext("peak_gb_per_second", std::to_string(bandwidth_peak / 1e9));
}

}  // namespace lec7::bench
