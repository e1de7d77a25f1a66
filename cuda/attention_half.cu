// Attention of float16 and bfloat16 on tensor cores, with softmax and all sums in float32 (Dao 2023, FlashAttention-2).
//
//   tiles     rows of D = 64, 128 or 256 numbers (the larger head size, filled up with zeros) in shared memory. Those
//             of the side that a block goes through come asynchronously into one of two stages while the other one
//             is multiplied: one barrier a tile. Their 16 bytes are swizzled: copies and ldmatrix meet no bank conflict
//   products  a warp owns 16 or 32 rows. The accumulators of q k^T have the layout that a left factor has: p and ds,
//             rounded to the arrays' type, go from register to register into the next product
//   forward   a block owns 128 queries (D = 256: 64) and goes through 64 keys at a time (D > 64: 32). y is scaled down
//             only where a maximum grew by more than 2^8: p stays below that, y / sum is the same. 2 Tq Tk (d + dv)
//             FLOPs a head, half of that where causal; a block reads k and v, 2 Tk (d + dv) bytes, from L2
//   backward  one kernel owns 64 keys and gives dk and dv (4 Tq Tk (d + dv) FLOPs), one owns 64 queries and gives dq (2
//             Tq Tk (2 d + dv)): at d = dv 14 Tq Tk d, two sevenths of it to have no atomics. With D = 256 dk and dv
//             take two blocks of 128 columns each
//
// Bound by the products, as each byte of shared memory is multiplied 16 or 32 times: at 32 rows a warp ldmatrix takes
// half the cycles that mma does on an A100, at 16 rows as many. Beside them the exponentials, 16 a cycle of a
// multiprocessor, take half the time of the products at D = 64, and overlap with those of the other warps.
//
// Up to 4 queries have kernels of their own, bound by memory (attention.cu). Where rows do not begin at 16 bytes (of
// few queries: 8), so where head sizes are no multiples of 8 (4), where they are beyond 256, where the weights are
// wanted too, and on chips before sm_80, all arrays are converted to float32 and the results rounded: exact, and as
// slow as float32 plus 6 bytes a number.
#include "arrays.h"
#include "async_copy.h"
#include "attention.h"
#include "mma.h"
#include "reduce.h"

