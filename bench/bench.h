// What the benchmarks share: arrays, one timing loop, and the counters that it reports.
#pragma once

#include <benchmark/benchmark.h>

#include <functional>
#include <initializer_list>
#include <string>
#include <utility>

#include "lec7/array.h"
#include "lec7/isa.h"
#include "lec7/memory.h"

namespace lec7::bench {

// An array of uniform numbers in [-1, 1), the same ones in every run, from the library's own allocator.
class Array : public memory::Buffer<float> {
 public:
  explicit Array(const Shape& shape);
};

// What one call does: FLOPs by the op's formula (a multiply-add is two), and the bytes of its arrays, each counted
// once, where memory is the limit. 0: not reported.
struct Work {
  double flops = 0;
  double bytes = 0;
};

// Times body() and reports GFLOP/s, what part of the measured FMA peak that is, and GB/s.
void measure(benchmark::State& state, const Work& work, const std::function<void()>& body);

// The numbers of a row's name: {{"N", 8}, {"H", 56}} is "/N8/H56".
using Numbers = std::initializer_list<std::pair<const char*, Index>>;

// A benchmark that is measured in wall-clock time: its work is done by many threads.
void add(const std::string& op, Numbers numbers, const std::function<void(benchmark::State&)>& run);

// Each benchmark binary adds its rows here.
void add_benchmarks();

}  // namespace lec7::bench
