// Attention in tiles of 64 queries x 64 keys, in exact float32 (Dao 2023, FlashAttention-2).
//
//   tiles     64 rows x 64 columns of q, k, v, dy or scores in shared memory, copied asynchronously. Their float4s are
//             swizzled: lanes read down a column or along a row without a bank conflict
//   products  16 lanes x 64/R rows of threads hold R x 4 numbers each; 4 steps of a product take R + 4 loads of 16
//             bytes for 16 R multiplications and additions: bound by arithmetic. Wider heads go through in chunks of
//             64 columns; a block accumulates up to two, and with more, further blocks make the same scores again
//   forward   a block owns 64 queries: the running maximum, sum and y stay in registers, scores never leave the block.
//             2 Tq Tk (d + dv) FLOPs a head, half of that where causal; each tile of queries reads k and v, 4 Tk (d +
//             dv) bytes, from L2
//   backward  p is made again from lse. One kernel owns 64 keys and gives dk and dv (4 Tq Tk (d + dv) FLOPs), one owns
//             64 queries and gives dq (2 Tq Tk (2 d + dv)): at d = dv 14 Tq Tk d, a seventh of it to have no atomics
//   few       up to 4 queries (a decoder's step) are bound by the reading of k and v, 4 Tk (d + dv) bytes for each. A
//             block takes 256 keys of a query (backward: 64 keys of all), and its parts are combined in order
//
// Tiles of keys that no query of the tile sees are skipped.
#include "attention.h"

#include "async_copy.h"
#include "half.h"
#include "reduce.h"

namespace lec7::cuda {
namespace {

using namespace attention;

constexpr int kTile = 64;          // rows and columns of a tile
constexpr int kChunk = 256;        // keys of a block with few queries
constexpr int kQuads = kTile / 4;  // float4s of a tile's row; also the lanes that share a row
constexpr int kForwardRows = 8;    // rows of scores of one thread
constexpr int kBackwardRows = 4;   // fewer: dk and dv stand in registers together
constexpr int kFewThreads = 128;
constexpr int kMostColumns = 2;  // chunks of columns that a block accumulates; wider heads take several blocks

using Tile = float4[kTile * kQuads];

template <int R>
constexpr int kThreadsOf = kTile / R * kQuads;

// What a query sees of the keys of a tile. A thread goes from one of its queries to the next one: an offset for each
// would stay in registers all the time.
struct Seen {
  int queries, keys, diagonal;  // sees key j where queries > 0, j < keys, j < diagonal
  const bool* keep;
  const float* add;
  Index row_step;
  int key_step;

  __device__ float score(int key, float product) const {
    if (queries <= 0 || key >= keys || key >= diagonal) return kMinusInfinity;
    if (keep != nullptr) return keep[key * key_step] ? product : kMinusInfinity;
    return add == nullptr ? product : product + add[key * key_step];
  }
  __device__ void go_down(int rows) {
    queries -= rows;
    diagonal += rows;
    if (keep != nullptr) keep += rows * row_step;
    if (add != nullptr) add += rows * row_step;
  }
};

// Query i and the keys from k0 on, as many as a chunk has.
__device__ inline Seen seen_of(const Head& head, Index i, Index k0) {
  const Problem& p = head.p;
  const Index at = head.mask_at + i * p.stride[2] + k0 * p.stride[3];
  return {least(kTile, p.queries - i),
          least(kChunk, head.length - k0),
          p.causal ? least(kChunk, i + 1 + p.keys - p.queries - k0) : 2 * kChunk,
          p.keep == nullptr ? nullptr : p.keep + at,
          p.add == nullptr ? nullptr : p.add + at,
          p.stride[2],
          static_cast<int>(p.stride[3])};
}

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T at[4];
};

// Four numbers of a row, of which `left` are there; the rest is 0.
template <class T>
__device__ float4 load_quad(const T* from, int left, bool aligned) {
  Quad<T> quad{};
  if (left > 0 && aligned) {
    quad = *reinterpret_cast<const Quad<T>*>(from);
  } else {
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      if (l < left) quad.at[l] = from[l];
    }
  }
  return make_float4(to_float(quad.at[0]), to_float(quad.at[1]), to_float(quad.at[2]), to_float(quad.at[3]));
}

template <class T>
__device__ void store_quad(T* to, int left, bool aligned, const float (&values)[4]) {
  Quad<T> quad;
#pragma unroll
  for (int l = 0; l < 4; ++l) quad.at[l] = from_float<T>(values[l]);
  if (left > 0 && aligned) {
    *reinterpret_cast<Quad<T>*>(to) = quad;
  } else {
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      if (l < left) to[l] = quad.at[l];
    }
  }
}

// Where a tile keeps float4 `quad` of the row `down` below another one; `down` is a multiple of 8, known when this is
// compiled, so that one address serves all rows of a thread. 8 rows that follow each other have theirs in 8 different
// groups of banks, and two such rows have their halves apart.
__device__ inline int place(int row, int quad, int down = 0) {
  return row * kQuads + (quad ^ ((row & 1) << 2 | (row >> 1 & 3))) + down * kQuads;
}

