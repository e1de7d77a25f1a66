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
//
// Arrays store numbers as T: float, float16 or bfloat16. Products of 16 bits run on tensor cores with the operands as
// they are stored, or, where a chip has none for them, on the float tiles, to which a copy converts. Sums are float32
// and rounded once, when they are stored.
#pragma once

#include <cstdint>
#include <span>

#include "activation.h"
#include "async_copy.h"
#include "half.h"
#include "kernel.h"
#include "mma.h"

namespace lec7::cuda {

// ---- Where number (i, k) of an operand stands in shared memory ----
//
// `from(index, di, dk)`: the number di lines and dk numbers further along k from the one at `index`, where the binary
// digits of di and dk are none of that one's i and k: so a thread keeps one index, and the distances are constants.

// k-major, with lines that are longer than the tile's, so that numbers at one place go to different banks.
template <int kWidth, int kPadding>
struct Padded {
  static constexpr int kLine = kWidth + kPadding;
  __device__ static int at(int i, int k) { return k * kLine + i; }
  __device__ static int from(int index, int di, int dk) { return index + dk * kLine + di; }
};
// k-major, 16 bits a number: the units of 16 bytes change places from line to line for the same purpose.
template <int kWidth>
struct Swizzled {
  static constexpr int kLine = kWidth;
  __device__ static int at(int i, int k) { return k * kLine + (i ^ (k % 8 * 8)); }
  __device__ static int from(int index, int di, int dk) { return (index ^ di ^ (dk % 8 * 8)) + dk * kLine; }
};
// As a source lies along k. Rows are 4 units of 16 bytes, which change places from row to row, so that neither eight
// rows of a unit (ldmatrix) nor the units of two rows (a copy) share a bank. di is a multiple of 8.
template <int kDepth>
struct WidthMajor {
  __device__ static int at(int i, int k) { return i * kDepth + (k ^ (i / 2 % 4 * (kDepth / 4))); }
  __device__ static int from(int index, int di, int dk) { return (index ^ dk) + di * kDepth; }
};

// x, of which the compiler knows nothing: it would keep in registers, from step to step, all that it can compute from
// x.
__device__ inline int hidden(int x) {
#if !defined(LEC7_CUDA_HOST)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// ---- Tiles ----

// Exact float32. Each thread owns kThreadRows x kThreadColumns sums, as groups of 4 x 4: a warp's lanes are 4 x 8
// groups, so that its reads of shared memory are 16 bytes a lane of 4 and 8 different places, without bank conflicts.
template <int kRows_, int kColumns_, int kDepth_, int kThreadRows, int kThreadColumns, int kResident_>
struct FmaTile {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kDepth = kDepth_;
  static constexpr int kWarpRows = 4 * kThreadRows, kWarpColumns = 8 * kThreadColumns;
  static constexpr int kWarpsAcross = kColumns / kWarpColumns;
  static constexpr int kThreads = 32 * (kRows / kWarpRows) * kWarpsAcross;
  static constexpr int kUnroll = kThreadRows * kThreadColumns < 64 ? kDepth : 2;  // more, and 64 sums spill
  static constexpr int kResident = kResident_;  // blocks of a multiprocessor, which bounds a thread's registers
  using Operand = float;
  static constexpr int kStages = 3;
  static constexpr bool kTensorCores = false;
  // In shared memory k-major, however the source lies: eight lanes that copy numbers side by side along k, and four
  // such groups for neighbouring places, write to 32 banks.
  static constexpr bool kEitherWay = false;
  template <int kWidth>
  using DepthMajor = Padded<kWidth, 4>;

  class Sums {
   public:
    __device__ Sums(bool, bool) {
      const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
      i_ = warp / kWarpsAcross * kWarpRows + lane / 8 * 4;
      j_ = warp % kWarpsAcross * kWarpColumns + lane % 8 * 4;
    }
    __device__ void add(const float* a, bool, const float* b, bool) {
      const int i = hidden(i_), j = hidden(j_);
#pragma unroll kUnroll
      for (int k = 0; k < kDepth; ++k) {
        float x[kThreadRows], y[kThreadColumns];
        read_groups<kThreadRows>(a + DepthMajor<kRows>::at(i, k), 16, x);
        read_groups<kThreadColumns>(b + DepthMajor<kColumns>::at(j, k), 32, y);
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
          for (int c = 0; c < kThreadColumns; ++c) sum_[r][c] = fmaf(x[r], y[c], sum_[r][c]);
        }
      }
    }
    template <class Store>
    __device__ void store(int row, int column, Store&& store) const {
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
using LargeTile = FmaTile<128, 128, 8, 8, 8, 2>;  // 64 multiplications for 4 reads of 16 bytes
using TallTile = FmaTile<128, 64, 8, 8, 4, 2>;    // for 64 columns
using SmallTile = FmaTile<64, 64, 16, 4, 4, 2>;   // for small matrices
using NarrowTile = FmaTile<128, 32, 8, 4, 4, 2>;  // for 32 columns
using SkinnyTile = FmaTile<16, 128, 8, 4, 4, 4>;  // for a few rows: bound by the reading of B

// The sums of a warp on tensor cores, 16 kDown rows x 32 columns, as mma.h's fragments.
template <int kDown>
class WarpSums {
 public:
  // A lane has two numbers of a row and two of the eighth row after it: of two neighbours one takes the first row's
  // four, the other the second's.
  template <class Store>
  __device__ void store(int row, int column, Store&& store) const {
    const int group = lane() / 4, in_group = lane() % 4;
    const bool odd = in_group % 2 != 0;
#pragma unroll
    for (int r = 0; r < kDown; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float (&d)[4] = sum_[r][c];
        const float first = __shfl_xor_sync(~0u, odd ? d[0] : d[2], 1);
        const float second = __shfl_xor_sync(~0u, odd ? d[1] : d[3], 1);
        store(row + i_ + 16 * r + group + (odd ? 8 : 0), column + j_ + 8 * c + in_group / 2 * 4,
              odd ? make_float4(first, second, d[2], d[3]) : make_float4(d[0], d[1], first, second));
      }
    }
  }

 protected:
  __device__ WarpSums(int warps_across) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    i_ = warp / warps_across * 16 * kDown, j_ = warp % warps_across * 32;
  }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  int i_, j_;
  float sum_[kDown][4][4] = {};
};

// Operands rounded to tf32, sums in float32, on tensor cores (sm_80 and later): a warp owns 32 x 32 sums. An operand
// lies in shared memory as its source does: a fragment of one that lies along k is read by ldmatrix.
struct Tf32Tile {
  using Operand = float;
  static constexpr int kRows = 128, kColumns = 64, kDepth = 16, kThreads = 256, kResident = 2, kStages = 3;
  static constexpr bool kTensorCores = true, kEitherWay = true;
  // The four rows of k that a fragment is read from are in different banks.
  template <int kWidth>
  using DepthMajor = Padded<kWidth, 8>;

  class Sums : public WarpSums<2> {
   public:
    __device__ Sums(bool, bool) : WarpSums(2) {}
    __device__ void add(const float* a, bool a_along_depth, const float* b, bool b_along_depth) {
#pragma unroll
      for (int k = 0; k < kDepth; k += 8) {
        const int group = lane() / 4, upper = k + lane() % 4, lower = upper + 4;
        float x[2][4], y[4][2];
        if (a_along_depth) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            read_matrices(a + WidthMajor<kDepth>::at(i_ + 16 * r + lane() % 16, k + lane() / 16 * 4), x[r]);
          }
        } else {
          using At = DepthMajor<kRows>;
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int i = i_ + 16 * r + group;
            x[r][0] = a[At::at(i, upper)], x[r][1] = a[At::at(i + 8, upper)];
            x[r][2] = a[At::at(i, lower)], x[r][3] = a[At::at(i + 8, lower)];
          }
        }
        if (b_along_depth) {
#pragma unroll
          for (int c = 0; c < 4; c += 2) {
            float both[4];
            read_matrices(b + WidthMajor<kDepth>::at(j_ + 8 * c + lane() / 16 * 8 + lane() % 8, k + lane() / 8 % 2 * 4),
                          both);
            y[c][0] = both[0], y[c][1] = both[1], y[c + 1][0] = both[2], y[c + 1][1] = both[3];
          }
        } else {
          using At = DepthMajor<kColumns>;
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int j = j_ + 8 * c + group;
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
  };
};

// float16 or bfloat16, sums in float32, on tensor cores: a warp owns 64 x 32 sums. Both ways in which an operand may
// lie are ldmatrix's, one of them transposed.
template <class T>
struct HalfTile {
  using Operand = T;
  static constexpr int kRows = 128, kColumns = 128, kDepth = 32, kThreads = 256, kResident = 2, kStages = 3;
  static constexpr bool kTensorCores = true, kEitherWay = true;
  template <int kWidth>
  using DepthMajor = Swizzled<kWidth>;

  class Sums : public WarpSums<4> {
   public:
    __device__ Sums(bool a_along_depth, bool b_along_depth) : WarpSums<4>(kColumns / 32) {
      const int row = lane() % 8, half = lane() / 8 % 2, quarter = lane() / 16;
      a_ = a_along_depth ? WidthMajor<kDepth>::at(this->i_ + 8 * half + row, 8 * quarter)
                         : DepthMajor<kRows>::at(this->i_ + 8 * half, 8 * quarter + row);
      b_ = b_along_depth ? WidthMajor<kDepth>::at(this->j_ + 8 * quarter + row, 8 * half)
                         : DepthMajor<kColumns>::at(this->j_ + 8 * quarter, 8 * half + row);
    }
    __device__ void add(const T* a, bool a_along_depth, const T* b, bool b_along_depth) {
      const int a_index = hidden(a_), b_index = hidden(b_);
#pragma unroll
      for (int k = 0; k < kDepth; k += 16) {
        unsigned x[4], y[4][2];
#pragma unroll
        for (int c = 0; c < 4; c += 2) {
          unsigned both[4];
          if (b_along_depth) {
            load_matrices(both, b + WidthMajor<kDepth>::from(b_index, 8 * c, k));
          } else {
            load_transposed_matrices(both, b + DepthMajor<kColumns>::from(b_index, 8 * c, k));
          }
          y[c][0] = both[0], y[c][1] = both[1], y[c + 1][0] = both[2], y[c + 1][1] = both[3];
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          if (a_along_depth) {
            load_matrices(x, a + WidthMajor<kDepth>::from(a_index, 16 * r, k));
          } else {
            load_transposed_matrices(x, a + DepthMajor<kRows>::from(a_index, 16 * r, k));
          }
#pragma unroll
          for (int c = 0; c < 4; ++c) mma<T>(this->sum_[r][c], x, y[c]);
        }
      }
    }

   private:
    int a_, b_;  // where the rows of the lane's first matrices are
  };
};
// Does the chip that this is compiled for run the tile on numbers stored as T? Products of 16 bits take the float tiles
// where no tensor cores have them.
template <class Tile, class T>
constexpr bool runs() {
#if !defined(__CUDA_ARCH__)
  return true;
#elif __CUDA_ARCH__ >= 800
  return Tile::kTensorCores || !is_half<T>;
#else
  return !Tile::kTensorCores;
#endif
}

// ---- Operands on their way to shared memory ----

// A number of an operand, or the first of 16 bytes; a zero where not `valid`.
template <class T>
struct Found {
  const T* at;
  bool valid;
};

template <class T>
__device__ T load_number(const T* at) {
  if constexpr (is_half<T>) return {__ldg(&at->bits)};
  else return __ldg(at);
}

// Four numbers, or one, begin to arrive in shared memory as the tile wants them, or do at once.
template <int kUnit, class T, class Operand>
__device__ void copy_unit(const Found<T>& from, Operand* to) {
  if constexpr (!std::is_same_v<T, Operand>) {
    static_assert(is_half<T> && (kUnit == 1 || kUnit == 4));
    if constexpr (kUnit == 4) {
      const uint2 bits = from.valid ? __ldg(reinterpret_cast<const uint2*>(from.at)) : make_uint2(0, 0);
      const float2 first = unpack<T>(bits.x), second = unpack<T>(bits.y);
      *reinterpret_cast<float4*>(to) = make_float4(first.x, first.y, second.x, second.y);
    } else {
      *to = from.valid ? to_float(load_number(from.at)) : 0.0f;
    }
  } else if constexpr (kUnit * sizeof(T) == 16) {
    copy_async16(to, from.at, from.valid ? 16 : 0);
  } else if constexpr (sizeof(T) == 4) {
    copy_async4(to, from.at, from.valid);
  } else {
    *to = from.valid ? load_number(from.at) : T{};
  }
}

// One operand on its way to shared memory. A thread copies units of 16 bytes where source and tile have them side by
// side, else single numbers: all its units are at one place along k, of several lines, or the other way round.
template <int kWidth, class Tile, class Source>
class Panel {
  using Operand = typename Tile::Operand;
  using DepthMajor = typename Tile::template DepthMajor<kWidth>;
  using AlongDepth = std::conditional_t<Tile::kEitherWay, WidthMajor<Tile::kDepth>, DepthMajor>;
  static constexpr int kDepth = Tile::kDepth, kThreads = Tile::kThreads, kVector = 16 / sizeof(Operand);

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
    static constexpr bool kAll = kLines % kAtOnce == 0;  // no thread has a line that the tile has not
    static_assert(kAll || (!kAlongDepth && kEach == 1));
    // What is not asynchronous arrives in registers.
    static constexpr int kUnroll =
        std::is_same_v<typename Source::Number, Operand> && kUnit * sizeof(Operand) >= 4 ? 16 : 1;

    __device__ static int place() { return kUnit * (thread() % kGroup + thread() / kGroup / kAtOnce * kGroup); }
    __device__ static int line() { return thread() / kGroup % kAtOnce; }
    __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  };
  using Vectors = Order<true, kVector, 1>;
  // What a thread must know of several lines takes registers.
  using Singles = Order<true, 1, Tile::kEitherWay ? kVector : 1>;

 public:
  static constexpr int kNumbers = kDepth * DepthMajor::kLine;

  __device__ Panel(const Source& source, int first, int end) : source_(source), end_(end) {
    in_order([&]<class O> {
      const int i = O::kAlongDepth ? O::line() : O::place();
      k_ = O::kAlongDepth ? O::place() : O::line();
      index_ = O::kAlongDepth ? AlongDepth::at(i, k_) : DepthMajor::at(i, k_);
#pragma unroll
      for (int q = 0; q < (O::kAlongDepth ? O::kEach : 1); ++q) lines_[q] = source_.line(first + i + q * O::kAtOnce);
    });
  }
  __device__ bool along_depth() const { return source_.along_depth(); }
  // Begins to copy the step at k; at `end` there are no more numbers.
  __device__ void copy(int k, Operand* to) const {
    const int index = hidden(index_), place = hidden(k_);
    in_order([&]<class O> {
      if constexpr (O::kAlongDepth) {
#pragma unroll(O::kUnroll)
        for (int e = 0; e < O::kTimes; ++e) {
          const int at = k + place + e * O::kShare;
          const auto step = source_.step(at);
#pragma unroll
          for (int q = 0; q < O::kEach; ++q) {
            copy<O::kUnit>(source_.find(lines_[q], step), at < end_,
                           to + AlongDepth::from(index, q * O::kAtOnce, e * O::kShare));
          }
        }
      } else if (O::kAll || place < kDepth) {
#pragma unroll(O::kUnroll)
        for (int q = 0; q < O::kEach; ++q) {
          const int at = k + place + q * O::kAtOnce;
          copy<O::kUnit>(source_.find(lines_[0], source_.step(at)), at < end_,
                         to + DepthMajor::from(index, 0, q * O::kAtOnce));
        }
      }
    });
  }

 private:
  // body<Order>()
  template <class Body>
  __device__ void in_order(Body&& body) const {
    if (source_.along_depth()) {
      if constexpr (Tile::kEitherWay) {
        if (source_.vector) return body.template operator()<Vectors>();
      }
      return body.template operator()<Singles>();
    }
    if (source_.vector) return body.template operator()<Order<false, kVector, 1>>();
    return body.template operator()<Order<false, 1, 1>>();
  }
  template <int kUnit, class T>
  __device__ static void copy(const Found<T>& found, bool inside, Operand* to) {
    copy_unit<kUnit>(Found<T>{found.at, found.valid && inside}, to);
  }

  const Source& source_;
  const int end_;
  int index_, k_;  // of the thread's first number
  typename Source::Line lines_[Singles::kEach];
};

// Where a block is in the grid, along one axis after the other.
class BlockPlace {
 public:
  __device__ int next(Index n) {
    const unsigned i = rest_ % static_cast<unsigned>(n);
    rest_ /= static_cast<unsigned>(n);
    return static_cast<int>(i);
  }
  __device__ int rest() const { return static_cast<int>(rest_); }

