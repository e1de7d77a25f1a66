// A number that may change from step to step: a learning rate, a counter.
#pragma once

namespace lec7 {

// The host knows it, or it lies on the GPU and the kernel reads it when it runs: a captured graph finds another one at
// each replay. The CPU's numbers are the host's.
template <class T>
struct Number {
  T value;
  const T* on_device;

  constexpr Number(T known, const T* at = nullptr) : value(known), on_device(at) {}
  // Where the kernel runs.
  constexpr T get() const { return on_device == nullptr ? value : *on_device; }
};

}  // namespace lec7
