// The sum of the rows of a matrix: every bias gradient.
#pragma once

#include <algorithm>

#include "lec7/memory.h"
#include "lec7/parallel.h"
#include "simd.h"

namespace lec7::cpu::LEC7_ISA {

// out (n) = sum over rows of x (rows x n, ld apart). Chunks of rows are summed apart, then added in their order: the
// error grows with the square root of the chunks, and the result does not depend on the threads.
template <class T>
void column_sum(Index rows, Index n, const T* x, Index ld, T* out) {
  constexpr Index kChunk = 256;
  const Index chunks = std::max<Index>(1, (rows + kChunk - 1) / kChunk);
  memory::Buffer<T> partial(chunks * n);
  parallel_region(rows * n < (1 << 16) ? 1 : chunks, [&](const Team& team) {
    team.for_each(chunks, [&](Index chunk) {
      const Index begin = chunk * kChunk, end = std::min(begin + kChunk, rows);
      T* const sum = partial.data() + chunk * n;
      // Four vectors of columns at a time stay in registers while the rows go by.
      Index j = 0;
      for (; j + 4 * W<T> <= n; j += 4 * W<T>) {
        Vec<T> s[4] = {};
        for (Index row = begin; row < end; ++row) {
          LEC7_UNROLL
          for (int v = 0; v < 4; ++v) s[v] += load(x + row * ld + j + v * W<T>);
        }
        LEC7_UNROLL
        for (int v = 0; v < 4; ++v) store(sum + j + v * W<T>, s[v]);
      }
      for_lanes<T>(n - j, [&](Index i, auto lanes) {
        Vec<T> s{};
        for (Index row = begin; row < end; ++row) s += load_lanes(x + row * ld + j + i, lanes);
        store_lanes(sum + j + i, s, lanes);
      });
    });
  });
  for_lanes<T>(n, [&](Index j, auto lanes) {
    Vec<T> s{};
    for (Index chunk = 0; chunk < chunks; ++chunk) s += load_lanes(partial.data() + chunk * n + j, lanes);
    store_lanes(out + j, s, lanes);
  });
}

}  // namespace lec7::cpu::LEC7_ISA