// A thread has the rows first_row() + down<R>(r), and, where it has numbers across, the columns lane() + kQuads * c.
__device__ inline int lane() { return static_cast<int>(threadIdx.x % kQuads); }
__device__ inline int first_row() { return static_cast<int>(threadIdx.x / kQuads); }
template <int R>
constexpr int down(int r) {
  return kTile / R * r;
}
template <int R>
__device__ int row_of(int r) {
  return first_row() + down<R>(r);
}
__device__ inline int column_of(int c) { return lane() + kQuads * c; }

template <int R>
__device__ float& own_element(float4* tile, int r, int c) {
  const int quad = place(first_row(), lane() / 4 + kQuads / 4 * c, down<R>(r));
  return reinterpret_cast<float*>(tile)[4 * quad + lane() % 4];
}

// The matrix that a head has in one of the arrays.
struct Matrix {
  const float* data;
  Index rows;
  int columns;
};

// Begins to copy rows [row, row + 64) and columns [64 chunk, 64 chunk + 64) of a matrix; what is outside counts as 0.
template <int R>
__device__ void copy_tile(const Matrix& m, Index row, int chunk, bool aligned, float4* tile) {
  const int column = chunk * kTile + 4 * lane(), count = least(kTile, m.rows - row);
  const float* from = m.data + (row + first_row()) * m.columns + column;
#pragma unroll 4
  for (int r = 0; r < R; ++r, from += down<R>(1) * m.columns) {
    const int left = row_of<R>(r) < count ? m.columns - column : 0;
    float4* const to = &tile[place(first_row(), lane(), down<R>(r))];
    if (aligned) {
      copy_async16(to, from, left > 0 ? 16 : 0);
    } else {
#pragma unroll
      for (int l = 0; l < 4; ++l) copy_async4(reinterpret_cast<float*>(to) + l, from + l, l < left);
    }
  }
}

__device__ inline void finish_copies() {
  commit_copies();
  wait_for_copies<0>();
}

// sums[r][c] += a[row r] . b[column c] over the first `depth` columns of both.
template <int R>
__device__ void add_dot_products(const float4* a, const float4* b, int depth, float (&sums)[R][4]) {
#pragma unroll 1
  for (int quad = 0; 4 * quad < depth; ++quad) {
    float4 bs[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) bs[c] = b[place(lane(), quad, kQuads * c)];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float4 as = a[place(first_row(), quad, down<R>(r))];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        sums[r][c] += as.x * bs[c].x;
        sums[r][c] += as.y * bs[c].y;
        sums[r][c] += as.z * bs[c].z;
        sums[r][c] += as.w * bs[c].w;
      }
    }
  }
}

// sums[r][l] += sum over j < count of x[row r][j] * y[j][4 lane() + l].
template <int R>
__device__ void add_products(const float4* x, const float4* y, int count, float (&sums)[R][4]) {
#pragma unroll 1
  for (int quad = 0; 4 * quad < count; ++quad) {
    float4 ys[4];
#pragma unroll
    for (int l = 0; l < 4; ++l) ys[l] = y[place(4 * quad + l, lane())];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float4 xs = x[place(first_row(), quad, down<R>(r))];
      const float factors[4] = {xs.x, xs.y, xs.z, xs.w};
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        sums[r][0] += factors[l] * ys[l].x;
        sums[r][1] += factors[l] * ys[l].y;
        sums[r][2] += factors[l] * ys[l].z;
        sums[r][3] += factors[l] * ys[l].w;
      }
    }
  }
}

__device__ inline int chunks_of(int columns) { return (columns + kTile - 1) / kTile; }

// ---- forward ----