namespace lec7::cuda {
namespace {

using namespace attention;

constexpr int kWarps = 4;
constexpr int kBlock = kWarps * kWarp;  // threads
constexpr int kOwn = 16 * kWarps;       // rows that a backward block owns
constexpr int kStages = 2;
constexpr Index kMostWidth = 256;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kSlack = 8;  // a maximum may grow by this much, in powers of two, before y is scaled

template <int D>
constexpr int kChunks = D / 8;  // of 16 bytes in a row

// Rows of the tiles: 32 KiB of q at D > 64, 16 KiB of k and v a stage.
template <int D>
constexpr int kForwardBlocks = D > 128 ? 1 : 2;  // of 16 queries a warp
template <int D>
constexpr int kForwardKeys = D > 64 ? 32 : 64;
template <int D>
constexpr int kOther = 4096 / D;  // backward: rows of the side that a block goes through

__device__ inline int lane() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ inline int warp() { return static_cast<int>(threadIdx.x / kWarp); }
// Of an accumulator this thread has the rows g and g + 8, and the columns 2t and 2t + 1 (mma.h).
__device__ inline int g() { return lane() / 4; }
__device__ inline int t() { return lane() % 4; }

// 2^x as the GPU has it in one instruction, to 2 ulp; what is below 2^-126 becomes 0.
__device__ inline float exp2_approximate(float x) {
#if !defined(LEC7_CUDA_HOST)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return x < -126 ? 0 : std::exp2(x);
#endif
}

// ---- tiles ----

// Where a tile keeps chunk `chunk + more` of row `base + row`, with base a multiple of 8, `more` 0 or 1, and 0 where
// chunk is odd: 8 rows that follow each other have theirs in 8 different groups of banks. Base and chunk are known when
// this is compiled, mostly; what remains takes four values, for which a thread keeps registers.
template <int D>
__device__ int place(int base, int row, int chunk, int more = 0) {
  return (base * kChunks<D> + (chunk & ~7)) + (row * kChunks<D> + (((chunk & 7) | more) ^ (row & 7)));
}

// The matrix that a head has in one of the arrays.
template <class T>
struct Matrix {
  const T* data;
  Index rows;
  int columns;
};

// Begins to copy rows [row, row + kRows) of a matrix; what is outside counts as 0.
template <int D, int kRows, class T>
__device__ void copy_rows(const Matrix<T>& m, Index row, uint4* tile) {
  constexpr int kStep = kBlock / kChunks<D>;
  const int chunk = static_cast<int>(threadIdx.x) % kChunks<D>, first = static_cast<int>(threadIdx.x) / kChunks<D>;
  const int there = 8 * chunk < m.columns ? least(kRows, m.rows - row) : 0;
  const T* const from = m.data + (row + first) * m.columns + 8 * chunk;
#pragma unroll
  for (int r = 0; r < kRows; r += kStep) {
    copy_async16(&tile[place<D>(r & ~7, first + (r & 7), chunk)], from + r * m.columns, first + r < there ? 16 : 0);
  }
}

// The rows of a tile that a warp owns, as fragments of left factors: in registers where there is room for them.
template <int D, int M>
class OwnRows {
 public:
  __device__ OwnRows(const uint4* tile) : tile_(tile) {}
  __device__ void hold() {
    if constexpr (kHeld) {
#pragma unroll
      for (int step = 0; step < D / 16; ++step) read(step, held_[step]);
    }
  }
  __device__ void load(int step, unsigned (&a)[M][4]) const {
    if constexpr (kHeld) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[m][i] = held_[step][m][i];
      }
    } else {
      read(step, a);
    }
  }

 private:
  static constexpr bool kHeld = D == 64;
  __device__ void read(int step, unsigned (&a)[M][4]) const {
#pragma unroll
    for (int m = 0; m < M; ++m) {
      load_matrices(a[m], &tile_[place<D>(16 * (M * warp() + m), lane() % 16, 2 * step, lane() / 16)]);
    }
  }
  const uint4* tile_;
  unsigned held_[kHeld ? D / 16 : 1][M][4];
};

// sums[m][n] += rows 16m of `own` times rows 8n of `other`, over D columns.
template <class T, int D, int M, int N>
__device__ void add_dot_products(const OwnRows<D, M>& own, const uint4* other, float (&sums)[M][N][4]) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    unsigned a[M][4];
    own.load(step, a);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      unsigned b[4];
      load_matrices(b, &other[place<D>(8 * n, lane() % 8 + lane() / 16 * 8, 2 * step, lane() / 8 % 2)]);
      const unsigned left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma<T>(sums[m][n], a[m], left);
        mma<T>(sums[m][n + 1], a[m], right);
      }
    }
  }
}

// sums[m][n] += x[m] rounded to T times columns 8n of `other` from `chunk` on, over its 8 J rows.
template <class T, int D, int M, int J, int N>
__device__ void add_products(const float (&x)[M][J][4], const uint4* other, int chunk, float (&sums)[M][N][4]) {
#pragma unroll
  for (int j = 0; j < J; j += 2) {
    unsigned a[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[m][i] = pack<T>(x[m][j + i / 2][i % 2 * 2], x[m][j + i / 2][i % 2 * 2 + 1]);
    }
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      unsigned b[4];
      load_transposed_matrices(b, &other[place<D>(8 * j, lane() % 16, chunk + n, lane() / 16)]);
      const unsigned left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma<T>(sums[m][n], a[m], left);
        mma<T>(sums[m][n + 1], a[m], right);
      }
    }
  }
}

