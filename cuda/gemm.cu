// The matrix product: tiles of tile.h over matrices in memory. 2 m n k FLOPs; a tile of 128 x 128 reads 1/64 of a
// number for each multiplication from L2, so it is bound by the FMA units or the tensor cores, and a few rows (skinny)
// by the reading of B, 4 n k bytes (2 of float16 and bfloat16). Where the tiles would not fill the GPU, or sums would
// grow long, k is cut into parts that further blocks sum, and a second kernel adds the parts in their order.
#include "gemm.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "tile.h"

namespace lec7::cuda {
namespace {

constexpr Index kAtOnce = 256;             // blocks, on a GPU of usual size
constexpr Index kLeastPart = 128;          // of k, for which a block of its own pays
constexpr Index kLongestPart = 8192;       // of k: the error of a sum grows with its length
constexpr Index kMost = INT32_MAX - 1024;  // rows or columns: a tile ends past the last
constexpr Index kAllDepths = 32;           // parts are whole steps of every tile

struct TileSpeed {
  Index rows, columns;
  double speed;  // multiplications in a unit of time, relative to the large tile's
};
constexpr TileSpeed kTiles[] = {{128, 128, 1.0}, {128, 64, 0.9}, {64, 64, 0.75},  {128, 32, 0.7},
                                {16, 128, 0.4},  {128, 64, 4.0}, {128, 128, 10.0}};
constexpr TileKind kFloatTiles[] = {TileKind::large,  TileKind::tall,   TileKind::small,
                                    TileKind::narrow, TileKind::skinny, TileKind::tf32};
constexpr TileKind kHalfTiles[] = {TileKind::half, TileKind::small};

template <class Tile, class T>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    gemm_kernel(MatrixSource<T> a, MatrixSource<T> b, Index k, Plan plan, Batch batch, Output<T> c, Index c_stride,
                Finish<T> finish) {
  // Neighbouring blocks share rows of A, and then columns of B: both come from L2.
  BlockPlace place;
  const int column = place.next(plan.tiles_across) * Tile::kColumns, row = place.next(plan.tiles_down) * Tile::kRows;
  const int item = place.next(batch.count), part = place.rest();
  a.data += item * batch.a_step, b.data += item * batch.b_step;
  const Index first = (part * batch.count + item) * a.width;
  multiply_tile<Tile>(a, b, row, column, plan.begin(part), plan.end(part, k), [&](int i, int j, float4 quad) {
    if (i < a.width) c.store((first + i) * c_stride + j, j, b.width, finish, quad);
  });
}

template <class T, class Out>
__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(const float* parts, Index splits, Index rows, Index n, Out* c, Index c_stride, Finish<T> finish) {
  LEC7_STRIDED(i, rows * n) {
    float sum = parts[i];
    for (Index s = 1; s < splits; ++s) sum += parts[s * rows * n + i];
    const Index row = i / n, column = i - row * n;
    c[row * c_stride + column] = from_float<Out>(finish(sum, column));
  }
}

// `width` rows or columns, of `depth` numbers each; the matrix of the next product is `step` numbers further.
template <class T>
MatrixSource<T> matrix_source(const Matrix<T>& matrix, Index width, Index depth, bool along_depth, Index step) {
  if (std::max({width, depth, matrix.stride}) > kMost) {
    throw std::runtime_error("CUDA's matrix products count rows and columns in 31 bits");
  }
  const bool vector = is_vector(matrix.data, std::gcd(matrix.stride, std::gcd(along_depth ? depth : width, step)));
  const auto stride = static_cast<int>(matrix.stride);
  return {matrix.data, static_cast<int>(width), along_depth ? stride : 1, along_depth ? 1 : stride, vector};
}

// body<Tile>()
template <class T, class Body>
void with_tile(TileKind kind, Body&& body) {
  if constexpr (is_half<T>) {
    switch (kind) {
      case TileKind::half: return body.template operator()<HalfTile<T>>();
      default: return body.template operator()<SmallTile>();
    }
  } else {
    switch (kind) {
      case TileKind::large: return body.template operator()<LargeTile>();
      case TileKind::tall: return body.template operator()<TallTile>();
      case TileKind::tf32: return body.template operator()<Tf32Tile>();
      case TileKind::narrow: return body.template operator()<NarrowTile>();
      case TileKind::skinny: return body.template operator()<SkinnyTile>();
      default: return body.template operator()<SmallTile>();
    }
  }
}

// ---- The sum of the rows ----

constexpr int kSumColumns = 32;
constexpr Index kSumRows = 512;  // a block's, at least

// A block sums `chunk` rows of up to 32 columns; with fewer columns in the matrix, more of its threads share them.
// Bound by memory: the bytes of x.
template <class T>
__global__ void __launch_bounds__(kThreads)
    column_sum_kernel(Index rows, Index n, Index chunk, const T* x, Index stride, float* parts) {
  LEC7_SHARED(sums, float[kThreads]);
  const int t = static_cast<int>(threadIdx.x);
  const int width = n < kSumColumns ? static_cast<int>(n) : kSumColumns, lanes = kThreads / width;
  const int lane = t / width;
  const Index groups = (n + width - 1) / width;
  const Index column = blockIdx.x % groups * width + t % width, part = blockIdx.x / groups;
  const Index end = (part + 1) * chunk < rows ? (part + 1) * chunk : rows;
  float sum = 0;
  if (lane < lanes && column < n) {
    for (Index row = part * chunk + lane; row < end; row += lanes) sum += to_float(x[row * stride + column]);
  }
  sums[t] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half && lane + half < lanes) sums[t] += sums[t + half * width];
  }
  if (lane == 0 && column < n) parts[part * n + column] = sums[t];
}

}  // namespace

