// What the benchmarks share: arrays, one timing loop, and the counters that it reports. The rows of a family are
// compiled for the CPU (with bench_cpu.cpp) and, with LEC7_BACKEND_CUDA, for a GPU (with bench_cuda.cpp).
#pragma once

#include <benchmark/benchmark.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "lec7/array.h"
#include "lec7/isa.h"
#if defined(LEC7_BACKEND_CUDA)
#include "runtime.h"
#else
#include "lec7/memory.h"
#endif

namespace lec7::bench {

// Memory from the library's own allocator, where the kernels read it.
#if defined(LEC7_BACKEND_CUDA)
template <class T>
using Buffer = cuda::Buffer<T>;
#else
template <class T>
using Buffer = memory::Buffer<T>;
#endif

std::vector<float> uniform(Index count, float scale);
// Values as the kernels read them: on a GPU, they may be stored as float16 or bfloat16.
template <class T, class Value>
void copy_in(T* to, const std::vector<Value>& values);

// Uniform numbers in [-scale, scale), the same ones in every run.
template <class T>
class ArrayOf : public Buffer<T> {
 public:
  explicit ArrayOf(const Shape& shape, float scale = 1) : Buffer<T>(shape.size()) {
    copy_in(this->data(), uniform(shape.size(), scale));
  }
};
using Array = ArrayOf<float>;

// Labels or tokens in [0, below), the same ones in every run.
class Integers : public Buffer<std::int32_t> {
 public:
  Integers(Index count, Index below);
};

// What one call does: FLOPs by the op's formula (a multiply-add is two; 0 where memory is the limit), and the bytes of
// its arrays, each counted once per read or write that the op needs.
struct Work {
  double flops;
  double bytes;
  bool half = false;  // of float16 or bfloat16
};

// Times body() and reports GFLOP/s, GB/s, and what part of the machine's peak (CPU) or of the floor (GPU) that is.
void measure(benchmark::State& state, const Work& work, const std::function<void()>& body);

// The numbers of a row's name: {{"N", 8}, {"H", 56}} is "/N8/H56".
using Numbers = std::vector<std::pair<const char*, Index>>;

void add(const std::string& op, const Numbers& numbers, const std::function<void(benchmark::State&)>& run);

// `const Rows rows(function);` in a file: the function adds its rows.
struct Rows {
  explicit Rows(void (*add_rows)());
};

// ---- what differs between the CPU and a GPU ----

// How a benchmark's time is taken.
void configure(benchmark::internal::Benchmark& benchmark);
// Measures or looks up the machine's peaks, and says what it is in the header.
void prepare();

}  // namespace lec7::bench
