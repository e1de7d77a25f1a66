// n / d and n mod d for a d that the host knows: GPUs have no instruction for it, and a division costs twenty others.
// Here it costs three: floor(n / d) = (floor(n magic / 2^32) + n) / 2^shift, for 0 <= n < 2^31.
//
// Source: Granlund, Montgomery, Division by Invariant Integers using Multiplication, 1994, figure 4.1.
#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <cstdint>

namespace lec7::cuda {

class Divisor {
 public:
  struct Result {
    int quotient, remainder;
  };

  Divisor() = default;
  constexpr explicit Divisor(int divisor) : divisor_(divisor) {
    const auto d = static_cast<std::uint32_t>(divisor);
    shift_ = static_cast<int>(std::bit_width(d - 1));
    magic_ = static_cast<std::uint32_t>((((std::uint64_t{1} << shift_) - d) << 32) / d + 1);
  }
  __device__ Result operator()(int n) const {
    const auto m = static_cast<std::uint32_t>(n);
    const auto quotient = static_cast<int>((__umulhi(m, magic_) + m) >> shift_);
    return {quotient, n - quotient * divisor_};
  }

 private:
  int divisor_ = 1;
  std::uint32_t magic_ = 1;
  int shift_ = 0;
};

}  // namespace lec7::cuda