// `resident`: all chunks of q stay in shared memory; otherwise they are read again for each tile of keys. Registers are
// bounded for three blocks a multiprocessor, or two that accumulate two chunks.
template <int NC>
__global__ void __launch_bounds__(kThreadsOf<kForwardRows>, 4 - NC)
    attention_forward_kernel(Problem p, bool resident, const float* q, const float* k, const float* v, float* y,
                             float* lse) {
  constexpr int R = kForwardRows;
  LEC7_DYNAMIC_SHARED(shared, Tile);
  float4* const k_tile = shared[0];
  float4* const p_tile = shared[0];  // once the scores are there, k is no longer needed
  float4* const v_tile = shared[1];
  const Index tiles = (p.queries + kTile - 1) / kTile, index = blockIdx.x / tiles;
  // The last queries first: with a causal rule they see the most keys.
  const Index i0 = (tiles - 1 - blockIdx.x % tiles) * kTile;
  const int first_chunk = static_cast<int>(blockIdx.y) * NC;
  const Head head(p, index);
  const Index last = i0 + kTile < p.queries ? i0 + kTile - 1 : p.queries - 1;
  const Index visible = head.visible(last);
  const Matrix queries{q + index * p.queries * p.d, p.queries, p.d};
  const Matrix keys{k + index * p.keys * p.d, head.length, p.d};
  const Matrix values{v + index * p.keys * p.dv, head.length, p.dv};

  float top[R], total[R], out[NC][R][4] = {};  // `total` is this lane's part
#pragma unroll
  for (int r = 0; r < R; ++r) top[r] = kMinusInfinity, total[r] = 0;

  for (Index k0 = 0; k0 < visible; k0 += kTile) {
    float scores[R][4] = {};
    for (int chunk = 0; chunk < chunks_of(p.d); ++chunk) {
      float4* const q_tile = shared[2 + (resident ? chunk : 0)];
      __syncthreads();
      if (!resident || k0 == 0) copy_tile<R>(queries, i0, chunk, p.aligned, q_tile);
      copy_tile<R>(keys, k0, chunk, p.aligned, k_tile);
      if (chunk == 0) {
        commit_copies();
        copy_tile<R>(values, k0, first_chunk, p.aligned, v_tile);
        commit_copies();
        wait_for_copies<1>();  // v may come while the scores are made
      } else {
        finish_copies();
      }
      __syncthreads();
      add_dot_products(q_tile, k_tile, least(kTile, p.d - chunk * kTile), scores);
    }
    const bool all = head.sees_all(i0, k0 + kTile);
    Seen seen = seen_of(head, i0 + first_row(), k0);
    finish_copies();
    __syncthreads();
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) scores[r][c] *= p.scale;
      if (!all) {
#pragma unroll
        for (int c = 0; c < 4; ++c) scores[r][c] = seen.score(column_of(c), scores[r][c]);
      }
      seen.go_down(down<R>(1));
      float most = fmaxf(fmaxf(scores[r][0], scores[r][1]), fmaxf(scores[r][2], scores[r][3]));
      most = fmaxf(warp_max<kQuads>(most), top[r]);
      const float shift = most == kMinusInfinity ? 0 : most;  // -inf - -inf would be NaN
      const float decay = expf(top[r] - shift);
      float sum = 0;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float probability = expf(scores[r][c] - shift);
        sum += probability;
        own_element<R>(p_tile, r, c) = probability;
      }
      top[r] = most;
      total[r] = total[r] * decay + sum;
#pragma unroll
      for (int c = 0; c < NC; ++c) {
#pragma unroll
        for (int l = 0; l < 4; ++l) out[c][r][l] *= decay;
      }
    }
    __syncwarp();  // a warp reads the rows of p that it wrote
    const int count = least(kTile, head.length - k0);
#pragma unroll
    for (int c = 0; c < NC; ++c) {
      if (c > 0) {
        __syncthreads();
        copy_tile<R>(values, k0, first_chunk + c, p.aligned, v_tile);
        finish_copies();
        __syncthreads();
      }
      add_products(p_tile, v_tile, count, out[c]);
    }
  }

#pragma unroll
  for (int r = 0; r < R; ++r) {
    total[r] = warp_sum<kQuads>(total[r]);
    const Index i = i0 + row_of<R>(r);
    if (i >= p.queries) continue;
    const bool blind = total[r] == 0;
    const float log_sum = blind ? kMinusInfinity : top[r] + logf(total[r]), norm = blind ? 0 : 1 / total[r];
    if (lane() == 0 && blockIdx.y == 0) lse[index * p.queries + i] = log_sum;
#pragma unroll
    for (int c = 0; c < NC; ++c) {
#pragma unroll
      for (int l = 0; l < 4; ++l) out[c][r][l] *= norm;
      const int column = (first_chunk + c) * kTile + 4 * lane();
      store_quad(y + (index * p.queries + i) * p.dv + column, p.dv - column, p.aligned, out[c][r]);
    }
  }
}

// p = exp(s - lse), where it is wanted: one tile of scores a block.
__global__ void __launch_bounds__(kThreadsOf<kForwardRows>)
    attention_weights_kernel(Problem p, const float* q, const float* k, const float* lse, float* weights) {
  constexpr int R = kForwardRows;
  LEC7_SHARED(q_tile, Tile);
  LEC7_SHARED(k_tile, Tile);
  const Index across = (p.keys + kTile - 1) / kTile, down = (p.queries + kTile - 1) / kTile;
  const Index index = blockIdx.x / (across * down), tile = blockIdx.x % (across * down);
  const Index i0 = tile / across * kTile, k0 = tile % across * kTile;
  const Head head(p, index);
  float scores[R][4] = {};
  for (int chunk = 0; chunk < chunks_of(p.d); ++chunk) {
    __syncthreads();
    copy_tile<R>({q + index * p.queries * p.d, p.queries, p.d}, i0, chunk, p.aligned, q_tile);
    copy_tile<R>({k + index * p.keys * p.d, head.length, p.d}, k0, chunk, p.aligned, k_tile);
    finish_copies();
    __syncthreads();
    add_dot_products(q_tile, k_tile, least(kTile, p.d - chunk * kTile), scores);
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const Index i = i0 + row_of<R>(r);
    if (i >= p.queries) continue;
    const Seen seen = seen_of(head, i, k0);
    const float log_sum = lse[index * p.queries + i];
    float* const row = weights + (index * p.queries + i) * p.keys + k0;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int key = column_of(c);
      const float score = seen.score(key, p.scale * scores[r][c]);
      if (k0 + key < p.keys) row[key] = log_sum == kMinusInfinity ? 0 : expf(score - log_sum);
    }
  }
}