// Stores the rows of a warp, times a factor each, as rows [row, rows) and columns [column, columns) of a matrix: by way
// of its own part of shared memory, 16 M rows of 8 N numbers, since a thread has only two that are neighbours.
template <int M, int N, class T>
__device__ void store_rows(const float (&sums)[M][N][4], const float (&factors)[2 * M], uint4* own, T* to, Index row,
                           Index rows, int column, int columns) {
  constexpr int D = 8 * N, kStep = kWarp / kChunks<D>;
#pragma unroll
  for (int r = 0; r < 2 * M; ++r) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float (&d)[4] = sums[r / 2][n];
      const int i = r % 2 * 2;
      reinterpret_cast<unsigned*>(&own[place<D>(8 * r, g(), n)])[t()] =
          pack<T>(d[i] * factors[r], d[i + 1] * factors[r]);
    }
  }
  __syncwarp();
  const int chunk = lane() % kChunks<D>, first = lane() / kChunks<D>;
  const int there = column + 8 * chunk < columns ? least(16 * M, rows - row) : 0;
  T* const at = to + (row + first) * columns + column + 8 * chunk;
#pragma unroll 4
  for (int r = 0; r < 16 * M; r += kStep) {
    if (first + r < there) *reinterpret_cast<uint4*>(at + r * columns) = own[place<D>(r & ~7, first + (r & 7), chunk)];
  }
}

// ---- what is seen ----

enum class Side { queries, keys };

struct Range {
  Index begin, end;
};

// The rows of the other side that `count` rows of one side, from `first` on, have to do with.
template <Side own>
__device__ Range range_of(const Head& head, Index first, int count) {
  const Problem& p = head.p;
  if constexpr (own == Side::queries) {
    const Index last = (first + count < p.queries ? first + count : p.queries) - 1;
    return {0, first <= last ? head.visible(last) : 0};
  } else {
    const Index query = first - (p.keys - p.queries);  // the first one that sees key `first`
    return {p.causal && query > 0 ? query : 0, first < head.length ? p.queries : 0};
  }
}

// What the 16 M rows from `row` on, of one side, and the 8 N rows of the other side from `column` on see of each other.
// Made before the scores, which take most of the registers.
template <Side own, int M, int N>
class Seen {
 public:
  __device__ Seen(const Head& head, Index row, Index column)
      : head_(head),
        row_(row + g()),
        column_(column + 2 * t()),
        // With a scale that is not positive the largest product would not be the largest score.
        all_(head.p.scale > 0 &&
             (own == Side::queries ? head.sees_all(row, column + 8 * N) : head.sees_all(column, row + 16 * M))) {
    if (all_) return;
    int begin[2 * M], end[2 * M];  // the columns that a row sees
#pragma unroll
    for (int r = 0; r < 2 * M; ++r) {
      const Range range = range_of<own>(head, row_ + 8 * r, 1);
      begin[r] = own == Side::queries || range.begin <= column_ ? 0 : least(8 * N, range.begin - column_);
      end[r] = range.end <= column_ ? 0 : least(8 * N, range.end - column_);
    }
    const bool* keep = head.p.keep;
    if (keep != nullptr) keep += offset();
    const Index down = 8 * step(own), across = step(other);
#pragma unroll 2  // further, this would be most of the kernel
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int r = 0; r < 2 * M; ++r) {
          bool sees = begin[r] <= 8 * n + e && 8 * n + e < end[r];
          if (keep != nullptr && sees) sees = keep[r * down];
          bits_[r / 2] |= static_cast<unsigned>(sees) << (4 * n + r % 2 * 2 + e);
        }
        if (keep != nullptr) keep += e == 0 ? across : 7 * across;
      }
    }
  }

  // What turns scores, as mask() leaves them, into powers of two.
  __device__ float unit() const { return all_ ? head_.p.scale * kLog2e : kLog2e; }

  // Products become scores, -inf where a query does not see a key; they stay products where all is seen.
  __device__ void mask(float (&products)[M][N][4]) const {
    if (all_) return;
#pragma unroll
    for (int r = 0; r < 2 * M; ++r) {
#pragma unroll
      for (int c = 0; c < 2 * N; ++c) {
        float& x = products[r / 2][c / 2][r % 2 * 2 + c % 2];
        x = sees(r, c) ? head_.p.scale * x : kMinusInfinity;
      }
    }
    if (head_.p.add == nullptr) return;
    const Index across = step(other);
#pragma unroll
    for (int r = 0; r < 2 * M; ++r) {
      const float* add = head_.p.add + offset() + 8 * r * step(own);
#pragma unroll
      for (int c = 0; c < 2 * N; ++c) {
        if (sees(r, c)) products[r / 2][c / 2][r % 2 * 2 + c % 2] += *add;
        add += c % 2 == 0 ? across : 7 * across;
      }
    }
  }

 private:
  static constexpr Side other = own == Side::queries ? Side::keys : Side::queries;
  // Where a mask has its elements.
  __device__ Index step(Side side) const { return head_.p.stride[side == Side::queries ? 2 : 3]; }
  __device__ Index offset() const { return head_.mask_at + row_ * step(own) + column_ * step(other); }
  // This thread's rows (8 apart) and columns (1 and 7 apart).
  __device__ bool sees(int r, int c) const { return (bits_[r / 2] >> (c / 2 * 4 + r % 2 * 2 + c % 2) & 1) != 0; }

  const Head& head_;
  Index row_, column_;
  bool all_;
  unsigned bits_[M] = {};  // bit 4n + i: products[m][n][i]
};

