// dropout: bound by memory, 8 bytes a number: a thread draws four words of Philox, ten rounds of two 32-bit products,
// and uses them on four neighbours. Where the channels of a mask that is used for whole channels are no multiple of
// four, it draws four words for each number.
#include "lec7/dropout.h"

#include "elementwise.h"

namespace lec7::cuda {
namespace {

// Philox4x32-10 (Salmon et al. 2011) with the counter (block, offset) and the key `seed`.
__device__ uint4 philox_block(std::uint64_t seed, std::uint64_t offset, std::uint64_t block) {
  uint4 c = make_uint4(static_cast<unsigned>(block), static_cast<unsigned>(block >> 32), static_cast<unsigned>(offset),
                       static_cast<unsigned>(offset >> 32));
  unsigned key0 = static_cast<unsigned>(seed), key1 = static_cast<unsigned>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    constexpr unsigned factor0 = 0xd2511f53u, factor1 = 0xcd9e8d57u;
    c = make_uint4(__umulhi(factor1, c.z) ^ c.y ^ key0, factor1 * c.z, __umulhi(factor0, c.x) ^ c.w ^ key1,
                   factor0 * c.x);
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return c;
}

__global__ void __launch_bounds__(kThreads)
    philox_kernel(std::uint64_t seed, std::uint64_t offset, std::uint64_t first, Index count, uint4* words) {
  LEC7_STRIDED(i, count) words[i] = philox_block(seed, offset, first + static_cast<std::uint64_t>(i));
}

struct Mask {
  Number<std::uint64_t> seed, offset;
  unsigned threshold;
  float scale;
  Index repeated, channels;  // numbers that share a row of the mask, or 0: each has its own word

  __device__ Index word(Index i) const { return repeated == 0 ? i : i / repeated * channels + i % channels; }
  __device__ uint4 words(Index word) const {
    return philox_block(seed.get(), offset.get(), static_cast<std::uint64_t>(word) / 4);
  }
  __device__ float apply(unsigned word, float x) const { return word >= threshold ? x * scale : 0.0f; }
};

// Four neighbours have the words of one block.
template <int width>
__global__ void __launch_bounds__(kThreads) dropout_kernel(Mask mask, Index n, const float* x, float* y) {
  LEC7_STRIDED(block, (n + 3) / 4) {
    const Index i = block * 4;
    const uint4 words = mask.words(mask.word(i));
    const unsigned word[4] = {words.x, words.y, words.z, words.w};
    if (width == 4 && i + 4 <= n) {
      Floats<4> v = load<4>(x + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) v.at[j] = mask.apply(word[j], v.at[j]);
      store(y + i, v);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (i + j < n) y[i + j] = mask.apply(word[j], x[i + j]);
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads) dropout_channels_kernel(Mask mask, Index n, const float* x, float* y) {
  LEC7_STRIDED(i, n) {
    const Index at = mask.word(i);
    const uint4 words = mask.words(at);
    const unsigned low = at % 2 == 0 ? words.x : words.y, high = at % 2 == 0 ? words.z : words.w;
    y[i] = mask.apply(at % 4 < 2 ? low : high, x[i]);
  }
}

}  // namespace

void philox(std::uint64_t seed, std::uint64_t offset, std::uint64_t first, Index count, std::uint32_t* words) {
  launch("philox_kernel", philox_kernel, strided_grid(count), seed, offset, first, count,
         reinterpret_cast<uint4*>(words));
}

template <>
void dropout(const Dropout& s, const float* x, float* y) {
  if (s.offset.on_device == nullptr) refuse_recording("dropout", "offset");
  const Index n = s.rows * s.repeats * s.channels;
  const bool own = s.repeats == 1;
  const Mask mask{
      s.seed, s.offset, s.threshold(), static_cast<float>(1 / (1 - s.p)), own ? 0 : s.repeats * s.channels, s.channels};
  const Grid by_four = strided_grid(ceil_div(n, 4));
  if (!own && s.channels % 4 != 0) {
    launch("dropout_channels_kernel", dropout_channels_kernel, strided_grid(n), mask, n, x, y);
  } else if (in_fours({x, y})) {
    launch("dropout_kernel", dropout_kernel<4>, by_four, mask, n, x, y);
  } else {
    launch("dropout_kernel", dropout_kernel<1>, by_four, mask, n, x, y);
  }
}

}  // namespace lec7::cuda