// ---- few queries ----

constexpr int kGroups = kFewThreads / kQuads;  // of 16 lanes: each takes a row of k and v at a time

__device__ inline int group() { return first_row(); }

// a . b, in all lanes of a group.
template <class T>
__device__ float dot(const T* a, const T* b, int n, bool aligned) {
  float sum = 0;
  for (int column = 4 * lane(); column < n; column += kTile) {
    const float4 x = load_quad(a + column, n - column, aligned), y = load_quad(b + column, n - column, aligned);
    sum += x.x * y.x;
    sum += x.y * y.y;
    sum += x.z * y.z;
    sum += x.w * y.w;
  }
  return warp_sum<kQuads>(sum);
}

// sum over j < count of factors[j] * rows[j], column by column: each_column(column, sum).
template <class T, class EachColumn>
__device__ void combine_rows(int count, const float* factors, const T* rows, int columns, bool aligned,
                             EachColumn&& each_column) {
  LEC7_SHARED(sums, float4[kGroups][kQuads]);
  for (int column0 = 0; column0 < columns; column0 += kTile) {
    const int first = column0 + 4 * lane(), column = column0 + static_cast<int>(threadIdx.x);
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int j = group(); j < count; j += kGroups) {
      const float4 row = load_quad(rows + static_cast<Index>(j) * columns + first, columns - first, aligned);
      sum.x += factors[j] * row.x;
      sum.y += factors[j] * row.y;
      sum.z += factors[j] * row.z;
      sum.w += factors[j] * row.w;
    }
    sums[group()][lane()] = sum;
    __syncthreads();
    if (threadIdx.x < kTile && column < columns) {
      float all = 0;
      for (int g = 0; g < kGroups; ++g) all += reinterpret_cast<const float*>(sums[g])[threadIdx.x];
      each_column(column, all);
    }
    __syncthreads();
  }
}

// One query against one chunk of keys. `parts`: for each the maximum, the sum, and sum p v, where there are several
// chunks; otherwise y and lse are final.
template <class T>
__global__ void __launch_bounds__(kFewThreads)
    attention_few_forward_kernel(Problem p, Index chunks, const T* q, const T* k, const T* v, T* y, float* lse,
                                 float* parts) {
  LEC7_SHARED(scores, float[kChunk]);
  const Index row = blockIdx.x / chunks, k0 = blockIdx.x % chunks * kChunk, index = row / p.queries;
  const Head head(p, index);
  const Index i = row % p.queries, visible = head.visible(i);
  const int count = visible <= k0 ? 0 : least(kChunk, visible - k0), thread = static_cast<int>(threadIdx.x);
  const Seen seen = seen_of(head, i, k0);

  const T* const keys = k + (index * p.keys + k0) * p.d;
#pragma unroll 4
  for (int j0 = 0; j0 < count; j0 += kGroups) {
    const int j = j0 + group();
    const float product = dot(q + row * p.d, keys + static_cast<Index>(j) * p.d, j < count ? p.d : 0, p.aligned);
    if (lane() == 0 && j < count) scores[j] = seen.score(j, p.scale * product);
  }
  __syncthreads();

  float top = kMinusInfinity, total = 0;
  for (int j = thread; j < count; j += kFewThreads) top = fmaxf(top, scores[j]);
  top = block_max<kFewThreads>(top);
  const float shift = top == kMinusInfinity ? 0 : top;
  for (int j = thread; j < count; j += kFewThreads) {
    scores[j] = expf(scores[j] - shift);
    total += scores[j];
  }
  total = block_sum<kFewThreads>(total);

  const bool whole = chunks == 1, blind = total == 0;
  const float norm = blind ? 0 : 1 / total;
  float* const part = whole ? nullptr : parts + blockIdx.x * static_cast<Index>(p.dv + 2);
  combine_rows(count, scores, v + (index * p.keys + k0) * p.dv, p.dv, p.aligned, [&](int column, float sum) {
    if (whole) y[row * p.dv + column] = from_float<T>(sum * norm);
    else part[2 + column] = sum;
  });
  if (thread > 0) return;
  if (whole) lse[row] = blind ? kMinusInfinity : top + logf(total);
  else part[0] = top, part[1] = total;
}

