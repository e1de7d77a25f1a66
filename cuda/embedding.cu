// embedding copies rows: 8 bytes a number, bound by memory.
//
// Backward adds up dy by token, and each sum in the order of the positions, so that it is the same from run to run:
//   1. a stable radix sort of the positions by token, 8 bits of the token a pass (one pass for a vocabulary of 255, two
//      for 65 535): per pass 8 bytes a position read twice and written once, little beside dy;
//   2. sum_runs: runs of equal tokens among kRun sorted positions are summed, which reads dy once. A run inside its
//      tile is the row of dweight; what goes beyond it is kept, at most two sums a tile;
//   3. sum_edges: rows whose run crosses tiles are added up, rows without a position are zeroed.
// So a token that is everywhere and a vocabulary that is large share the work out alike. 8 bytes a number of dy and
// dweight, and up to 8 / kRun more for the edges.
#include "lec7/embedding.h"

#include "elementwise.h"
#include "reduce.h"
#include "values.h"

namespace lec7::cuda {
namespace {

template <int width>
__global__ void __launch_bounds__(kThreads) embedding_forward_kernel(Index rows, Index embeddings, Index features,
                                                                     Indices tokens, const float* weight, float* y) {
  const Index parts = features / width;
  LEC7_STRIDED(i, rows * parts) {
    const Index row = i / parts, part = (i - row * parts) * width, token = index_at(tokens, row);
    Floats<width> v{};
    if (token >= 0 && token < embeddings) v = load<width>(weight + token * features + part);
    store(y + row * features + part, v);
  }
}

// ---- the sort ----

constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
constexpr int kWarps = kThreads / kWarp;
constexpr int kSteps = 8;  // positions of a thread: each warp takes kSteps rounds of 32 neighbours
constexpr int kTile = kThreads * kSteps;
static_assert(kDigits == kThreads);

// A token and where it stands. Tokens outside the vocabulary become `embeddings`: no row's.
struct Sorted {
  int* keys;
  int* positions;
};
struct Source {
  Indices tokens;
  int embeddings;
  Sorted sorted;  // by the digits before; null at first

  __device__ int key(Index i) const {
    if (sorted.keys != nullptr) return sorted.keys[i];
    const Index token = index_at(tokens, i);
    return token >= 0 && token < embeddings ? static_cast<int>(token) : embeddings;
  }
  __device__ int position(Index i) const { return sorted.keys != nullptr ? sorted.positions[i] : static_cast<int>(i); }
};
__device__ inline int digit_of(int key, int shift) { return key >> shift & (kDigits - 1); }

// The sum of the values of the lanes up to this one.
__device__ inline int scan_warp(int value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const int before = __shfl_up_sync(kAllLanes, value, delta);
    if (lane >= delta) value += before;
  }
  return value;
}

// counts (kDigits, tiles): how often each tile has each digit.
__global__ void __launch_bounds__(kThreads) count_digits_kernel(Index n, int shift, Source source, int* counts) {
  LEC7_SHARED(count, int[kDigits]);
  count[threadIdx.x] = 0;
  __syncthreads();
  const Index begin = static_cast<Index>(blockIdx.x) * kTile, end = begin + kTile < n ? begin + kTile : n;
  for (Index i = begin + threadIdx.x; i < end; i += kThreads) atomicAdd(&count[digit_of(source.key(i), shift)], 1);
  __syncthreads();
  counts[static_cast<Index>(threadIdx.x) * gridDim.x + blockIdx.x] = count[threadIdx.x];
}

// A warp a digit: its counts become those of the tiles before; totals (kDigits).
__global__ void __launch_bounds__(kThreads) scan_digits_kernel(int tiles, int* counts, int* totals) {
  const int digit = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / kWarp);
  int* const row = counts + static_cast<Index>(digit) * tiles;
  int sum = 0;
  for (int first = 0; first < tiles; first += kWarp) {
    const int tile = first + static_cast<int>(threadIdx.x) % kWarp;
    const int count = tile < tiles ? row[tile] : 0, scanned = scan_warp(count);
    if (tile < tiles) row[tile] = sum + scanned - count;
    sum += __shfl_sync(kAllLanes, scanned, kWarp - 1);
  }
  if (threadIdx.x % kWarp == 0) totals[digit] = sum;
}

