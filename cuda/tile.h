// The tile engine: one block computes a tile of C = A B, for matrices that are in memory (gemm.cu) and for those that
// only exist as patches of an image (conv.cu).
//
// The block walks along k in steps of Tile::kDepth. A step's part of A and B lies in shared memory, k-major, in two
// buffers: while the threads multiply one of them, the numbers of the next step are on their way to registers, and go
// to the other buffer after the multiplication; so a step costs one barrier, and the latency of global memory is hidden
// behind 2 * rows * columns * depth FLOPs. The sums are in registers: a tile says how a thread adds a step to its own.
//
// An operand is a source: what a thread loads are four numbers side by side, along k or along the operand's width (the
// rows of A, the columns of B). `start(i, k)` makes the cursor of a thread's place, and `load(cursor, k, left)` gives
// the four numbers k steps later, zeros where there are none; `left` is what remains along k from there, maybe none.
#pragma once

#include <span>

#include "activation.h"
#include "kernel.h"
#include "mma.h"

namespace lec7::cuda {

// Exact float32. Each thread owns kThreadRows x kThreadColumns sums, as groups of 4 x 4: a warp's lanes are 4 x 8
// groups, so that its reads of shared memory are 16 bytes a lane of 4 and 8 different places, without bank conflicts.
template <int kRows_, int kColumns_, int kDepth_, int kThreadRows, int kThreadColumns, int kResident_>
struct Tile {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kDepth = kDepth_;
  static constexpr int kWarpRows = 4 * kThreadRows, kWarpColumns = 8 * kThreadColumns;
  static constexpr int kWarpsAcross = kColumns / kWarpColumns;
  static constexpr int kThreads = 32 * (kRows / kWarpRows) * kWarpsAcross;
  static constexpr int kUnroll = kThreadRows * kThreadColumns < 64 ? kDepth : 2;  // more, and 64 sums spill
  static constexpr int kResident = kResident_;  // blocks of a multiprocessor, which bounds a thread's registers
  // Rows in shared memory are longer than the tile's: a pair of lanes holds two quads along k for the same place, and
  // stores them to different banks.
  static constexpr int kPadding = 4;
  __device__ static float operand(float x) { return x; }

  class Sums {
   public:
    __device__ Sums() {
      const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
      i_ = warp / kWarpsAcross * kWarpRows + lane / 8 * 4;
      j_ = warp % kWarpsAcross * kWarpColumns + lane % 8 * 4;
    }
    template <class A, class B>
    __device__ void add(const A& a, const B& b) {
#pragma unroll kUnroll
      for (int k = 0; k < kDepth; ++k) {
        float x[kThreadRows], y[kThreadColumns];
        read_groups<kThreadRows>(&a[k][i_], 16, x);
        read_groups<kThreadColumns>(&b[k][j_], 32, y);
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
          for (int c = 0; c < kThreadColumns; ++c) sum_[r][c] = fmaf(x[r], y[c], sum_[r][c]);
        }
      }
    }
    template <class Store>
    __device__ void store(Index row, Index column, Store&& store) const {
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
        for (int c = 0; c < kThreadColumns; c += 4) {
          store(row + i_ + r / 4 * 16 + r % 4, column + j_ + c / 4 * 32,
                make_float4(sum_[r][c], sum_[r][c + 1], sum_[r][c + 2], sum_[r][c + 3]));
        }
      }
    }

   private:
    template <int n>
    __device__ static void read_groups(const float* from, int apart, float (&to)[n]) {
#pragma unroll
      for (int g = 0; g < n / 4; ++g) {
        const float4 quad = *reinterpret_cast<const float4*>(from + g * apart);
        to[4 * g] = quad.x, to[4 * g + 1] = quad.y, to[4 * g + 2] = quad.z, to[4 * g + 3] = quad.w;
      }
    }

    int i_, j_;
    float sum_[kThreadRows][kThreadColumns] = {};
  };
};
using LargeTile = Tile<128, 128, 8, 8, 8, 2>;  // 64 multiplications for 4 reads of 16 bytes
using TallTile = Tile<128, 64, 8, 8, 4, 2>;    // for 64 columns
using SmallTile = Tile<64, 64, 16, 4, 4, 2>;   // for small matrices
using NarrowTile = Tile<128, 32, 8, 4, 4, 2>;  // for 32 columns
using SkinnyTile = Tile<16, 128, 8, 4, 4, 4>;  // for a few rows: bound by the reading of B

// Operands rounded to tf32, sums in float32, on tensor cores (sm_80 and later): a warp owns 32 x 32 sums.
struct Tf32Tile {
  static constexpr int kRows = 128, kColumns = 64, kDepth = 16, kThreads = 256, kResident = 2;
  // The four rows of k that a fragment is read from are in different banks.
  static constexpr int kPadding = 8;
  __device__ static float operand(float x) { return round_to_tf32(x); }

