// embedding copies rows. Backward sorts the positions by token (counting sort), so that each row of dweight is summed
// in registers, in the order of the positions, and written once, by one thread: no zeroing, no atomics, the same result
// for any number of threads.
#include "lec7/embedding.h"

#include <algorithm>
#include <cstring>

#include "lec7/memory.h"
#include "lec7/parallel.h"
#include "simd.h"

namespace lec7::cpu::LEC7_ISA {

namespace {
constexpr Index kGrain = 1 << 15;  // numbers a task

// The sum of `count` rows of dy, W columns or the last few.
template <class T>
void sum_rows(const T* dy, Index features, const Index* rows, Index count, T* out) {
  Index j = 0;
  for (; j + 4 * W<T> <= features; j += 4 * W<T>) {
    Vec<T> sum[4] = {};
    for (Index i = 0; i < count; ++i) {
      const T* const row = dy + rows[i] * features + j;
      LEC7_UNROLL
      for (int v = 0; v < 4; ++v) sum[v] += load(row + v * W<T>);
    }
    LEC7_UNROLL
    for (int v = 0; v < 4; ++v) store(out + j + v * W<T>, sum[v]);
  }
  for_lanes<T>(features - j, [&](Index k, auto lanes) {
    Vec<T> sum{};
    for (Index i = 0; i < count; ++i) sum += load_lanes(dy + rows[i] * features + j + k, lanes);
    store_lanes(out + j + k, sum, lanes);
  });
}

}  // namespace

template <class T>
void embedding_forward(const EmbeddingShape& s, const Indices& tokens, const T* weight, T* y) {
  const std::size_t bytes = static_cast<std::size_t>(s.features) * sizeof(T);
  parallel_ranges(tokens.count, std::max<Index>(1, kGrain / std::max<Index>(1, s.features)),
                  [&](Index begin, Index end) {
                    for (Index i = begin; i < end; ++i) {
                      std::memcpy(y + i * s.features, weight + tokens[i] * s.features, bytes);
                    }
                  });
}

template <class T>
void embedding_backward(const EmbeddingShape& s, const T* dy, const Indices& tokens, T* dweight) {
  // positions[first[v] .. first[v + 1]) are those of token v.
  memory::Buffer<Index> first(s.embeddings + 2), positions(tokens.count);
  std::fill(first.data(), first.data() + s.embeddings + 2, 0);
  for (Index i = 0; i < tokens.count; ++i) ++first[tokens[i] + 2];
  for (Index v = 2; v < s.embeddings + 2; ++v) first[v] += first[v - 1];
  for (Index i = 0; i < tokens.count; ++i) positions[first[tokens[i] + 1]++] = i;

  // Both reading dy and writing dweight take time.
  const Index work = (tokens.count + s.embeddings) * s.features;
  const Index tasks = std::clamp<Index>(work / kGrain, 1, std::max<Index>(1, s.embeddings));
  const Index grain = (s.embeddings + tasks - 1) / tasks;
  parallel_ranges(s.embeddings, std::max<Index>(1, grain), [&](Index begin, Index end) {
    for (Index v = begin; v < end; ++v) {
      sum_rows(dy, s.features, positions.data() + first[v], first[v + 1] - first[v], dweight + v * s.features);
    }
  });
}

#define LEC7_INSTANTIATE(T)                                                             \
  template void embedding_forward(const EmbeddingShape&, const Indices&, const T*, T*); \
  template void embedding_backward(const EmbeddingShape&, const T*, const Indices&, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