// ---- forward ----

template <class T, int D>
__global__ void __launch_bounds__(kBlock)
    attention_half_forward_kernel(Problem p, const T* q, const T* k, const T* v, T* y, float* lse) {
  constexpr int M = kForwardBlocks<D>, kRows = M * kOwn, kKeys = kForwardKeys<D>, N = kKeys / 8;
  LEC7_DYNAMIC_SHARED(shared, uint4);
  uint4* const q_tile = shared;
  const auto k_tile = [&](int stage) { return shared + (kRows + 2 * stage * kKeys) * kChunks<D>; };
  const auto v_tile = [&](int stage) { return k_tile(stage) + kKeys * kChunks<D>; };
  const auto tiles = static_cast<unsigned>((p.queries + kRows - 1) / kRows);
  const Index index = blockIdx.x / tiles;
  // The last queries first: with a causal rule they see the most keys.
  const Index i0 = Index{tiles - 1 - blockIdx.x % tiles} * kRows, own0 = i0 + 16 * M * warp();
  const Head head(p, index);
  const Index visible = range_of<Side::queries>(head, i0, kRows).end;
  const Index visible_here = range_of<Side::queries>(head, own0, 16 * M).end;
  const Matrix<T> queries{q + index * p.queries * p.d, p.queries, p.d};
  const Matrix<T> keys{k + index * p.keys * p.d, head.length, p.d};
  const Matrix<T> values{v + index * p.keys * p.dv, head.length, p.dv};
  const auto copy_keys = [&](Index k0, int stage) {
    if (k0 < visible) {
      copy_rows<D, kKeys>(keys, k0, k_tile(stage));
      copy_rows<D, kKeys>(values, k0, v_tile(stage));
    }
    commit_copies();
  };

  copy_rows<D, kRows>(queries, i0, q_tile);
  commit_copies();
  copy_keys(0, 0);
  wait_for_copies<1>();
  __syncthreads();
  OwnRows<D, M> own(q_tile);
  own.hold();

  float top[2 * M], total[2 * M], out[M][D / 8][4] = {};  // in powers of two; `total` is this lane's part
#pragma unroll
  for (int r = 0; r < 2 * M; ++r) top[r] = kMinusInfinity, total[r] = 0;

  int stage = 0;
  for (Index k0 = 0; k0 < visible; k0 += kKeys, stage ^= 1) {
    wait_for_copies<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before any more
    copy_keys(k0 + kKeys, stage ^ 1);
    if (k0 >= visible_here) continue;

    const Seen<Side::queries, M, N> seen(head, own0, k0);
    float scores[M][N][4] = {};
    add_dot_products<T>(own, k_tile(stage), scores);
    seen.mask(scores);

    const float unit = seen.unit();
    float most[2 * M];
    bool grows = false;
#pragma unroll
    for (int r = 0; r < 2 * M; ++r) {
      most[r] = kMinusInfinity;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        most[r] = fmaxf(most[r], fmaxf(scores[r / 2][n][r % 2 * 2], scores[r / 2][n][r % 2 * 2 + 1]));
      }
      most[r] = warp_max<4>(most[r]) * unit;
      grows = grows || most[r] > top[r] + kSlack;
    }
    if (__any_sync(kAllLanes, grows)) {
#pragma unroll
      for (int r = 0; r < 2 * M; ++r) {
        most[r] = fmaxf(most[r], top[r]);
        const float decay = most[r] == kMinusInfinity ? 1 : exp2_approximate(top[r] - most[r]);
        top[r] = most[r];
        total[r] *= decay;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          out[r / 2][n][r % 2 * 2] *= decay;
          out[r / 2][n][r % 2 * 2 + 1] *= decay;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2 * M; ++r) {
      const float shift = top[r] == kMinusInfinity ? 0 : top[r];  // -inf - -inf would be NaN
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& s = scores[r / 2][n][r % 2 * 2 + e];
          s = exp2_approximate(fmaf(s, unit, -shift));
          total[r] += s;
        }
      }
    }
    add_products<T, D>(scores, v_tile(stage), 0, out);
  }

  float norm[2 * M];