  class Sums {
   public:
    __device__ Sums() {
      const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
      group_ = lane / 4, in_group_ = lane % 4;
      i_ = warp / 2 * 32, j_ = warp % 2 * 32;
    }
    template <class A, class B>
    __device__ void add(const A& a, const B& b) {
#pragma unroll
      for (int k = 0; k < kDepth; k += 8) {
        const int upper = k + in_group_, lower = upper + 4;
        float x[2][4], y[4][2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int i = i_ + 16 * r + group_;
          x[r][0] = a[upper][i], x[r][1] = a[upper][i + 8], x[r][2] = a[lower][i], x[r][3] = a[lower][i + 8];
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int j = j_ + 8 * c + group_;
          y[c][0] = b[upper][j], y[c][1] = b[lower][j];
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int c = 0; c < 4; ++c) mma_tf32(sum_[r][c], x[r], y[c]);
        }
      }
    }
    // A lane has two numbers of a row and two of the eighth row after it: of two neighbours one takes the first row's
    // four, the other the second's.
    template <class Store>
    __device__ void store(Index row, Index column, Store&& store) const {
      const bool odd = in_group_ % 2 != 0;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const float (&d)[4] = sum_[r][c];
          const float first = __shfl_xor_sync(~0u, odd ? d[0] : d[2], 1);
          const float second = __shfl_xor_sync(~0u, odd ? d[1] : d[3], 1);
          store(row + i_ + 16 * r + group_ + (odd ? 8 : 0), column + j_ + 8 * c + in_group_ / 2 * 4,
                odd ? make_float4(first, second, d[2], d[3]) : make_float4(d[0], d[1], first, second));
        }
      }
    }

   private:
    int group_, in_group_, i_, j_;
    float sum_[2][4][4] = {};
  };
};

// Up to four numbers from `at`; `vector`: its address is a multiple of 16 bytes.
__device__ inline float4 load_quad(const float* at, int left, bool vector) {
  if (vector && left >= 4) return __ldg(reinterpret_cast<const float4*>(at));
  float4 quad = make_float4(0, 0, 0, 0);
  if (left > 0) quad.x = __ldg(at);
  if (left > 1) quad.y = __ldg(at + 1);
  if (left > 2) quad.z = __ldg(at + 2);
  if (left > 3) quad.w = __ldg(at + 3);
  return quad;
}

// Up to four numbers that lie at find(k), find(k + 1), ...; `vector`: four at a time are side by side.
template <class Find>
__device__ float4 gather_quad(Find&& find, int k, int left, bool vector) {
  if (vector) return left > 0 ? __ldg(reinterpret_cast<const float4*>(find(k))) : make_float4(0, 0, 0, 0);
  float v[4] = {};
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (e < left) v[e] = __ldg(find(k + e));
  }
  return make_float4(v[0], v[1], v[2], v[3]);
}

// One operand on its way to shared memory: a thread's quads of a step.
template <int kWidth, class T, class Source>
class Panel {
 public:
  using Shared = float[T::kDepth][kWidth + T::kPadding];

  __device__ Panel(const Source& source, Index first, Index k, int count) : source_(source), count_(count) {
#pragma unroll
    for (int q = 0; q < kEach; ++q) cursors_[q] = source_.start(first + place(q).i, k + place(q).k);
  }
  __device__ void load(int k) {
#pragma unroll
    for (int q = 0; q < kEach; ++q) {
      if (exists(q)) quads_[q] = source_.load(cursors_[q], k, count_ - k - place(q).k);
    }
  }
  __device__ void store(Shared& to) const {
#pragma unroll
    for (int q = 0; q < kEach; ++q) {
      if (!exists(q)) continue;
      const auto [i, k] = place(q);
      const float4 quad = make_float4(T::operand(quads_[q].x), T::operand(quads_[q].y), T::operand(quads_[q].z),
                                      T::operand(quads_[q].w));
      if (source_.along_depth()) {
        to[k][i] = quad.x;
        to[k + 1][i] = quad.y;
        to[k + 2][i] = quad.z;
        to[k + 3][i] = quad.w;
      } else {
        *reinterpret_cast<float4*>(&to[k][i]) = quad;
      }
    }
  }

 private:
  static constexpr int kThreads = T::kThreads, kQuads = kWidth * T::kDepth / 4,
                       kEach = (kQuads + kThreads - 1) / kThreads;
  struct Place {
    int i, k;
  };
  // Along k two lanes take the 32 bytes of a sector, and the next lanes the next rows.
  __device__ Place place(int q) const {
    const int quad = static_cast<int>(threadIdx.x) + q * kThreads;
    if (source_.along_depth()) return {quad / 2 % kWidth, 4 * (quad % 2 + 2 * (quad / (2 * kWidth)))};
    return {4 * (quad % (kWidth / 4)), quad / (kWidth / 4)};
  }
  __device__ bool exists(int q) const {
    return kQuads % kThreads == 0 || static_cast<int>(threadIdx.x) + q * kThreads < kQuads;
  }