// Combines the chunks of one query.
template <class T>
__global__ void __launch_bounds__(kFewThreads)
    attention_combine_kernel(int dv, Index chunks, const float* parts, T* y, float* lse) {
  const Index row = blockIdx.x, size = dv + 2;
  parts += row * chunks * size;
  float top = kMinusInfinity, total = 0;
  for (Index c = 0; c < chunks; ++c) top = fmaxf(top, parts[c * size]);
  const float shift = top == kMinusInfinity ? 0 : top;
  for (Index c = 0; c < chunks; ++c) total += parts[c * size + 1] * expf(parts[c * size] - shift);
  const bool blind = total == 0;
  const float norm = blind ? 0 : 1 / total;
  for (int column = static_cast<int>(threadIdx.x); column < dv; column += kFewThreads) {
    float sum = 0;
    for (Index c = 0; c < chunks; ++c) sum += parts[c * size + 2 + column] * expf(parts[c * size] - shift);
    y[row * dv + column] = from_float<T>(sum * norm);
  }
  if (threadIdx.x == 0) lse[row] = blind ? kMinusInfinity : top + logf(total);
}

// All queries of a head against one tile of keys: dk and dv, and dq or, where there are several tiles, the tile's part
// of it in `parts` (chunks, queries, d) of its head. Any of the four may be null.
template <class T>
__global__ void __launch_bounds__(kFewThreads)
    attention_few_backward_kernel(Problem p, Index chunks, const T* dy, const T* q, const T* k, const T* v, const T* y,
                                  const float* lse, float* parts, T* dq, T* dk, T* dv) {
  LEC7_SHARED(probabilities, float[kFewQueries][kTile]);
  LEC7_SHARED(ds, float[kFewQueries][kTile]);
  const Index index = blockIdx.x / chunks, k0 = blockIdx.x % chunks * kTile, first = index * p.queries;
  const Head head(p, index);
  const int queries = static_cast<int>(p.queries), there = least(kTile, p.keys - k0);
  const int count = head.length <= k0 ? 0 : least(kTile, head.length - k0);
  const T* const keys = k + (index * p.keys + k0) * p.d;
  const T* const values = v + (index * p.keys + k0) * p.dv;

  for (int i = 0; i < queries; ++i) {
    const Index row = first + i;
    const Seen seen = seen_of(head, i, k0);
    const float delta = dot(dy + row * p.dv, y + row * p.dv, p.dv, p.aligned), log_sum = lse[row];
#pragma unroll 4
    for (int j0 = 0; j0 < kTile; j0 += kGroups) {
      const int j = j0 + group();
      const bool real = j < count;
      const float s = dot(q + row * p.d, keys + static_cast<Index>(j) * p.d, real ? p.d : 0, p.aligned);
      const float dp = dot(dy + row * p.dv, values + static_cast<Index>(j) * p.dv, real ? p.dv : 0, p.aligned);
      if (lane() > 0) continue;
      const float probability = log_sum == kMinusInfinity ? 0 : expf(seen.score(j, p.scale * s) - log_sum);
      probabilities[i][j] = probability;
      ds[i][j] = p.scale * probability * (dp - delta);
    }
  }
  __syncthreads();

  // The rows of one gradient: sum_i factors[i][j] from[i].
  const auto add_queries = [&](const float (&factors)[kFewQueries][kTile], const T* from, int columns, T* to) {
    for (int j = group(); j < there; j += kGroups) {
      for (int column = 4 * lane(); column < columns; column += kTile) {
        float sum[4] = {};
        for (int i = 0; i < queries; ++i) {
          const float4 x = load_quad(from + (first + i) * columns + column, columns - column, p.aligned);
          sum[0] += factors[i][j] * x.x;
          sum[1] += factors[i][j] * x.y;
          sum[2] += factors[i][j] * x.z;
          sum[3] += factors[i][j] * x.w;
        }
        store_quad(to + (index * p.keys + k0 + j) * columns + column, columns - column, p.aligned, sum);
      }
    }
  };
  if (dk != nullptr) add_queries(ds, q, p.d, dk);
  if (dv != nullptr) add_queries(probabilities, dy, p.dv, dv);
  for (int i = 0; (parts != nullptr || dq != nullptr) && i < queries; ++i) {
    const Index at = (blockIdx.x * p.queries + i) * p.d;
    combine_rows(count, ds[i], keys, p.d, p.aligned, [&](int column, float sum) {
      if (parts != nullptr) parts[at + column] = sum;
      else dq[at + column] = from_float<T>(sum);
    });
  }
}

// dq (heads, size) from its parts (heads, chunks, size).
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_sum_parts_kernel(Index heads, Index chunks, Index size, const float* parts, T* dq) {
  LEC7_STRIDED(at, heads * size) {
    const float* const part = parts + at / size * chunks * size + at % size;
    float sum = 0;
    for (Index c = 0; c < chunks; ++c) sum += part[c * size];
    dq[at] = from_float<T>(sum);
  }
}

// ---- backward ----

