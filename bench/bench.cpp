#include "bench.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <numeric>
#include <random>
#include <vector>

#include "lec7/parallel.h"
#include "peak.h"

namespace lec7::bench {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double peak = 0;  // FLOP/s, set in main

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

Array::Array(const Shape& shape) : Buffer(shape.size()) {
  std::minstd_rand generator(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::generate(data(), data() + shape.size(), [&] { return uniform(generator); });
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
  if (work.bytes > 0) state.counters["GB/s"] = work.bytes / seconds / 1e9;
}

void add(const std::string& op, Numbers numbers, const std::function<void(benchmark::State&)>& run) {
  std::string name = op;
  for (const auto& [letter, number] : numbers) name.append("/").append(letter).append(std::to_string(number));
  benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->Unit(benchmark::kMicrosecond);
}

}  // namespace lec7::bench

int main(int argc, char** argv) try {
  using namespace lec7;
  if (const char* name = std::getenv("LEC7_ISA"); name && *name) cpu::set_isa(name);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  bench::peak = bench::fma_peak();
  benchmark::AddCustomContext("lec7_isa", cpu::name(cpu::isa()));
  benchmark::AddCustomContext("lec7_threads", std::to_string(num_threads()));
  benchmark::AddCustomContext("fma_peak_gflops", std::to_string(bench::peak / 1e9));
  bench::add_benchmarks();
  return benchmark::RunSpecifiedBenchmarks() > 0 ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