  const Source& source_;
  const int count_;
  typename Source::Cursor cursors_[kEach];
  float4 quads_[kEach] = {};
};

// The tile of C whose corner is (row, column), summed over k in [k, k + count). store(row, column, quad) gets each
// four numbers of a row; some may be outside C. All threads of the block call this.
template <class T, class A, class B, class Store>
__device__ void multiply_tile(const A& a, const B& b, Index row, Index column, Index k, int count, Store&& store) {
  using PanelA = Panel<T::kRows, T, A>;
  using PanelB = Panel<T::kColumns, T, B>;
  struct Buffers {
    typename PanelA::Shared a[2];
    typename PanelB::Shared b[2];
  };
  LEC7_SHARED(shared, Buffers);
  PanelA panel_a(a, row, k, count);
  PanelB panel_b(b, column, k, count);
  panel_a.load(0);
  panel_b.load(0);
  panel_a.store(shared.a[0]);
  panel_b.store(shared.b[0]);
  __syncthreads();

  typename T::Sums sums;
  for (int at = 0, now = 0; at < count; at += T::kDepth, now ^= 1) {
    const bool more = at + T::kDepth < count;
    if (more) {
      panel_a.load(at + T::kDepth);
      panel_b.load(at + T::kDepth);
    }
    sums.add(shared.a[now], shared.b[now]);
    if (more) {
      panel_a.store(shared.a[now ^ 1]);
      panel_b.store(shared.b[now ^ 1]);
    }
    __syncthreads();
  }
  sums.store(row, column, store);
}

// ---- What stands in memory ----

inline bool is_vector(const float* data, Index stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 4 == 0;
}

// A source: `width` rows or columns of a matrix in memory, of which k or the width is contiguous.
struct MatrixSource {
  const float* data;
  Index stride, width;
  bool depth_contiguous, vector;

  struct Cursor {
    const float* at;
    int left;  // along the width
  };
  __device__ bool along_depth() const { return depth_contiguous; }
  __device__ Cursor start(Index i, Index k) const {
    const Index left = width - i;
    return {data + (depth_contiguous ? i * stride + k : k * stride + i), static_cast<int>(left < 4 ? left : 4)};
  }
  __device__ float4 load(const Cursor& c, int k, int left) const {
    if (depth_contiguous) return load_quad(c.at + k, c.left > 0 ? left : 0, vector);
    return load_quad(c.at + k * stride, left > 0 ? c.left : 0, vector);
  }
};

// ---- What happens to the sums ----

// Bias and activation of the sums of a row: bias (n) may be null.
struct Finish {
  const float* bias;
  Activation activation;

  __device__ float operator()(float sum, Index column) const {
    return activate(activation, bias == nullptr ? sum : sum + __ldg(bias + column));
  }
};

// A row's numbers from `column` on, at `to`, those of them that C (n columns) has.
__device__ inline void store_quad(float* to, Index column, Index n, bool vector, const Finish& finish, float4 quad) {
  const float values[4] = {quad.x, quad.y, quad.z, quad.w};
  float out[4];
#pragma unroll
  for (int e = 0; e < 4; ++e) out[e] = column + e < n ? finish(values[e], column + e) : 0.0f;
  if (vector && column + 4 <= n) {
    *reinterpret_cast<float4*>(to) = make_float4(out[0], out[1], out[2], out[3]);
    return;
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (column + e < n) to[e] = out[e];
  }
}

// ---- Which tile, and how many parts of k ----

enum class TileKind { large, tall, small, narrow, skinny, tf32 };

struct Plan {
  TileKind kind;
  Index tiles_down, tiles_across;
  Index chunk, splits;  // the parts of k: `chunk` each, the last the rest

  Index blocks() const { return tiles_down * tiles_across * splits; }
};

// The tile (of those that the caller has; tf32's where it is allowed and the GPU has it) and the split that take the
// least time by a simple model: blocks run in turns of so many, and a block takes its multiplications over the tile's
// speed. A part of k is never very long: longer sums are less accurate. `batch` products are done at once. All of it
// depends on sizes alone, so that results do as well.
Plan plan_tiles(Index m, Index n, Index k, Index batch, std::span<const TileKind> kinds);

// c (rows x n, c_stride apart) = finish(the sum of the parts (splits x rows x n) in their order).
void sum_parts(const float* parts, Index splits, Index rows, Index n, float* c, Index c_stride, const Finish& finish);

}  // namespace lec7::cuda