// Each position goes behind those of smaller digits, those of its digit in the tiles, warps, rounds and lanes before.
__global__ void __launch_bounds__(kThreads)
    place_digits_kernel(Index n, int shift, Source source, const int* counts, const int* totals, Sorted result) {
  LEC7_SHARED(next, int[kWarps][kDigits]);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  LEC7_SHARED(sums, int[kWarps]);
  const int total = totals[threadIdx.x], scanned = scan_warp(total);
  if (lane == kWarp - 1) sums[warp] = scanned;
  for (int w = 0; w < kWarps; ++w) next[w][threadIdx.x] = 0;
  __syncthreads();

  const Index first = static_cast<Index>(blockIdx.x) * kTile + warp * (kWarp * kSteps) + lane;
  int keys[kSteps], ranks[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const Index i = first + step * kWarp;
    if (i - lane >= n) break;
    keys[step] = i < n ? source.key(i) : 0;
    const int digit = digit_of(keys[step], shift);
    unsigned equal = __ballot_sync(kAllLanes, i < n);  // the lanes with this digit
#pragma unroll
    for (int bit = 0; bit < kDigitBits; ++bit) {
      const bool mine = (digit >> bit & 1) != 0;
      const unsigned ones = __ballot_sync(kAllLanes, mine);
      equal &= mine ? ones : ~ones;
    }
    const int before = __popc(equal & ((1u << lane) - 1));
    const int count = next[warp][digit];
    ranks[step] = count + before;
    __syncwarp();
    if (i < n && before == 0) next[warp][digit] = count + __popc(equal);
    __syncwarp();
  }
  __syncthreads();
  int place = scanned - total + counts[static_cast<Index>(threadIdx.x) * gridDim.x + blockIdx.x];
  for (int w = 0; w < warp; ++w) place += sums[w];
  for (int w = 0; w < kWarps; ++w) {
    const int count = next[w][threadIdx.x];
    next[w][threadIdx.x] = place;
    place += count;
  }
  __syncthreads();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const Index i = first + step * kWarp;
    if (i >= n) continue;
    const int to = next[warp][digit_of(keys[step], shift)] + ranks[step];
    result.keys[to] = keys[step];
    result.positions[to] = source.position(i);
  }
}

// ---- the sums ----

constexpr int kRun = 64;   // sorted positions of a tile
constexpr int kAhead = 8;  // rows of dy under way

template <int width>
__device__ void add(Floats<width>& sum, const Floats<width>& v) {
#pragma unroll
  for (int j = 0; j < width; ++j) sum.at[j] += v.at[j];
}

// A thread's tile or row, and its columns.
template <int width>
struct Part {
  Index item, column;
  __device__ explicit Part(Index features) {
    const Index thread = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x, parts = features / width;
    item = thread / parts;
    column = (thread - item * parts) * width;
  }
  static Grid grid(Index items, Index features) {
    return {static_cast<unsigned>(ceil_div(items * (features / width), kThreads)), kThreads};
  }
};

// edges (tiles, 2, features): the sum of the run that began before the tile, and of that which begins in it and goes
// on.
template <int width>
__global__ void __launch_bounds__(kThreads) sum_runs_kernel(int n, int embeddings, Index features, Sorted sorted,
                                                            const float* dy, float* dweight, float* edges) {
  const Part<width> part(features);
  if (part.item * kRun >= n) return;
  const int begin = static_cast<int>(part.item) * kRun, end = begin + kRun < n ? begin + kRun : n;
  const float* const from = dy + part.column;
  int key = sorted.keys[begin];
  bool began_before = begin > 0 && sorted.keys[begin - 1] == key;
  Floats<width> sum{};
  const auto finish = [&](bool goes_on) {
    const Index edge = part.item * 2;
    if (key == embeddings) return;
    if (began_before) store(edges + edge * features + part.column, sum);
    else if (goes_on) store(edges + (edge + 1) * features + part.column, sum);
    else store(dweight + key * features + part.column, sum);
  };
  for (int i = begin; i < end; i += kAhead) {
    Floats<width> ahead[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (i + j < end) ahead[j] = load<width>(from + sorted.positions[i + j] * features);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (i + j >= end) break;
      if (const int other = sorted.keys[i + j]; other != key) {
        finish(false);
        key = other;
        began_before = false;
        sum = {};
      }
      add(sum, ahead[j]);
    }
  }
  finish(end < n && sorted.keys[end] == key);
}

