// Kernels that reduce each row of a (rows, count) array: 8 lanes, a warp or a block share a row, so that a row is read
// once. Up to 4096 numbers stay in its threads' registers; what is longer is read again, from L1 or L2.
#pragma once

#include "reduce.h"

namespace lec7::cuda {

// `each` numbers a thread stay in registers; 0: none.
template <int threads_, int each_>
struct Team {
  static constexpr int threads = threads_, each = each_;
  static constexpr int block = threads > kWarp ? threads : 128;
  static constexpr int rows = block / threads;  // of a block

  // The row of this thread, which may be beyond the last one: its lanes take part in the reductions all the same.
  static __device__ Index row() { return static_cast<Index>(blockIdx.x) * rows + threadIdx.x / threads; }
  static __device__ int rank() { return static_cast<int>(threadIdx.x % threads); }

  template <class T, class Combine>
  static __device__ T reduce(T value, Combine combine) {
    if constexpr (threads > kWarp) return block_reduce<threads>(value, combine);
    else return warp_reduce<threads>(value, combine);
  }
  template <class T>
  static __device__ T sum(T value) {
    return reduce(value, Add{});
  }
};

// Row `Team::row()` of x.
template <class Team>
class Row {
 public:
  __device__ Row(const float* x, Index rows, Index count)
      : x_(x + Team::row() * count), count_(Team::row() < rows ? count : 0) {
    if constexpr (Team::each > 0) {
#pragma unroll
      for (int j = 0; j < Team::each; ++j) {
        const int k = Team::rank() + j * Team::threads;
        if (k < count_) kept_[j] = x_[k];
      }
    }
  }

  // body(k, x[k], the same place of each other row ...) on this thread's part of the row.
  template <class Body, class... Rows>
  __device__ void for_each(Body&& body, const Rows&... others) const {
    if constexpr (Team::each > 0) {
#pragma unroll
      for (int j = 0; j < Team::each; ++j) {
        const int k = Team::rank() + j * Team::threads;
        if (k < count_) body(Index{k}, kept_[j], others.kept_[j]...);
      }
    } else {
#pragma unroll 4
      for (Index k = Team::rank(); k < count_; k += Team::threads) body(k, x_[k], others.x_[k]...);
    }
  }

 private:
  const float* x_;
  Index count_;
  float kept_[Team::each > 0 ? Team::each : 1];
};

// Calls body.template operator()<Team>(grid) with the team that suits rows of `count` numbers.
template <class Body>
void with_team(Index rows, Index count, Body&& body) {
  const auto run = [&]<class Team> {
    body.template operator()<Team>(Grid{static_cast<unsigned>(ceil_div(rows, Team::rows)), Team::block});
  };
  if (count <= 32) run.template operator()<Team<8, 4>>();
  else if (count <= 256) run.template operator()<Team<kWarp, 8>>();
  else if (count <= 4096) run.template operator()<Team<256, 16>>();
  else run.template operator()<Team<512, 0>>();
}

}  // namespace lec7::cuda