Plan plan_tiles(Index m, Index n, Index k, Index batch, std::span<const TileKind> kinds) {
  if (m * n * batch == 0) return {TileKind::small, 0, 0, 0, 0};
  Plan best{};
  double least = 0;
  const bool tensor_cores = properties().compute_capability >= 80;
  const auto missing = [&](TileKind kind) {
    if (kind == TileKind::tf32) return !tensor_cores || !allow_tf32();
    return kind == TileKind::half && !tensor_cores;
  };
  for (const TileKind kind : kinds) {
    if (missing(kind)) continue;
    const TileSpeed& tile = kTiles[static_cast<int>(kind)];
    const Index down = ceil_div(m, tile.rows), across = ceil_div(n, tile.columns), tiles = down * across * batch;
    const Index fill = std::min(kAtOnce / tiles, k / kLeastPart);
    const Index parts = std::max({Index{1}, fill, ceil_div(k, kLongestPart)});
    const Index chunk = ceil_div(std::max<Index>(1, ceil_div(k, parts)), kAllDepths) * kAllDepths;
    const Index splits = std::max<Index>(1, ceil_div(k, chunk));
    const double turns = static_cast<double>(ceil_div(tiles * splits, kAtOnce));
    const double time = turns * static_cast<double>(tile.rows * tile.columns * chunk) / tile.speed;
    if (best.splits == 0 || time < least) best = {kind, down, across, chunk, splits}, least = time;
  }
  return best;
}

template <class T, class Out>
void sum_parts(const float* parts, Index splits, Index rows, Index n, Out* c, Index c_stride, const Finish<T>& finish) {
  launch("sum_parts_kernel", sum_parts_kernel<T, Out>, strided_grid(rows * n), parts, splits, rows, n, c, c_stride,
         finish);
}
template void sum_parts(const float*, Index, Index, Index, float*, Index, const Finish<float>&);
template void sum_parts(const float*, Index, Index, Index, float16*, Index, const Finish<float16>&);
template void sum_parts(const float*, Index, Index, Index, bfloat16*, Index, const Finish<bfloat16>&);

