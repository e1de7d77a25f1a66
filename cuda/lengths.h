// Lengths of sequences, which the host knows, where kernels can read them.
#pragma once

#include <span>

#include "runtime.h"

namespace lec7::cuda {

// They travel as a kernel's parameters, not as a copy of the host's memory: the host goes on at once, and a captured
// graph keeps them.
class Lengths {
 public:
  explicit Lengths(std::span<const Index> lengths);
  const Index* data() { return buffer_.data(); }  // null: there are none

 private:
  Buffer<Index> buffer_;
};

}  // namespace lec7::cuda