 private:
  unsigned rest_ = blockIdx.x;
};

// The tile of C whose corner is (row, column), summed over k in [begin, end). store(row, column, quad) gets each
// four numbers of a row; some may be outside C. All threads of the block call this.
template <class Tile, class A, class B, class Store>
__device__ void multiply_tile(const A& a, const B& b, int row, int column, int begin, int end, Store&& store) {
#if !defined(LEC7_CUDA_HOST)
  if constexpr (!runs<Tile, typename A::Number>()) return __trap();
#endif
  using PanelA = Panel<Tile::kRows, Tile, A>;
  using PanelB = Panel<Tile::kColumns, Tile, B>;
  struct Stage {
    typename Tile::Operand a[PanelA::kNumbers], b[PanelB::kNumbers];
  };
  static_assert(sizeof(Stage) * Tile::kStages <= 48 << 10);
  constexpr int kAhead = Tile::kStages - 1;
  LEC7_SHARED(ring, Stage[Tile::kStages]);
  const PanelA panel_a(a, row, end);
  const PanelB panel_b(b, column, end);
  const auto copy = [&](int stage, int at) {
    if (at < end) {
      panel_a.copy(at, ring[stage].a);
      panel_b.copy(at, ring[stage].b);
    }
    commit_copies();
  };
#pragma unroll 1
  for (int stage = 0; stage < kAhead; ++stage) copy(stage, begin + stage * Tile::kDepth);

  typename Tile::Sums sums(panel_a.along_depth(), panel_b.along_depth());
  for (int at = begin, now = 0; at < end; at += Tile::kDepth) {
    wait_for_copies<kAhead - 1>();
    __syncthreads();
    copy(now == 0 ? kAhead : now - 1, at + kAhead * Tile::kDepth);  // to where the last step was
    sums.add(ring[now].a, panel_a.along_depth(), ring[now].b, panel_b.along_depth());
    now = now == kAhead ? 0 : now + 1;
  }
  sums.store(row, column, store);
}

// ---- What stands in memory ----

// Are the numbers in units of 16 bytes, from which on, and after how many, there are others?
template <class T>
bool is_vector(const T* data, Index stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % (16 / sizeof(T)) == 0;
}

// A source: `width` rows or columns of a matrix in memory. Numbers side by side along k or along the width: one of the
// strides is 1.
template <class T>
struct MatrixSource {
  using Number = T;
  const T* data;
  int width, line_stride, depth_stride;
  bool vector;