// delta = dy . y of each query, added in the order of add_dot_products: where a query sees one key alone, y is its v,
// and dp - delta is 0 to the last bit.
__global__ void __launch_bounds__(kThreads)
    attention_delta_kernel(Index rows, int dv, bool aligned, const float* dy, const float* y, float* delta) {
  LEC7_STRIDED(row, rows) {
    float sum = 0;
    for (int column = 0; column < dv; column += 4) {
      const float4 a = load_quad(dy + row * dv + column, dv - column, aligned);
      const float4 b = load_quad(y + row * dv + column, dv - column, aligned);
      sum += a.x * b.x;
      sum += a.y * b.y;
      sum += a.z * b.z;
      sum += a.w * b.w;
    }
    delta[row] = sum;
  }
}

enum class Side { queries, keys };

// A block owns a tile of one side and meets the tiles of the other. Scores stand with the own rows down, the other ones
// across. `a` is what scores are made of (q, k: d wide), `b` what dp is made of (dy, v: dv wide):
//   queries  da = dq = scale sum_j ds k
//   keys     da = dk = scale sum_i ds^T q,  db = dv = sum_i p^T dy
// da or db may be null. `resident`: all chunks of both sides' tiles are in shared memory at once; otherwise one of
// each.
template <Side own, int NC>
__global__ void __launch_bounds__(kThreadsOf<kBackwardRows>, 3 - NC)
    attention_backward_kernel(Problem p, bool resident, const float* dy, const float* q, const float* k, const float* v,
                              const float* lse, const float* delta, float* da, float* db) {
  constexpr int R = kBackwardRows;
  constexpr bool own_keys = own == Side::keys;
  LEC7_DYNAMIC_SHARED(shared, Tile);
  float4* const x_tile = shared[0];  // p or ds
  const int a_chunks = chunks_of(p.d), chunks = a_chunks + chunks_of(p.dv);
  const int first_chunk = static_cast<int>(blockIdx.y) * NC;

  const Index own_count = own_keys ? p.keys : p.queries, tiles = (own_count + kTile - 1) / kTile;
  // The rows with the most work first, where there is a causal rule: the first keys, the last queries.
  const Index index = blockIdx.x / tiles, nth = blockIdx.x % tiles, own0 = (own_keys ? nth : tiles - 1 - nth) * kTile;
  const Head head(p, index);
  q += index * p.queries * p.d;
  k += index * p.keys * p.d;
  dy += index * p.queries * p.dv;
  v += index * p.keys * p.dv;
  lse += index * p.queries;
  delta += index * p.queries;

  // Begins to copy chunk c of q and dy, or of k and v.
  const auto copy = [&](Side side, int c, Index row, float4* tile) {
    const bool of_a = c < a_chunks;
    const float* const data = side == Side::keys ? (of_a ? k : v) : (of_a ? q : dy);
    copy_tile<R>({data, side == Side::keys ? head.length : p.queries, of_a ? p.d : p.dv}, row, of_a ? c : c - a_chunks,
                 p.aligned, tile);
  };
  constexpr Side other = own_keys ? Side::queries : Side::keys;
  const auto own_tile = [&](int c) -> float4* { return shared[1 + (resident ? c : 0)]; };
  const auto other_tile = [&](int c) -> float4* { return shared[resident ? 1 + chunks + c : 2]; };

  Index begin = 0, end = 0;  // of the other side
  if (!own_keys) {
    end = head.visible((own0 + kTile < p.queries ? own0 + kTile : p.queries) - 1);
  } else if (own0 < head.length) {
    const Index first = own0 - (p.keys - p.queries);  // the first query that sees key own0
    begin = p.causal && first > 0 ? first : 0;
    end = p.queries;
  }

  // Of each query: lse, with infinity where it sees nothing or is none, and dy . y.
  const auto shift_of = [&](Index i) {
    const float value = i < p.queries ? lse[i] : kMinusInfinity;
    return value == kMinusInfinity ? -kMinusInfinity : value;
  };
  const auto delta_of = [&](Index i) { return i < p.queries ? delta[i] : 0; };

  float da_sums[NC][R][4] = {}, db_sums[NC][R][4] = {};
  if (resident && begin < end) {
    for (int c = 0; c < chunks; ++c) copy(own, c, own0, own_tile(c));
  }
  for (Index other0 = begin; other0 < end; other0 += kTile) {
    float probabilities[R][4] = {}, ds[R][4] = {};
    if (resident) {
      __syncthreads();
      for (int c = 0; c < chunks; ++c) copy(other, c, other0, other_tile(c));
      finish_copies();
      __syncthreads();
    }
    for (int c = 0; c < chunks; ++c) {
      if (!resident) {
        __syncthreads();
        copy(own, c, own0, own_tile(c));
        copy(other, c, other0, other_tile(c));
        finish_copies();
        __syncthreads();
      }
      if (c < a_chunks) add_dot_products(own_tile(c), other_tile(c), least(kTile, p.d - c * kTile), probabilities);
      else if (da != nullptr) {
        add_dot_products(own_tile(c), other_tile(c), least(kTile, p.dv - (c - a_chunks) * kTile), ds);
      }
    }
    const bool all = own_keys ? head.sees_all(other0, own0 + kTile) : head.sees_all(own0, other0 + kTile);
    Seen seen = own_keys ? seen_of(head, other0 + lane(), own0) : seen_of(head, own0 + first_row(), other0);
    static_assert(R == 4, "as many rows as columns: a query may be either");
#pragma unroll
    for (int a = 0; a < 4; ++a) {  // a query
      const Index i = own_keys ? other0 + column_of(a) : own0 + row_of<R>(a);
      const float shift = shift_of(i), minus = delta_of(i);
#pragma unroll
      for (int b = 0; b < 4; ++b) {  // and a key
        float& s = probabilities[own_keys ? b : a][own_keys ? a : b];
        float& dp = ds[own_keys ? b : a][own_keys ? a : b];
        s *= p.scale;
        s = expf((all ? s : seen.score(own_keys ? row_of<R>(b) : column_of(b), s)) - shift);
        dp = s * (dp - minus);
      }
      seen.go_down(own_keys ? kQuads : down<R>(1));
    }

    // sums += x times the columns of the other side that this block accumulates.
    const int count = least(kTile, end - other0);
    const auto accumulate = [&](const float (&x)[R][4], int chunk0, int chunk_end, float (&sums)[NC][R][4]) {
      __syncwarp();  // a warp writes the rows of x that it reads
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) own_element<R>(x_tile, r, c) = x[r][c];
      }
      __syncwarp();
#pragma unroll
      for (int c = 0; c < NC; ++c) {
        if (chunk0 + c >= chunk_end) continue;
        if (!resident) {
          __syncthreads();
          copy(other, chunk0 + c, other0, other_tile(chunk0 + c));
          finish_copies();
          __syncthreads();
        }
        add_products(x_tile, other_tile(chunk0 + c), count, sums[c]);
      }
    };
    if (own_keys && db != nullptr) accumulate(probabilities, a_chunks + first_chunk, chunks, db_sums);
    if (da != nullptr) accumulate(ds, first_chunk, a_chunks, da_sums);
  }

