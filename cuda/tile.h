// The tile engine: one block computes a tile of C = A B, for matrices that are in memory (gemm.cu) and for those that
// only exist as patches of an image (conv.cu).
//
// The block walks along k in steps of Tile::kDepth. A step's part of A and B lies in shared memory, k-major, in two
// buffers: while the threads multiply one of them, the numbers of the next step are on their way to registers, and go
// to the other buffer after the multiplication; so a step costs one barrier, and the latency of global memory is hidden
// behind 2 * rows * columns * depth FLOPs. Each thread owns kThreadRows x kThreadColumns sums in registers, as groups
// of 4 x 4: a warp's lanes are 4 x 8 groups, so that its reads of shared memory are 16 bytes a lane of 4 and 8
// different places, without bank conflicts.
//
// An operand is a source: what a thread loads are four numbers side by side, along k or along the operand's width (the
// rows of A, the columns of B). `start(i, k)` makes the cursor of a thread's place, and `load(cursor, k, left)` gives
// the four numbers k steps later, zeros where there are none; `left` is what remains along k from there, maybe none.
#pragma once

#include <span>

#include "activation.h"
#include "kernel.h"

namespace lec7::cuda {

template <int kRows_, int kColumns_, int kDepth_, int kThreadRows_, int kThreadColumns_, int kResident_>
struct Tile {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kDepth = kDepth_;
  static constexpr int kThreadRows = kThreadRows_, kThreadColumns = kThreadColumns_;
  static constexpr int kWarpRows = 4 * kThreadRows, kWarpColumns = 8 * kThreadColumns;
  static constexpr int kWarpsDown = kRows / kWarpRows, kWarpsAcross = kColumns / kWarpColumns;
  static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
  static constexpr int kUnroll = kThreadRows * kThreadColumns < 64 ? kDepth : 2;  // more, and 64 sums spill
  static constexpr int kResident = kResident_;  // blocks of a multiprocessor, which bounds a thread's registers
};
using LargeTile = Tile<128, 128, 8, 8, 8, 2>;  // 64 multiplications for 4 reads of 16 bytes
using TallTile = Tile<128, 64, 8, 8, 4, 2>;    // for 64 columns
using SmallTile = Tile<64, 64, 16, 4, 4, 2>;   // for small matrices
using SkinnyTile = Tile<16, 128, 8, 4, 4, 4>;  // for a few rows: bound by the reading of B

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

// One operand on its way to shared memory: a thread's quads of a step.
template <int kWidth, int kDepth, int kThreads, class Source>
class Panel {
 public:
  // Rows of the tile are 4 numbers longer than kWidth: quads along k, two of which a pair of lanes holds for the same
  // place, are stored to different banks.
  static constexpr int kStride = kWidth + 4;
  using Shared = float[kDepth][kStride];

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
      if (source_.along_depth()) {
        to[k][i] = quads_[q].x;
        to[k + 1][i] = quads_[q].y;
        to[k + 2][i] = quads_[q].z;
        to[k + 3][i] = quads_[q].w;
      } else {
        *reinterpret_cast<float4*>(&to[k][i]) = quads_[q];
      }
    }
  }

 private:
  static constexpr int kQuads = kWidth * kDepth / 4, kEach = (kQuads + kThreads - 1) / kThreads;
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
  float4 quads_[kEach];
};

__device__ inline void read_groups(const float* from, int apart, int groups, float* to) {
#pragma unroll
  for (int g = 0; g < groups; ++g) {
    const float4 quad = *reinterpret_cast<const float4*>(from + g * apart);
    to[4 * g] = quad.x, to[4 * g + 1] = quad.y, to[4 * g + 2] = quad.z, to[4 * g + 3] = quad.w;
  }
}

// The tile of C whose corner is (row, column), summed over k in [k, k + count). store(row, column, quad) gets each
// four numbers of a row; some may be outside C. All threads of the block call this.
template <class T, class A, class B, class Store>
__device__ void multiply_tile(const A& a, const B& b, Index row, Index column, Index k, int count, Store&& store) {
  using PanelA = Panel<T::kRows, T::kDepth, T::kThreads, A>;
  using PanelB = Panel<T::kColumns, T::kDepth, T::kThreads, B>;
  struct Buffers {
    typename PanelA::Shared a[2];
    typename PanelB::Shared b[2];
  };
  LEC7_SHARED(shared, Buffers);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int i = warp / T::kWarpsAcross * T::kWarpRows + lane / 8 * 4;
  const int j = warp % T::kWarpsAcross * T::kWarpColumns + lane % 8 * 4;

  PanelA panel_a(a, row, k, count);
  PanelB panel_b(b, column, k, count);
  panel_a.load(0);
  panel_b.load(0);
  panel_a.store(shared.a[0]);
  panel_b.store(shared.b[0]);
  __syncthreads();

  float sum[T::kThreadRows][T::kThreadColumns] = {};
  for (int at = 0, now = 0; at < count; at += T::kDepth, now ^= 1) {
    const bool more = at + T::kDepth < count;
    if (more) {
      panel_a.load(at + T::kDepth);
      panel_b.load(at + T::kDepth);
    }
#pragma unroll T::kUnroll
    for (int step = 0; step < T::kDepth; ++step) {
      float x[T::kThreadRows], y[T::kThreadColumns];
      read_groups(&shared.a[now][step][i], 16, T::kThreadRows / 4, x);
      read_groups(&shared.b[now][step][j], 32, T::kThreadColumns / 4, y);
#pragma unroll
      for (int r = 0; r < T::kThreadRows; ++r) {
#pragma unroll
        for (int c = 0; c < T::kThreadColumns; ++c) sum[r][c] = fmaf(x[r], y[c], sum[r][c]);
      }
    }
    if (more) {
      panel_a.store(shared.a[now ^ 1]);
      panel_b.store(shared.b[now ^ 1]);
    }
    __syncthreads();
  }

#pragma unroll
  for (int r = 0; r < T::kThreadRows; ++r) {
#pragma unroll
    for (int c = 0; c < T::kThreadColumns; c += 4) {
      store(row + i + r / 4 * 16 + r % 4, column + j + c / 4 * 32,
            make_float4(sum[r][c], sum[r][c + 1], sum[r][c + 2], sum[r][c + 3]));
    }
  }
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

enum class TileKind { large, tall, small, skinny };

struct Plan {
  TileKind kind;
  Index tiles_down, tiles_across;
  Index chunk, splits;  // the parts of k: `chunk` each, the last the rest

  Index blocks() const { return tiles_down * tiles_across * splits; }
};

// The tile (of those that the caller has) and the split that take the least time by a simple model: blocks run in turns
// of kAtOnce, and a block takes its multiplications over the tile's speed. It depends on sizes alone, so that results
// do as well. `batch` products are done at once. `most` bounds a part of k: longer sums are less accurate.
Plan plan_tiles(Index m, Index n, Index k, Index batch, Index most, std::span<const TileKind> kinds);

// c (rows x n, c_stride apart) = finish(the sum of the parts (splits x rows x n) in their order).
void sum_parts(const float* parts, Index splits, Index rows, Index n, float* c, Index c_stride, const Finish& finish);

}  // namespace lec7::cuda