namespace {

template <class T, class Out>
void multiply(Index m, Index n, Index k, const Matrix<T>& a, const Matrix<T>& b, Out* c, Index c_stride,
              const Finish<T>& finish, const Batch& batch) {
  const MatrixSource<T> source_a = matrix_source(a, m, k, !a.transposed, batch.a_step);
  const MatrixSource<T> source_b = matrix_source(b, n, k, b.transposed, batch.b_step);
  const Plan plan =
      is_half<T> ? plan_tiles(m, n, k, batch.count, kHalfTiles) : plan_tiles(m, n, k, batch.count, kFloatTiles);
  const Index rows = batch.count * m;
  const Finish<T> nothing{nullptr, Activation::none};
  const bool split = plan.splits > 1 || finish.later();
  Buffer<float> parts(split ? plan.splits * rows * n : 0);
  const auto output = [&] {
    if (split) return Output<T>::parts(parts.data(), n);
    if constexpr (std::is_same_v<T, Out>) return Output<T>(c, c_stride);
    else return Output<T>::parts(c, c_stride);
  };
  with_tile<T>(plan.kind, [&]<class Tile> {
    launch("gemm_kernel", gemm_kernel<Tile, T>, {static_cast<unsigned>(plan.blocks() * batch.count), Tile::kThreads},
           source_a, source_b, k, plan, batch, output(), split ? n : c_stride, split ? nothing : finish);
  });
  if (split) sum_parts(parts.data(), plan.splits, rows, n, c, c_stride, finish);
}

}  // namespace

template <class T>
void gemm(Index m, Index n, Index k, const Matrix<T>& a, const Matrix<T>& b, T* c, Index c_stride,
          std::type_identity_t<const T*> bias, Activation activation, const Batch& batch) {
  multiply(m, n, k, a, b, c, c_stride, Finish<T>{bias, activation}, batch);
}
template void gemm(Index, Index, Index, const Matrix<float>&, const Matrix<float>&, float*, Index, const float*,
                   Activation, const Batch&);
template void gemm(Index, Index, Index, const Matrix<float16>&, const Matrix<float16>&, float16*, Index, const float16*,
                   Activation, const Batch&);
template void gemm(Index, Index, Index, const Matrix<bfloat16>&, const Matrix<bfloat16>&, bfloat16*, Index,
                   const bfloat16*, Activation, const Batch&);

template <class T>
void gemm_unrounded(Index m, Index n, Index k, const Matrix<T>& a, const Matrix<T>& b, float* c, Index c_stride,
                    const T* bias) {
  multiply(m, n, k, a, b, c, c_stride, Finish<T>{bias, Activation::none}, {});
}
template void gemm_unrounded(Index, Index, Index, const Matrix<float>&, const Matrix<float>&, float*, Index,
                             const float*);
template void gemm_unrounded(Index, Index, Index, const Matrix<float16>&, const Matrix<float16>&, float*, Index,
                             const float16*);
template void gemm_unrounded(Index, Index, Index, const Matrix<bfloat16>&, const Matrix<bfloat16>&, float*, Index,
                             const bfloat16*);

template <class T>
void column_sum(Index rows, Index n, const T* x, Index stride, T* out) {
  const Index groups = ceil_div(n, std::max<Index>(1, std::min<Index>(n, kSumColumns)));
  if (groups == 0) return;
  const Index fill = std::min(kAtOnce / groups, rows / kSumRows);
  const Index chunk = std::max<Index>(1, ceil_div(rows, std::max<Index>(1, fill)));
  const Index parts = std::max<Index>(1, ceil_div(rows, chunk));
  const Grid grid{static_cast<unsigned>(groups * parts), kThreads};
  if constexpr (!is_half<T>) {
    if (parts == 1) {
      launch("column_sum_kernel", column_sum_kernel<T>, grid, rows, n, chunk, x, stride, out);
      return;
    }
  }
  Buffer<float> partial(parts * n);
  launch("column_sum_kernel", column_sum_kernel<T>, grid, rows, n, chunk, x, stride, partial.data());
  sum_parts(partial.data(), parts, 1, n, out, n, Finish<T>{nullptr, Activation::none});
}
template void column_sum(Index, Index, const float*, Index, float*);
template void column_sum(Index, Index, const float16*, Index, float16*);
template void column_sum(Index, Index, const bfloat16*, Index, bfloat16*);

}  // namespace lec7::cuda