#pragma unroll
  for (int r = 0; r < R; ++r) {
    const Index row = own0 + row_of<R>(r);
    if (row >= own_count) continue;
#pragma unroll
    for (int c = 0; c < NC; ++c) {
      const int column = (first_chunk + c) * kTile + 4 * lane();
#pragma unroll
      for (int l = 0; l < 4; ++l) da_sums[c][r][l] *= p.scale;
      const Index at = index * own_count + row;
      if (da != nullptr) store_quad(da + at * p.d + column, p.d - column, p.aligned, da_sums[c][r]);
      if (own_keys && db != nullptr) store_quad(db + at * p.dv + column, p.dv - column, p.aligned, db_sums[c][r]);
    }
  }
}

// ---- host ----

Index chunks_of(Index columns) { return ceil_div(columns, kTile); }

// The tiles of shared memory that all chunks need, or `least` where they do not fit.
struct Shared {
  bool resident;
  std::size_t bytes;
  Shared(Index tiles, Index least)
      : resident(static_cast<std::size_t>(tiles) * sizeof(Tile) <= properties().shared_per_block),
        bytes(static_cast<std::size_t>(resident ? tiles : least) * sizeof(Tile)) {}
};

template <Side own, int NC>
void launch_backward(const char* name, const AttentionShape& s, const Problem& p, Index width, const float* dy,
                     const float* q, const float* k, const float* v, const float* lse, const float* delta, float* da,
                     float* db) {
  const Index tiles = ceil_div(own == Side::keys ? s.keys : s.queries, kTile);
  const Index chunks = chunks_of(s.d) + chunks_of(s.dv);
  const Shared shared(1 + 2 * chunks, 3);
  const dim3 grid(blocks_of(s.n * s.heads * tiles), blocks_of(ceil_div(chunks_of(width), NC)));
  launch(name, attention_backward_kernel<own, NC>, {grid, kThreadsOf<kBackwardRows>, shared.bytes}, p, shared.resident,
         dy, q, k, v, lse, delta, da, db);
}

}  // namespace