#pragma unroll
  for (int r = 0; r < 2 * M; ++r) {
    total[r] = warp_sum<4>(total[r]);
    const bool blind = total[r] == 0;
    norm[r] = blind ? 0 : 1 / total[r];
    const Index i = own0 + g() + 8 * r;
    if (t() == 0 && i < p.queries) {
      lse[index * p.queries + i] = blind ? kMinusInfinity : kLn2 * (top[r] + log2f(total[r]));
    }
  }
  __syncwarp();  // a warp has read the last of its queries
  store_rows(out, norm, q_tile + 16 * M * warp() * kChunks<D>, y + index * p.queries * p.dv, own0, p.queries, 0, p.dv);
}

// ---- backward ----

constexpr int kDeltaLanes = 8;

// Of each query: lse in powers of two, infinite where it sees nothing, and delta = dy . y.
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_half_delta_kernel(Index rows, int dv, const T* dy, const T* y, const float* lse, float2* statistics) {
  const Index row = static_cast<Index>(blockIdx.x) * (kThreads / kDeltaLanes) + threadIdx.x / kDeltaLanes;
  const int lane = static_cast<int>(threadIdx.x % kDeltaLanes);
  float sum = 0;
  for (int column = 8 * lane; row < rows && column < dv; column += 8 * kDeltaLanes) {
    const uint4 a = *reinterpret_cast<const uint4*>(dy + row * dv + column);
    const uint4 b = *reinterpret_cast<const uint4*>(y + row * dv + column);
    const auto add = [&](unsigned dy_pair, unsigned y_pair) {
      const float2 c = unpack<T>(dy_pair), d = unpack<T>(y_pair);
      sum += c.x * d.x;
      sum += c.y * d.y;
    };
    add(a.x, b.x), add(a.y, b.y), add(a.z, b.z), add(a.w, b.w);
  }
  sum = warp_sum<kDeltaLanes>(sum);
  if (lane > 0 || row >= rows) return;
  const float log_sum = lse[row];
  statistics[row] = make_float2(log_sum == kMinusInfinity ? -kMinusInfinity : kLog2e * log_sum, sum);
}

template <Side own, int D>
constexpr int kSums = own == Side::keys && D > 128 ? 128 : D;  // columns of da and db that a block accumulates

