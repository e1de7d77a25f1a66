// Scratch for the threads of a parallel region, allocated before it starts.
#pragma once

#include <algorithm>

#include "lec7/memory.h"
#include "lec7/parallel.h"

namespace lec7::cpu::LEC7_ISA {

// One piece of `size` numbers for each of up to `threads` threads, each on its own cache lines.
template <class T>
class Scratch {
 public:
  Scratch(Index threads, Index size)
      : size_((size + 63) / 64 * 64), data_(std::clamp<Index>(threads, 1, num_threads()) * size_) {}
  T* operator[](int thread) { return data_.data() + thread * size_; }

 private:
  Index size_;
  memory::Buffer<T> data_;
};

}  // namespace lec7::cpu::LEC7_ISA
