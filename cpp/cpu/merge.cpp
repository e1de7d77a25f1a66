// Joining and adding branches: copies, bound by memory. A task is a block of rows of y, so that y is written (or dy
// read) from front to back, and each array beside it is one more stream.
#include "lec7/merge.h"

#include <algorithm>

#include "lec7/parallel.h"
#include "simd.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kGrain = 1 << 14;  // numbers a task

template <class T>
LEC7_INLINE void copy(Index n, const T* from, T* to) {
  for_lanes<T>(
      n, [&](Index j, auto lanes) LEC7_LAMBDA_INLINE { store_lanes(to + j, load_lanes(from + j, lanes), lanes); });
}

// part(i, row, offset, channels) on each array's part of each row of y, `offset` numbers into the row.
template <class Part>
void for_parts(const ConcatShape& s, Part&& part) {
  const Index arrays = static_cast<Index>(s.channels.size());
  parallel_ranges(s.rows, std::max<Index>(1, kGrain / std::max<Index>(1, s.width())), [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      Index offset = 0;
      for (Index i = 0; i < arrays; ++i) {
        part(i, row, offset, s.channels[i]);
        offset += s.channels[i];
      }
    }
  });
}

}  // namespace

template <class T>
void concat_forward(const ConcatShape& s, const T* const* arrays, T* y) {
  for_parts(s, [&](Index i, Index row, Index offset, Index channels)
                   LEC7_LAMBDA_INLINE { copy(channels, arrays[i] + row * channels, y + row * s.width() + offset); });
}

template <class T>
void concat_backward(const ConcatShape& s, const T* dy, T* const* gradients) {
  for_parts(s, [&](Index i, Index row, Index offset, Index channels) LEC7_LAMBDA_INLINE {
    copy(channels, dy + row * s.width() + offset, gradients[i] + row * channels);
  });
}

template <class T>
void add(Index n, T* y, const T* x) {
  parallel_ranges(n, kGrain, [&](Index begin, Index end) {
    for_lanes<T>(end - begin, [&](Index j, auto lanes) LEC7_LAMBDA_INLINE {
      T* const p = y + begin + j;
      store_lanes(p, load_lanes(p, lanes) + load_lanes(x + begin + j, lanes), lanes);
    });
  });
}

#define LEC7_INSTANTIATE(T)                                               \
  template void concat_forward(const ConcatShape&, const T* const*, T*);  \
  template void concat_backward(const ConcatShape&, const T*, T* const*); \
  template void add(Index, T*, const T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
