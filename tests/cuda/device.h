// Vectors on the device, for tests that hold on a GPU as on the host.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "check.h"
#include "kernel.h"

namespace lec7::test {

template <class T>
class Device {
 public:
  explicit Device(std::size_t count) : count_(count), buffer_(static_cast<Index>(count)) {}
  explicit Device(const std::vector<T>& values) : Device(values.size()) {
    cuda::copy_to_device(data(), values.data(), count_ * sizeof(T));
  }

  T* data() { return buffer_.data(); }
  std::vector<T> host() {
    std::vector<T> values(count_);
    cuda::copy_to_host(values.data(), data(), count_ * sizeof(T));
    return values;
  }

 private:
  std::size_t count_;
  cuda::Buffer<T> buffer_;
};

// Calls body in order, then with shuffled threads, on one worker and on several; once on a GPU.
template <class Body>
void in_several_orders(Body&& body) {
#if defined(LEC7_CUDA_HOST)
  struct Reset {
    ~Reset() { host::schedule() = {}; }
  } reset;
  for (const unsigned workers : {1u, 2u}) {
    for (const std::uint64_t seed : {0u, 1u, 2u}) {
      host::schedule() = {workers, seed > 0, seed};
      const Trying scope(text("workers=", workers, ", seed=", seed));
      body();
    }
  }
#else
  body();
#endif
}

inline std::vector<float> random_floats(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> values(-1, 1);
  std::vector<float> result(count);
  for (float& value : result) value = values(generator);
  return result;
}

}  // namespace lec7::test
