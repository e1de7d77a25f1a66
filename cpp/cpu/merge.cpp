// Joining and adding branches: copies, bound by memory. A task is a block of rows of y, so that y is written (or dy
// read) from front to back, and each array beside it is one more stream.
//
// A core keeps about 48 lines in flight, and a line that is written is fetched first: a copy of what no cache holds
// runs at half of that. Past the caches it need not be fetched, which pays where the result is too large to stay in
// one.
#include "lec7/merge.h"

#include <algorithm>

#include "lec7/parallel.h"
#include "stream.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kGrain = 1 << 14;              // numbers a task
constexpr Index kPastCaches = Index{1} << 25;  // bytes of such a result

template <bool past_caches, class T>
LEC7_INLINE void copy(Index n, const T* from, T* to) {
  for_lanes<T>(n, [&](Index j, auto lanes) LEC7_LAMBDA_INLINE {
    if constexpr (past_caches) store_past_caches(to + j, load(from + j));
    else store_lanes(to + j, load_lanes(from + j, lanes), lanes);
  });
}

// Are all these parts of y, or arrays, whole vectors on their boundaries, and many enough?
template <class T>
bool goes_past_caches(const ConcatShape& s, std::span<T* const> arrays) {
  const auto aligned = [](const T* p) { return reinterpret_cast<std::uintptr_t>(p) % kVectorBytes == 0; };
  const auto whole = [](Index channels) { return channels % W<T> == 0; };
  return s.rows * s.width() * static_cast<Index>(sizeof(T)) >= kPastCaches &&
         std::all_of(arrays.begin(), arrays.end(), aligned) && std::all_of(s.channels.begin(), s.channels.end(), whole);
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
    finish_stores_past_caches();
  });
}

}  // namespace

template <class T>
void concat_forward(const ConcatShape& s, const T* const* arrays, T* y) {
  const auto run = [&]<bool past_caches> {
    for_parts(s, [&](Index i, Index row, Index offset, Index channels) LEC7_LAMBDA_INLINE {
      copy<past_caches>(channels, arrays[i] + row * channels, y + row * s.width() + offset);
    });
  };
  if (goes_past_caches<T>(s, {&y, 1})) run.template operator()<true>();
  else run.template operator()<false>();
}

template <class T>
void concat_backward(const ConcatShape& s, const T* dy, T* const* gradients) {
  const auto run = [&]<bool past_caches> {
    for_parts(s, [&](Index i, Index row, Index offset, Index channels) LEC7_LAMBDA_INLINE {
      copy<past_caches>(channels, dy + row * s.width() + offset, gradients[i] + row * channels);
    });
  };
  if (goes_past_caches<T>(s, {gradients, s.channels.size()})) run.template operator()<true>();
  else run.template operator()<false>();
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