namespace attention {

template <class T>
void few_forward(const AttentionShape& s, const AttentionParams<float>& params, const T* q, const T* k, const T* v,
                 T* y, float* lse) {
  Lengths lengths(params.key_lengths);
  const Problem p = problem_of(s, params, lengths, on_boundaries<T>(s, 4, {q, k, v, y}));
  const Index chunks = std::max<Index>(1, ceil_div(s.keys, kChunk));
  Buffer<float> parts(chunks == 1 ? 0 : s.rows() * chunks * (s.dv + 2));
  launch("attention_few_forward_kernel", attention_few_forward_kernel<T>, {blocks_of(s.rows() * chunks), kFewThreads},
         p, chunks, q, k, v, y, lse, parts.data());
  if (chunks > 1) {
    launch("attention_combine_kernel", attention_combine_kernel<T>, {blocks_of(s.rows()), kFewThreads}, p.dv, chunks,
           parts.data(), y, lse);
  }
}

template <class T>
void few_backward(const AttentionShape& s, const AttentionParams<float>& params, const T* dy, const T* q, const T* k,
                  const T* v, const T* y, const float* lse, T* dq, T* dk, T* dv) {
  Lengths lengths(params.key_lengths);
  const Problem p = problem_of(s, params, lengths, on_boundaries<T>(s, 4, {dy, q, k, v, y, dq, dk, dv}));
  // Where there is no key, dq has no tile and is 0, the sum of no parts.
  const Index heads = s.n * s.heads, chunks = chunks_of(s.keys), size = s.queries * s.d;
  const bool sum_parts = dq != nullptr && chunks != 1;
  Buffer<float> parts(sum_parts ? heads * chunks * size : 0);
  launch("attention_few_backward_kernel", attention_few_backward_kernel<T>, {blocks_of(heads * chunks), kFewThreads}, p,
         chunks, dy, q, k, v, y, lse, parts.data(), dq, dk, dv);
  if (sum_parts) {
    launch("attention_sum_parts_kernel", attention_sum_parts_kernel<T>, strided_grid(heads * size), heads, chunks, size,
           parts.data(), dq);
  }
}

#define LEC7_INSTANTIATE(T)                                                                                         \
  template void few_forward(const AttentionShape&, const AttentionParams<float>&, const T*, const T*, const T*, T*, \
                            float*);                                                                                \
  template void few_backward(const AttentionShape&, const AttentionParams<float>&, const T*, const T*, const T*,    \
                             const T*, const T*, const float*, T*, T*, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(float16)
LEC7_INSTANTIATE(bfloat16)
#undef LEC7_INSTANTIATE

}  // namespace attention

template <>
void attention_forward(const AttentionShape& s, const AttentionParams<float>& params, const float* q, const float* k,
                       const float* v, float* y, float* lse, float* weights) {
  const bool few = s.queries <= kFewQueries;
  if (few) few_forward(s, params, q, k, v, y, lse);
  if (few && weights == nullptr) return;
  Lengths lengths(params.key_lengths);
  const Problem p = problem_of(s, params, lengths, on_boundaries<float>(s, 4, {q, k, v, y}));
  if (!few) {
    const Index value_chunks = chunks_of(s.dv), blocks = s.n * s.heads * ceil_div(s.queries, kTile);
    const Shared shared(2 + chunks_of(s.d), 3);
    const auto run = [&]<int NC> {
      launch("attention_forward_kernel", attention_forward_kernel<NC>,
             {{blocks_of(blocks), blocks_of(ceil_div(value_chunks, NC))}, kThreadsOf<kForwardRows>, shared.bytes}, p,
             shared.resident, q, k, v, y, lse);
    };
    if (value_chunks == 1) run.operator()<1>();
    else run.operator()<kMostColumns>();
  }
  if (weights == nullptr) return;
  const Index blocks = s.n * s.heads * ceil_div(s.queries, kTile) * ceil_div(s.keys, kTile);
  launch("attention_weights_kernel", attention_weights_kernel, {blocks_of(blocks), kThreadsOf<kForwardRows>}, p, q, k,
         lse, weights);
}

template <>
void attention_backward(const AttentionShape& s, const AttentionParams<float>& params, const float* dy, const float* q,
                        const float* k, const float* v, const float* y, const float* lse, float* dq, float* dk,
                        float* dv) {
  if (s.queries <= kFewQueries) return few_backward(s, params, dy, q, k, v, y, lse, dq, dk, dv);
  Lengths lengths(params.key_lengths);
  const Problem p = problem_of(s, params, lengths, on_boundaries<float>(s, 4, {dy, q, k, v, y, dq, dk, dv}));
  Buffer<float> delta(s.rows());
  launch("attention_delta_kernel", attention_delta_kernel, strided_grid(s.rows()), s.rows(), p.dv, p.aligned, dy, y,
         delta.data());
  if (dq != nullptr) {
    const auto run = [&]<int NC> {
      launch_backward<Side::queries, NC>("attention_backward_kernel<queries>", s, p, s.d, dy, q, k, v, lse,
                                         delta.data(), dq, nullptr);
    };
    if (s.d <= kTile) run.operator()<1>();
    else run.operator()<kMostColumns>();
  }
  if (dk != nullptr || dv != nullptr) {
    const Index width = std::max(s.d, s.dv);
    const auto run = [&]<int NC> {
      launch_backward<Side::keys, NC>("attention_backward_kernel<keys>", s, p, width, dy, q, k, v, lse, delta.data(),
                                      dk, dv);
    };
    if (width <= kTile) run.operator()<1>();
    else run.operator()<kMostColumns>();
  }
}

}  // namespace lec7::cuda
