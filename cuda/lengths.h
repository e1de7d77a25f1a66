// What the host knows, where kernels can read it: lengths of sequences.
#pragma once

#include <span>

#include "runtime.h"

namespace lec7::cuda {

// The words travel as a kernel's parameters, not as a copy of the host's memory: the host goes on at once, and a
// captured graph keeps them.
void send_words(std::span<const Index> words, Index* to);

class Lengths {
 public:
  explicit Lengths(std::span<const Index> lengths) : buffer_(static_cast<Index>(lengths.size())) {
    send_words(lengths, buffer_.data());
  }
  const Index* data() { return buffer_.data(); }  // null: there are none

 private:
  Buffer<Index> buffer_;
};

}  // namespace lec7::cuda
