// The tile engine: one block computes a tile of C = A B, for matrices that are in memory (gemm.cu) and for those that
// only exist as patches of an image (conv.cu).
//
// The block walks along k in steps of Tile::kDepth. A step's part of A and B lies in shared memory, in a ring of
// Tile::kStages: while the threads multiply one of them, asynchronous copies fill the next ones; so a step costs one
// barrier, and the latency of global memory is hidden behind kStages - 1 steps of 2 * rows * columns * depth FLOPs. The
// sums are in registers: a tile says how a thread adds a step to its own.
//
// An operand is a source. `line(i)` is what a thread keeps of a row of A or a column of B, `step(k)` what the numbers
// at k have in common, and `find(line, step)` where their number is, or that it is zero. Along k or along the width a
// source may have 16 aligned bytes side by side (`vector`), which then are one copy. Lines that the operand does not
// have are its first: nobody stores their sums.
#pragma once

#include <span>

#include "activation.h"
#include "async_copy.h"
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
  // In shared memory k-major, however the source lies. Rows are longer than the tile's: eight lanes that copy numbers
  // side by side along k, and four such groups for neighbouring places, write to 32 banks.
  static constexpr bool kEitherWay = false;
  static constexpr int kStages = 3, kPadding = 4;

  class Sums {
   public:
    __device__ Sums() {
      const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
      i_ = warp / kWarpsAcross * kWarpRows + lane / 8 * 4;
      j_ = warp % kWarpsAcross * kWarpColumns + lane % 8 * 4;
    }
    __device__ void add(const float* a, bool, const float* b, bool) {
#pragma unroll kUnroll
      for (int k = 0; k < kDepth; ++k) {
        float x[kThreadRows], y[kThreadColumns];
        read_groups<kThreadRows>(a + k * (kRows + kPadding) + i_, 16, x);
        read_groups<kThreadColumns>(b + k * (kColumns + kPadding) + j_, 32, y);
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

// Where number (i, k) of an operand stands in shared memory.
template <int kWidth, int kPadding>
struct DepthMajor {
  __device__ static int at(int i, int k) { return k * (kWidth + kPadding) + i; }
};
// Rows are 4 units of 16 bytes, which change places from row to row, so that neither eight rows of a unit (ldmatrix)
// nor the units of two rows (a copy) share a bank.
template <int kDepth>
struct WidthMajor {
  static constexpr int kUnit = kDepth / 4;
  __device__ static int at(int i, int k) { return i * kDepth + ((k / kUnit) ^ (i / 2 % 4)) * kUnit + k % kUnit; }
};

// Operands rounded to tf32, sums in float32, on tensor cores (sm_80 and later): a warp owns 32 x 32 sums. An operand
// lies in shared memory as its source does: a fragment of one that lies along k is read by ldmatrix.
struct Tf32Tile {
  static constexpr int kRows = 128, kColumns = 64, kDepth = 16, kThreads = 256, kResident = 2, kStages = 3;
  static constexpr bool kEitherWay = true;
  // The four rows of k that a fragment is read from are in different banks.
  static constexpr int kPadding = 8;

  class Sums {
   public:
    __device__ Sums() {
      const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
      group_ = lane / 4, in_group_ = lane % 4;
      i_ = warp / 2 * 32, j_ = warp % 2 * 32;
    }
    __device__ void add(const float* a, bool a_along_depth, const float* b, bool b_along_depth) {
      const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
      for (int k = 0; k < kDepth; k += 8) {
        const int upper = k + in_group_, lower = upper + 4;
        float x[2][4], y[4][2];
        if (a_along_depth) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            read_matrices(a + WidthMajor<kDepth>::at(i_ + 16 * r + lane % 16, k + lane / 16 * 4), x[r]);
          }
        } else {
          using At = DepthMajor<kRows, kPadding>;
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int i = i_ + 16 * r + group_;
            x[r][0] = a[At::at(i, upper)], x[r][1] = a[At::at(i + 8, upper)];
            x[r][2] = a[At::at(i, lower)], x[r][3] = a[At::at(i + 8, lower)];
          }
        }
        if (b_along_depth) {
#pragma unroll
          for (int c = 0; c < 4; c += 2) {
            float both[4];
            read_matrices(b + WidthMajor<kDepth>::at(j_ + 8 * c + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * 4),
                          both);
            y[c][0] = both[0], y[c][1] = both[1], y[c + 1][0] = both[2], y[c + 1][1] = both[3];
          }
        } else {
          using At = DepthMajor<kColumns, kPadding>;
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int j = j_ + 8 * c + group_;
            y[c][0] = b[At::at(j, upper)], y[c][1] = b[At::at(j, lower)];
          }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) round(x[r]);
#pragma unroll
        for (int c = 0; c < 4; ++c) round(y[c]);
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
    __device__ static void read_matrices(const float* row, float (&to)[4]) {
      unsigned bits[4];
      load_matrices(bits, row);
#pragma unroll
      for (int e = 0; e < 4; ++e) to[e] = __int_as_float(static_cast<int>(bits[e]));
    }
    template <int n>
    __device__ static void round(float (&x)[n]) {
#pragma unroll
      for (int e = 0; e < n; ++e) x[e] = round_to_tf32(x[e]);
    }

    int group_, in_group_, i_, j_;
    float sum_[2][4][4] = {};
  };
};

// A number of an operand, or the first of 16 bytes; a zero where not `valid`.
struct Found {
  const float* at;
  bool valid;
};

// One operand on its way to shared memory. A thread copies units of 16 bytes where source and tile have them side by
// side, else single numbers: all its units are at one place along k, of several lines, or the other way round.
template <int kWidth, class T, class Source>
class Panel {
  static constexpr int kDepth = T::kDepth, kThreads = T::kThreads, kVector = 4;

  // Threads share out a step: of a line of memory each of kShare neighbours takes kTimes units, kShare apart, and each
  // of the lines that so many threads cannot have at once has one of them. Along k no more than eight neighbours, so
  // that a warp's single numbers are in several lines and go to different banks.
  template <bool kAlongDepth_, int kUnit_, int kTimes_>
  struct Order {
    static constexpr bool kAlongDepth = kAlongDepth_;
    static constexpr int kUnit = kUnit_, kTimes = kTimes_;
    static constexpr int kShare = (kAlongDepth ? kDepth : kWidth) / kUnit / kTimes,
                         kLines = kAlongDepth ? kWidth : kDepth;
    static constexpr int kGroup = kAlongDepth && kShare > 8 ? 8 : kShare;
    static constexpr int kAtOnce = kThreads / kShare, kEach = (kLines + kAtOnce - 1) / kAtOnce;

    __device__ static int place(int e) {
      return kUnit * (thread() % kGroup + thread() / kGroup / kAtOnce * kGroup + e * kShare);
    }
    __device__ static int line(int q) { return thread() / kGroup % kAtOnce + q * kAtOnce; }
    __device__ static bool exists(int q) { return kLines % kAtOnce == 0 || line(q) < kLines; }
    __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  };
  using Vectors = Order<true, kVector, 1>;
  // What a thread must know of several lines takes registers.
  using Singles = Order<true, 1, T::kEitherWay ? kVector : 1>;

 public:
  static constexpr int kNumbers = kDepth * (kWidth + T::kPadding);

  __device__ Panel(const Source& source, Index first, int end) : source_(source), end_(end) {
    in_order([&]<class O> {
#pragma unroll
      for (int q = 0; q < (O::kAlongDepth ? O::kEach : 1); ++q) {
        if (O::exists(q)) lines_[q] = source_.line(first + (O::kAlongDepth ? O::line(q) : O::place(0)));
      }
    });
  }
  __device__ bool along_depth() const { return source_.along_depth(); }
  // Begins to copy the step at k; at `end` there are no more numbers.
  __device__ void copy(int k, float* to) const {
    in_order([&]<class O> {
      if constexpr (O::kAlongDepth) {
#pragma unroll
        for (int e = 0; e < O::kTimes; ++e) {
          const int at = k + O::place(e);
          const auto step = source_.step(at);
#pragma unroll
          for (int q = 0; q < O::kEach; ++q) {
            if (!O::exists(q)) continue;
            float* const number = to + (T::kEitherWay ? WidthMajor<kDepth>::at(O::line(q), O::place(e))
                                                      : DepthMajor<kWidth, T::kPadding>::at(O::line(q), O::place(e)));
            copy_unit<O::kUnit>(number, source_.find(lines_[q], step), at < end_);
          }
        }
      } else {
#pragma unroll
        for (int q = 0; q < O::kEach; ++q) {
          if (!O::exists(q)) continue;
          const int at = k + O::line(q);
          copy_unit<O::kUnit>(to + DepthMajor<kWidth, T::kPadding>::at(O::place(0), O::line(q)),
                              source_.find(lines_[0], source_.step(at)), at < end_);
        }
      }
    });
  }

 private:
  // body<Order>()
  template <class Body>
  __device__ void in_order(Body&& body) const {
    if (source_.along_depth()) {
      if (T::kEitherWay && source_.vector) return body.template operator()<Vectors>();
      return body.template operator()<Singles>();
    }
    if (source_.vector) return body.template operator()<Order<false, kVector, 1>>();
    return body.template operator()<Order<false, 1, 1>>();
  }
  template <int kUnit>
  __device__ static void copy_unit(float* to, const Found& found, bool inside) {
    const bool valid = found.valid && inside;
    if constexpr (kUnit == kVector) {
      copy_async16(to, found.at, valid ? 16 : 0);
    } else {
      copy_async4(to, found.at, valid);
    }
  }

  const Source& source_;
  const int end_;
  typename Source::Line lines_[Singles::kEach];
};

// The tile of C whose corner is (row, column), summed over k in [begin, end). store(row, column, quad) gets each
// four numbers of a row; some may be outside C. All threads of the block call this.
template <class T, class A, class B, class Store>
__device__ void multiply_tile(const A& a, const B& b, Index row, Index column, int begin, int end, Store&& store) {
  using PanelA = Panel<T::kRows, T, A>;
  using PanelB = Panel<T::kColumns, T, B>;
  struct Stage {
    float a[PanelA::kNumbers], b[PanelB::kNumbers];
  };
  constexpr int kAhead = T::kStages - 1;
  LEC7_SHARED(ring, Stage[T::kStages]);
  const PanelA panel_a(a, row, end);
  const PanelB panel_b(b, column, end);
  const auto copy = [&](int stage, int at) {
    if (at < end) {
      panel_a.copy(at, ring[stage].a);
      panel_b.copy(at, ring[stage].b);
    }
    commit_copies();
  };
#pragma unroll
  for (int stage = 0; stage < kAhead; ++stage) copy(stage, begin + stage * T::kDepth);

  typename T::Sums sums;
  for (int at = begin, now = 0, free = kAhead; at < end; at += T::kDepth) {
    wait_for_copies<kAhead - 1>();
    __syncthreads();
    copy(free, at + kAhead * T::kDepth);
    sums.add(ring[now].a, panel_a.along_depth(), ring[now].b, panel_b.along_depth());
    free = now;
    now = now == kAhead ? 0 : now + 1;
  }
  sums.store(row, column, store);
}

// ---- What stands in memory ----

inline bool is_vector(const float* data, Index stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 4 == 0;
}

// A source: `width` rows or columns of a matrix in memory. Numbers side by side along k or along the width: one of the
// strides is 1.
struct MatrixSource {
  const float* data;
  int width, line_stride, depth_stride;
  bool vector;

  using Line = int;
  __device__ bool along_depth() const { return depth_stride == 1; }
  __device__ int line(Index i) const { return i < width ? static_cast<int>(i) : 0; }
  __device__ const float* step(int k) const { return data + static_cast<Index>(k) * depth_stride; }
  __device__ Found find(int line, const float* step) const {
    return {step + static_cast<Index>(line) * line_stride, true};
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
  // Of k numbers, a part has [begin, end).
  __device__ int begin(Index part) const { return static_cast<int>(part * chunk); }
  __device__ int end(Index part, Index k) const {
    return static_cast<int>(part * chunk + chunk < k ? part * chunk + chunk : k);
  }
};

// The tile (of those that the caller has; tf32's where it is allowed and the GPU has it) and the split that take the
// least time by a simple model: blocks run in turns of so many, and a block takes its multiplications over the tile's
// speed. A part of k is never very long: longer sums are less accurate. `batch` products are done at once. All of it
// depends on sizes alone, so that results do as well.
Plan plan_tiles(Index m, Index n, Index k, Index batch, std::span<const TileKind> kinds);

// c (rows x n, c_stride apart) = finish(the sum of the parts (splits x rows x n) in their order).
void sum_parts(const float* parts, Index splits, Index rows, Index n, float* c, Index c_stride, const Finish& finish);

}  // namespace lec7::cuda