// A block owns 64 rows of one side and meets tiles of the other. Scores stand with the own rows down, the other ones
// across. `a` is what scores are made of (q, k), `b` what dp is made of (dy, v):
//   queries  da = dq = scale sum_j ds k
//   keys     da = dk = scale sum_i ds^T q,  db = dv = sum_i p^T dy
// da or db may be null.
template <Side own, class T, int D>
__global__ void __launch_bounds__(kBlock)
    attention_half_backward_kernel(Problem p, const T* dy, const T* q, const T* k, const T* v, const float2* statistics,
                                   T* da, T* db) {
  constexpr bool own_keys = own == Side::keys;
  constexpr int N = kOther<D> / 8, C = kSums<own, D> / 8;
  LEC7_DYNAMIC_SHARED(shared, uint4);
  constexpr int kOwnChunks = kOwn * kChunks<D>, kOtherChunks = kOther<D> * kChunks<D>;
  uint4 *const own_a = shared, *const own_b = own_a + kOwnChunks;
  const auto other_a = [&](int stage) { return own_b + kOwnChunks + 2 * stage * kOtherChunks; };
  const auto other_b = [&](int stage) { return other_a(stage) + kOtherChunks; };
  const auto other_statistics = [&](int stage) {  // of queries alone
    return reinterpret_cast<float2*>(other_a(kStages)) + stage * kOther<D>;
  };

  const Index own_count = own_keys ? p.keys : p.queries;
  const auto tiles = static_cast<unsigned>((own_count + kOwn - 1) / kOwn);
  // The rows with the most work first, where there is a causal rule: the first keys, the last queries.
  const unsigned nth = blockIdx.x % tiles;
  const Index index = blockIdx.x / tiles, own0 = Index{own_keys ? nth : tiles - 1 - nth} * kOwn;
  const Index here = own0 + 16 * warp();
  const int first_chunk = static_cast<int>(blockIdx.y) * C;
  const Head head(p, index);
  const Matrix<T> queries[2] = {{q + index * p.queries * p.d, p.queries, p.d},
                                {dy + index * p.queries * p.dv, p.queries, p.dv}};
  const Matrix<T> keys[2] = {{k + index * p.keys * p.d, head.length, p.d},
                             {v + index * p.keys * p.dv, head.length, p.dv}};
  statistics += index * p.queries;

  const Range range = range_of<own>(head, own0, kOwn), range_here = range_of<own>(head, here, 16);

  const auto copy_other = [&](Index row, int stage) {
    if (row < range.end) {
      copy_rows<D, kOther<D>>((own_keys ? queries : keys)[0], row, other_a(stage));
      copy_rows<D, kOther<D>>((own_keys ? queries : keys)[1], row, other_b(stage));
      const int i = static_cast<int>(threadIdx.x);
      if (own_keys && i < 2 * kOther<D>) {
        copy_async4(reinterpret_cast<float*>(other_statistics(stage)) + i,
                    reinterpret_cast<const float*>(statistics + row) + i, row + i / 2 < p.queries);
      }
    }
    commit_copies();
  };

  copy_rows<D, kOwn>((own_keys ? keys : queries)[0], own0, own_a);
  copy_rows<D, kOwn>((own_keys ? keys : queries)[1], own0, own_b);
  commit_copies();
  copy_other(range.begin, 0);
  float2 own_statistics[2];  // of queries alone
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const Index i = here + g() + 8 * h;
    own_statistics[h] = !own_keys && i < p.queries ? statistics[i] : make_float2(-kMinusInfinity, 0);
  }
  wait_for_copies<1>();
  __syncthreads();
  OwnRows<D, 1> a_rows(own_a), b_rows(own_b);
  a_rows.hold();
  b_rows.hold();

  float da_sums[1][C][4] = {}, db_sums[1][C][4] = {};
  int stage = 0;
  for (Index other0 = range.begin; other0 < range.end; other0 += kOther<D>, stage ^= 1) {
    wait_for_copies<0>();
    __syncthreads();  // this tile is there, and nobody reads the one before any more
    copy_other(other0 + kOther<D>, stage ^ 1);
    if (other0 >= range_here.end || other0 + kOther<D> <= range_here.begin) continue;

    const Seen<own, 1, N> seen(head, here, other0);
    float probabilities[1][N][4] = {}, ds[1][N][4] = {};
    add_dot_products<T>(a_rows, other_a(stage), probabilities);
    if (da != nullptr) add_dot_products<T>(b_rows, other_b(stage), ds);
    seen.mask(probabilities);

    const float unit = seen.unit();
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 of = own_keys ? other_statistics(stage)[8 * n + 2 * t() + i % 2] : own_statistics[i / 2];
        float& s = probabilities[0][n][i];
        s = exp2_approximate(fmaf(s, unit, -of.x));
        ds[0][n][i] = s * (ds[0][n][i] - of.y);
      }
    }
    if (own_keys && db != nullptr) add_products<T, D>(probabilities, other_b(stage), first_chunk, db_sums);
    if (da != nullptr) add_products<T, D>(ds, other_a(stage), first_chunk, da_sums);
  }

  __syncwarp();  // a warp has read the last of its rows
  const auto store = [&](const float (&sums)[1][C][4], float factor, uint4* tile, T* to, int columns) {
    const float factors[2] = {factor, factor};
    store_rows(sums, factors, tile + 16 * warp() * kChunks<D>, to + index * own_count * columns, here, own_count,
               8 * first_chunk, columns);
  };
  if (da != nullptr) store(da_sums, p.scale, own_a, da, p.d);
  if (own_keys && db != nullptr) store(db_sums, 1, own_b, db, p.dv);
}