  using Line = int;
  __device__ bool along_depth() const { return depth_stride == 1; }
  __device__ int line(int i) const { return i < width ? i : 0; }
  __device__ const T* step(int k) const { return data + static_cast<Index>(k) * depth_stride; }
  __device__ Found<T> find(int line, const T* step) const {
    return {step + static_cast<Index>(line) * line_stride, true};
  }
};

// ---- What happens to the sums ----

// Bias and activation of the sums of a row: bias (n) may be null.
template <class T>
struct Finish {
  const T* bias;
  Activation activation;

  __device__ float biased(float sum, Index column) const {
    return bias == nullptr ? sum : sum + to_float(load_number(bias + column));
  }
  __device__ float operator()(float sum, Index column) const { return activate(activation, biased(sum, column)); }
  // A tile of halves leaves sigmoid and tanh to sum_parts: for its 64 sums they would be most of the kernel's code.
  bool later() const { return is_half<T> && activation != Activation::none && activation != Activation::relu; }
  __device__ float at_once(float sum, Index column) const {
    if constexpr (!is_half<T>) return (*this)(sum, column);
    const float x = biased(sum, column);
    return activation == Activation::relu ? activate(Activation::relu, x) : x;
  }
};

// Up to four numbers at `to`, rounded to its type; `vector`: four lie on a boundary of four.
template <class T>
__device__ void store_numbers(T* to, int count, bool vector, const float (&x)[4]) {
  if (vector && count >= 4) {
    if constexpr (is_half<T>) {
      *reinterpret_cast<uint2*>(to) = make_uint2(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]));
    } else {
      *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (e < count) to[e] = from_float<T>(x[e]);
  }
}

