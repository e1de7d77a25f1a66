// dropout: ten rounds of Philox cost about one cycle a word in AVX-512, so that memory is the limit.
//
// Counters live in 64-bit lanes: one instruction multiplies the low halves of the lanes to 64 bits, which is the
// product that Philox splits, and whatever stands in the high halves is never looked at.
#include "lec7/dropout.h"

#include <algorithm>

#include "lec7/memory.h"
#include "lec7/parallel.h"
#include "simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace lec7::cpu::LEC7_ISA {
namespace {

using Wide = Vec<std::uint64_t>;
constexpr int kCounters = W<std::uint64_t>;

// The low 32 bits of each lane of a, times b.
LEC7_INLINE Wide multiply_low(Wide a, std::uint32_t b) {
  const Wide factor = broadcast<std::uint64_t>(b);
#if defined(__AVX512F__)
  return (Wide)_mm512_mul_epu32((__m512i)a, (__m512i)factor);
#elif defined(__AVX2__)
  return (Wide)_mm256_mul_epu32((__m256i)a, (__m256i)factor);
#elif defined(__SSE2__)
  return (Wide)_mm_mul_epu32((__m128i)a, (__m128i)factor);
#else
  return (a & 0xffffffffu) * factor;
#endif
}

constexpr Index kGrain = 1 << 15;      // elements a task, a multiple of 4
constexpr Index kBlockCounters = 256;  // words of so many counters stay in L1 between drawing and use

template <class T>
LEC7_INLINE void drop(Index n, const std::uint32_t* words, std::uint32_t threshold, T scale, const T* x, T* y) {
  if constexpr (std::is_same_v<T, float>) {
    for_lanes<T>(n, [&](Index i, auto lanes) {
      const Vec<std::uint32_t> r = load(words + i);  // whole vectors of words are there
      store_lanes(y + i, r >= threshold ? load_lanes(x + i, lanes) * scale : Vec<T>{}, lanes);
    });
  } else {
    for (Index i = 0; i < n; ++i) y[i] = words[i] >= threshold ? x[i] * scale : T{0};
  }
}

// A buffer of `count` counters' words, and the rest of the last vector of counters.
constexpr Index words_of(Index counters) { return 4 * ((counters + kCounters - 1) / kCounters * kCounters); }

}  // namespace

// Writes words_of(count) words: whole vectors of counters.
void philox(std::uint64_t seed, std::uint64_t offset, std::uint64_t first, Index count, std::uint32_t* words) {
  constexpr int kRounds = 10;
  std::uint32_t key0[kRounds], key1[kRounds];
  for (std::uint32_t i = 0; i < kRounds; ++i) {
    key0[i] = static_cast<std::uint32_t>(seed) + i * 0x9e3779b9u;
    key1[i] = static_cast<std::uint32_t>(seed >> 32) + i * 0xbb67ae85u;
  }
  Wide block;
  for (int i = 0; i < kCounters; ++i) block[i] = first + static_cast<std::uint64_t>(i);
  for (Index i = 0; i < count; i += kCounters, block += kCounters) {
    Wide c0 = block, c1 = block >> 32;
    Wide c2 = broadcast<std::uint64_t>(offset), c3 = broadcast<std::uint64_t>(offset >> 32);
    LEC7_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      const Wide product0 = multiply_low(c0, 0xd2511f53u), product1 = multiply_low(c2, 0xcd9e8d57u);
      c0 = (product1 >> 32) ^ c1 ^ key0[round];
      c1 = product1;
      c2 = (product0 >> 32) ^ c3 ^ key1[round];
      c3 = product0;
    }
    // Words 0, 1 and 2, 3 of each counter; then those of one counter side by side.
    const Wide low = (c0 & 0xffffffffu) | (c1 << 32), high = (c2 & 0xffffffffu) | (c3 << 32);
    constexpr auto lanes = std::make_integer_sequence<int, kCounters>{};
    const Wide front = interleave_low(low, high, lanes), back = interleave_high(low, high, lanes);
    std::memcpy(words + 4 * i, &front, sizeof front);
    std::memcpy(words + 4 * i + 2 * kCounters, &back, sizeof back);
  }
}

template <class T>
void dropout(const Dropout& s, const T* x, T* y) {
  const std::uint32_t threshold = s.threshold();
  const T scale = static_cast<T>(1 / (1 - s.p));
  const Index masked = s.rows * s.channels;
  if (s.repeats == 1) {
    parallel_ranges(masked, kGrain, [&](Index begin, Index end) {
      std::uint32_t words[words_of(kBlockCounters)];
      for (Index i = begin; i < end; i += 4 * kBlockCounters) {
        const Index n = std::min(4 * kBlockCounters, end - i);
        philox(s.seed.value, s.offset.value, static_cast<std::uint64_t>(i / 4), (n + 3) / 4, words);
        drop(n, words, threshold, scale, x + i, y + i);
      }
    });
    return;
  }
  memory::Buffer<std::uint32_t> words(words_of((masked + 3) / 4) + W<std::uint32_t>);
  philox(s.seed.value, s.offset.value, 0, (masked + 3) / 4, words.data());
  const Index rows = s.rows * s.repeats;
  parallel_ranges(rows, std::max<Index>(1, kGrain / std::max<Index>(1, s.channels)), [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      const Index at = row * s.channels;
      drop(s.channels, words.data() + row / s.repeats * s.channels, threshold, scale, x + at, y + at);
    }
  });
}

template void dropout(const Dropout&, const float*, float*);
template void dropout(const Dropout&, const double*, double*);

}  // namespace lec7::cpu::LEC7_ISA