// ---- host ----

template <int D>
constexpr std::size_t kForwardShared = (kForwardBlocks<D> * kOwn + 2 * kStages * kForwardKeys<D>)*D * 2;
template <int D>
constexpr std::size_t kBackwardShared = (2 * kOwn + 2 * kStages * kOther<D>)*D * 2 + kStages * kOther<D> * 8;

template <class T>
bool on_tensor_cores(const AttentionShape& s, std::initializer_list<const T*> arrays) {
  return properties().compute_capability >= 80 && std::max(s.d, s.dv) <= kMostWidth &&
         kBackwardShared<kMostWidth> <= properties().shared_per_block && on_boundaries(s, 8, arrays);
}

// body<D>() with the width of rows that the head sizes take.
template <class Body>
void with_width(const AttentionShape& s, Body&& body) {
  const Index width = std::max(s.d, s.dv);
  if (width <= 64) body.template operator()<64>();
  else if (width <= 128) body.template operator()<128>();
  else body.template operator()<256>();
}

template <Side own, int D, class T>
void launch_backward(const char* name, const AttentionShape& s, const Problem& p, const T* dy, const T* q, const T* k,
                     const T* v, const float2* statistics, T* da, T* db) {
  const Index tiles = ceil_div(own == Side::keys ? s.keys : s.queries, kOwn);
  const dim3 grid(blocks_of(s.n * s.heads * tiles), D / kSums<own, D>);
  launch(name, attention_half_backward_kernel<own, T, D>, {grid, kBlock, kBackwardShared<D>}, p, dy, q, k, v,
         statistics, da, db);
}

// An array in float32; null as it is.
template <class T>
class Float {
 public:
  Float(Index size, const T* x) : size_(x == nullptr ? 0 : size), buffer_(size_) {
    if (x != nullptr) convert(size_, x, buffer_.data());
  }
  float* data() { return buffer_.data(); }

 private:
  Index size_;
  Buffer<float> buffer_;
};

// A result in float32, which is rounded to where it belongs at the end.
template <class T>
class FloatResult {
 public:
  FloatResult(Index size, T* to) : size_(to == nullptr ? 0 : size), to_(to), buffer_(size_) {}
  float* data() { return buffer_.data(); }
  void round() {
    if (to_ != nullptr) convert<float, T>(size_, data(), to_);
  }

 private:
  Index size_;
  T* to_;
  Buffer<float> buffer_;
};

struct Sizes {
  Index q, k, v, y;
  explicit Sizes(const AttentionShape& s)
      : q(s.rows() * s.d), k(s.n * s.heads * s.keys * s.d), v(s.n * s.heads * s.keys * s.dv), y(s.rows() * s.dv) {}
};

}  // namespace