// C, or parts of it that are yet to be added: numbers stored as T, or as float32.
template <class T>
struct Output {
  void* data;
  bool rounded;  // as T
  bool vector;

  Output(T* c, Index stride) : data(c), rounded(is_half<T>), vector(is_vector(c, stride)) {}
  static Output parts(float* parts, Index stride) {
    Output output(nullptr, 0);
    return output.data = parts, output.rounded = false, output.vector = is_vector(parts, stride), output;
  }
  // finish.at_once(quad) at `offset`: a row's numbers from `column` on, those of them that C (n columns) has.
  __device__ void store(Index offset, int column, int n, const Finish<T>& finish, float4 quad) const {
    const float values[4] = {quad.x, quad.y, quad.z, quad.w};
    float out[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) out[e] = column + e < n ? finish.at_once(values[e], column + e) : 0.0f;
    if (is_half<T> && rounded) return store_numbers(static_cast<T*>(data) + offset, n - column, vector, out);
    store_numbers(static_cast<float*>(data) + offset, n - column, vector, out);
  }
};

// ---- Which tile, and how many parts of k ----

enum class TileKind { large, tall, small, narrow, skinny, tf32, half };

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

// The tile (of those that the caller has; on tensor cores where the GPU has them, and tf32's where it is allowed) and
// the split that take the least time by a simple model: blocks run in turns of so many, and a block takes its
// multiplications over the tile's speed. A part of k is never very long: longer sums are less accurate. `batch`
// products are done at once. All of it depends on sizes alone, so that results do as well.
Plan plan_tiles(Index m, Index n, Index k, Index batch, std::span<const TileKind> kinds);

// c (rows x n, c_stride apart) = finish(the sum of the parts (splits x rows x n) in their order). Out: T, or float.
template <class T, class Out>
void sum_parts(const float* parts, Index splits, Index rows, Index n, Out* c, Index c_stride, const Finish<T>& finish);

}  // namespace lec7::cuda
