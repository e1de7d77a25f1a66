// Times between CUDA events, around as many calls as take 5 ms: the GPU's own time, or the host's where it launches
// slower than the GPU computes. Calls repeat on the same arrays, so those that fit in L2 are there already.
#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "arrays.h"
#include "bench.h"

namespace lec7::bench {
namespace {

constexpr double kBlock = 5e-3;  // seconds
constexpr Index kMost = 1000;    // calls

double flops_peak = 0, half_peak = 0, bandwidth_peak = 0;  // FLOP/s, bytes/s

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
  const double arithmetic = work.flops / (work.half ? half_peak : flops_peak);
  state.counters["%floor"] = 100 * std::max(arithmetic, work.bytes / bandwidth_peak) / each;
}

template <class T, class Value>
void copy_in(T* to, const std::vector<Value>& values) {
  if constexpr (is_half<T>) {
    const auto count = static_cast<Index>(values.size());
    Buffer<Value> wide(count);
    copy_in(wide.data(), values);
    cuda::convert(count, wide.data(), to);
  } else {
    cuda::copy_to_device(to, values.data(), values.size() * sizeof(Value));
  }
}
template void copy_in(float*, const std::vector<float>&);
template void copy_in(std::int32_t*, const std::vector<std::int32_t>&);
template void copy_in(float16*, const std::vector<float>&);
template void copy_in(bfloat16*, const std::vector<float>&);

void configure(benchmark::internal::Benchmark& benchmark) { benchmark.UseManualTime(); }

void prepare() {
  if (cuda::device_count() == 0) throw std::runtime_error("bench_cuda: there is no NVIDIA GPU with a driver here");
  const char* const wanted = std::getenv("LEC7_TF32");
  const bool tf32 = wanted != nullptr && *wanted == '1';
  cuda::set_allow_tf32(tf32);
  const cuda::Peaks peaks = cuda::peaks();
  flops_peak = tf32 && peaks.tf32 > 0 ? peaks.tf32 : peaks.float32;
  half_peak = peaks.half;
  bandwidth_peak = peaks.bandwidth;
  cudaDeviceProp device;
  cuda::check(cudaGetDeviceProperties(&device, cuda::current_device()), "cudaGetDeviceProperties");
  benchmark::AddCustomContext("gpu", device.name);
  benchmark::AddCustomContext("tf32", tf32 ? "yes" : "no");
  benchmark::AddCustomContext("peak_gflops", std::to_string(flops_peak / 1e9));
  benchmark::AddCustomContext("half_peak_gflops", std::to_string(half_peak / 1e9));
  benchmark::AddCustomContext("peak_gb_per_second", std::to_string(bandwidth_peak / 1e9));
}

}  // namespace lec7::bench