template <class T>
void attention_forward(const AttentionShape& s, const AttentionParams<Accumulator<T>>& params, const T* q, const T* k,
                       const T* v, T* y, Accumulator<T>* lse, T* weights) {
  const bool few = s.queries <= kFewQueries;
  if (weights == nullptr && few && on_boundaries<T>(s, 4, {q, k, v, y})) {
    return few_forward(s, params, q, k, v, y, lse);
  }
  if (weights == nullptr && !few && on_tensor_cores<T>(s, {q, k, v, y})) {
    Lengths lengths(params.key_lengths);
    const Problem p = problem_of(s, params, lengths, true);
    with_width(s, [&]<int D> {
      const Index blocks = s.n * s.heads * ceil_div(s.queries, kForwardBlocks<D> * kOwn);
      launch("attention_half_forward_kernel", attention_half_forward_kernel<T, D>,
             {blocks_of(blocks), kBlock, kForwardShared<D>}, p, q, k, v, y, lse);
    });
    return;
  }
  const Sizes sizes(s);
  Float<T> q32(sizes.q, q), k32(sizes.k, k), v32(sizes.v, v);
  FloatResult<T> y32(sizes.y, y), weights32(s.rows() * s.keys, weights);
  attention_forward<float>(s, params, q32.data(), k32.data(), v32.data(), y32.data(), lse, weights32.data());
  y32.round();
  weights32.round();
}

template <class T>
void attention_backward(const AttentionShape& s, const AttentionParams<Accumulator<T>>& params, const T* dy, const T* q,
                        const T* k, const T* v, const T* y, const Accumulator<T>* lse, T* dq, T* dk, T* dv) {
  const bool few = s.queries <= kFewQueries;
  if (few && on_boundaries<T>(s, 4, {dy, q, k, v, y, dq, dk, dv})) {
    return few_backward(s, params, dy, q, k, v, y, lse, dq, dk, dv);
  }
  if (!few && on_tensor_cores<T>(s, {dy, q, k, v, y, dq, dk, dv})) {
    Lengths lengths(params.key_lengths);
    const Problem p = problem_of(s, params, lengths, true);
    Buffer<float2> statistics(s.rows());
    launch("attention_half_delta_kernel", attention_half_delta_kernel<T>,
           {blocks_of(ceil_div(s.rows() * kDeltaLanes, kThreads)), kThreads}, s.rows(), p.dv, dy, y, lse,
           statistics.data());
    with_width(s, [&]<int D> {
      if (dq != nullptr) {
        launch_backward<Side::queries, D>("attention_half_backward_kernel<queries>", s, p, dy, q, k, v,
                                          statistics.data(), dq, static_cast<T*>(nullptr));
      }
      if (dk != nullptr || dv != nullptr) {
        launch_backward<Side::keys, D>("attention_half_backward_kernel<keys>", s, p, dy, q, k, v, statistics.data(), dk,
                                       dv);
      }
    });
    return;
  }
  const Sizes sizes(s);
  Float<T> dy32(sizes.y, dy), q32(sizes.q, q), k32(sizes.k, k), v32(sizes.v, v), y32(sizes.y, y);
  FloatResult<T> dq32(sizes.q, dq), dk32(sizes.k, dk), dv32(sizes.v, dv);
  attention_backward<float>(s, params, dy32.data(), q32.data(), k32.data(), v32.data(), y32.data(), lse, dq32.data(),
                            dk32.data(), dv32.data());
  dq32.round();
  dk32.round();
  dv32.round();
}

#define LEC7_INSTANTIATE(T)                                                                                            \
  template void attention_forward(const AttentionShape&, const AttentionParams<float>&, const T*, const T*, const T*,  \
                                  T*, float*, T*);                                                                     \
  template void attention_backward(const AttentionShape&, const AttentionParams<float>&, const T*, const T*, const T*, \
                                   const T*, const T*, const float*, T*, T*, T*);
LEC7_INSTANTIATE(float16)
LEC7_INSTANTIATE(bfloat16)
#undef LEC7_INSTANTIATE

}  // namespace lec7::cuda
