// Wall-clock time of work that is done by many threads.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "bench.h"
#include "lec7/parallel.h"
#include "peak.h"

namespace lec7::bench {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double peak = 0;  // FLOP/s

}  // namespace

double fma_peak() {
  // About 0.2 ms: short enough that some runs are undisturbed on a busy machine, too.
  constexpr Index kRounds = 1 << 16;
  std::vector<double> best(num_threads());
  parallel_region(kParallel, [&](const Team& team) {
    for (int run = 0; run < 500; ++run) {
      const double start = now();
      const Index flops = LEC7_PICK(fma_rounds)(kRounds);
      best[team.thread] = std::max(best[team.thread], static_cast<double>(flops) / (now() - start));
    }
  });
  return std::accumulate(best.begin(), best.end(), 0.0);
}

void measure(benchmark::State& state, const Work& work, const std::function<void()>& body) {
  body();  // threads awake, pages mapped, caches warm
  const double start = now();
  for ([[maybe_unused]] auto _ : state) {
    body();
    benchmark::ClobberMemory();
  }
  const double seconds = (now() - start) / static_cast<double>(state.iterations());
  if (work.flops > 0) {
    state.counters["GFLOP/s"] = work.flops / seconds / 1e9;
    state.counters["%peak"] = 100 * work.flops / seconds / peak;
  }
  state.counters["GB/s"] = work.bytes / seconds / 1e9;
}

template <class T, class Value>
void copy_in(T* to, const std::vector<Value>& values) {
  std::copy(values.begin(), values.end(), to);
}
template void copy_in(float*, const std::vector<float>&);
template void copy_in(std::int32_t*, const std::vector<std::int32_t>&);

void configure(benchmark::internal::Benchmark& benchmark) { benchmark.UseRealTime(); }

void prepare() {
  if (const char* name = std::getenv("LEC7_ISA"); name && *name) cpu::set_isa(name);
  peak = fma_peak();
  benchmark::AddCustomContext("lec7_isa", cpu::name(cpu::isa()));
  benchmark::AddCustomContext("lec7_threads", std::to_string(num_threads()));
  benchmark::AddCustomContext("fma_peak_gflops", std::to_string(peak / 1e9));
}

}  // namespace lec7::bench