// firsts (embeddings + 1): the first place of a key that is not smaller.
__global__ void __launch_bounds__(kThreads) find_rows_kernel(int n, int embeddings, const int* keys, int* firsts) {
  LEC7_STRIDED(key, embeddings + 1) {
    int low = 0;
    for (int high = n; low < high;) {
      const int middle = low + (high - low) / 2;
      if (keys[middle] < key) low = middle + 1;
      else high = middle;
    }
    firsts[key] = low;
  }
}

template <int width>
__global__ void __launch_bounds__(kThreads)
    sum_edges_kernel(int embeddings, Index features, const int* firsts, const float* edges, float* dweight) {
  const Part<width> part(features);
  if (part.item >= embeddings) return;
  const int begin = firsts[part.item], end = firsts[part.item + 1];
  const int first = begin / kRun, last = (end - 1) / kRun;
  if (begin < end && first == last) return;
  Floats<width> sum{};
  if (begin < end) {
    sum = load<width>(edges + (first * Index{2} + 1) * features + part.column);
#pragma unroll 4
    for (int tile = first + 1; tile <= last; ++tile) {
      add(sum, load<width>(edges + tile * Index{2} * features + part.column));
    }
  }
  store(dweight + part.item * features + part.column, sum);
}

template <int width>
void sum_rows(int n, int embeddings, Index features, const Sorted& sorted, const float* dy, float* dweight) {
  Buffer<float> edges(ceil_div(n, kRun) * 2 * features);
  launch("sum_runs_kernel", sum_runs_kernel<width>, Part<width>::grid(ceil_div(n, kRun), features), n, embeddings,
         features, sorted, dy, dweight, edges.data());
  Buffer<int> firsts(Index{embeddings} + 1);
  launch("find_rows_kernel", find_rows_kernel, strided_grid(Index{embeddings} + 1), n, embeddings, sorted.keys,
         firsts.data());
  launch("sum_edges_kernel", sum_edges_kernel<width>, Part<width>::grid(embeddings, features), embeddings, features,
         firsts.data(), edges.data(), dweight);
}

}  // namespace

template <>
void embedding_forward(const EmbeddingShape& s, const Indices& tokens, const float* weight, float* y) {
  const auto run = [&]<int width> {
    launch("embedding_forward_kernel", embedding_forward_kernel<width>,
           strided_grid(tokens.count * (s.features / width)), tokens.count, s.embeddings, s.features, tokens, weight,
           y);
  };
  if (s.features % 4 == 0 && in_fours({weight, y})) run.template operator()<4>();
  else run.template operator()<1>();
}

template <>
void embedding_backward(const EmbeddingShape& s, const float* dy, const Indices& tokens, float* dweight) {
  if (s.features == 0) return;
  constexpr Index most = (Index{1} << 31) - kTile;
  if (s.embeddings > most || tokens.count > most) {
    fail("embedding", "on a GPU there are at most " + std::to_string(most) + " tokens and embeddings");
  }
  const int n = static_cast<int>(tokens.count), embeddings = static_cast<int>(s.embeddings);
  const int tiles = static_cast<int>(ceil_div(n, kTile));
  Buffer<int> counts(Index{kDigits} * tiles), totals(kDigits), pairs(Index{4} * n);
  Sorted sorted{pairs.data(), pairs.data() + n}, other{pairs.data() + 2 * Index{n}, pairs.data() + 3 * Index{n}};
  Source source{tokens, embeddings, {}};
  const Grid grid{static_cast<unsigned>(tiles), kThreads};
  for (int shift = 0; n > 0 && shift < 31 && embeddings >> shift > 0; shift += kDigitBits) {
    std::swap(sorted, other);
    launch("count_digits_kernel", count_digits_kernel, grid, n, shift, source, counts.data());
    launch("scan_digits_kernel", scan_digits_kernel, {kDigits / kWarps, kThreads}, tiles, counts.data(), totals.data());
    launch("place_digits_kernel", place_digits_kernel, grid, n, shift, source, counts.data(), totals.data(), sorted);
    source.sorted = sorted;
  }
  if (s.features % 4 == 0 && in_fours({dy, dweight})) sum_rows<4>(n, embeddings, s.features, sorted, dy, dweight);
  else sum_rows<1>(n, embeddings, s.features, sorted, dy, dweight);
}

}  // namespace lec7::cuda
