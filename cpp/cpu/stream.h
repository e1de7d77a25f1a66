// Stores past the caches, for large results that nobody reads soon: a line is not read before it is written, and what
// is in the caches stays there.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "simd.h"

namespace lec7::cpu::LEC7_ISA {

// p is aligned to a vector.
template <class T>
LEC7_INLINE void store_past_caches(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#else
  store(p, v);
#endif
}

// After the last of them, before another thread may read: such stores overtake others.
LEC7_INLINE void finish_stores_past_caches() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace lec7::cpu::LEC7_ISA
