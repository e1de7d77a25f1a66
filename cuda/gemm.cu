// The matrix product: tiles of tile.h over matrices in memory. 2 m n k FLOPs; a tile of 128 x 128 reads 1/64 of a
// number for each multiplication from L2, so it is bound by the FMA units, and a few rows (skinny) by the reading of B,
// 4 n k bytes. Where the tiles would not fill the GPU, or sums would grow long, k is cut into parts that further blocks
// sum, and a second kernel adds the parts in their order.
#include "gemm.h"

#include <algorithm>
#include <stdexcept>

#include "tile.h"

namespace lec7::cuda {
namespace {

constexpr Index kAtOnce = 256;        // blocks, on a GPU of usual size
constexpr Index kLeastPart = 128;     // of k, for which a block of its own pays
constexpr Index kLongestPart = 8192;  // of k: the error of a sum grows with its length
constexpr Index kAllDepths = 16;      // parts are whole steps of every tile

struct TileSpeed {
  Index rows, columns;
  double speed;  // multiplications in a unit of time, relative to the large tile's
};
constexpr TileSpeed kTiles[] = {{128, 128, 1.0}, {128, 64, 0.9}, {64, 64, 0.75},
                                {128, 32, 0.7},  {16, 128, 0.4}, {128, 64, 4.0}};
constexpr TileKind kGemmTiles[] = {TileKind::large,  TileKind::tall,   TileKind::small,
                                   TileKind::narrow, TileKind::skinny, TileKind::tf32};

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kResident)
    gemm_kernel(MatrixSource a, MatrixSource b, Index k, Plan plan, Batch batch, float* c, Index c_stride,
                bool c_vector, Finish finish) {
  // Neighbouring blocks share rows of A, and then columns of B: both come from L2.
  Index block = blockIdx.x;
  const auto next = [&](Index n) {
    const Index i = block % n;
    block /= n;
    return i;
  };
  const Index column = next(plan.tiles_across) * T::kColumns, row = next(plan.tiles_down) * T::kRows;
  const Index item = next(batch.count), part = block;
  a.data += item * batch.a_step, b.data += item * batch.b_step;
  float* const out = c + (part * batch.count + item) * a.width * c_stride;
  multiply_tile<T>(a, b, row, column, plan.begin(part), plan.end(part, k), [&](Index i, Index j, float4 quad) {
    if (i < a.width) store_quad(out + i * c_stride + j, j, b.width, c_vector, finish, quad);
  });
}

__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(const float* parts, Index splits, Index rows, Index n, float* c, Index c_stride, Finish finish) {
  LEC7_STRIDED(i, rows * n) {
    float sum = parts[i];
    for (Index s = 1; s < splits; ++s) sum += parts[s * rows * n + i];
    const Index row = i / n, column = i - row * n;
    c[row * c_stride + column] = finish(sum, column);
  }
}

// `width` rows or columns, of `depth` numbers each; the matrix of the next product is `step` numbers further.
MatrixSource matrix_source(const Matrix& matrix, Index width, Index depth, bool along_depth, Index step) {
  if (std::max({width, depth, matrix.stride}) > INT32_MAX) {
    throw std::runtime_error("CUDA's matrix products count rows and columns in 31 bits");
  }
  const bool vector = is_vector(matrix.data, matrix.stride) && (along_depth ? depth : width) % 4 == 0 && step % 4 == 0;
  const auto stride = static_cast<int>(matrix.stride);
  return {matrix.data, static_cast<int>(width), along_depth ? stride : 1, along_depth ? 1 : stride, vector};
}

template <class T>
void run_gemm(const Plan& plan, const MatrixSource& a, const MatrixSource& b, Index k, const Batch& batch, float* c,
              Index c_stride, const Finish& finish) {
  launch("gemm_kernel", gemm_kernel<T>, {static_cast<unsigned>(plan.blocks() * batch.count), T::kThreads}, a, b, k,
         plan, batch, c, c_stride, is_vector(c, c_stride), finish);
}

void run_gemm(const Plan& plan, const MatrixSource& a, const MatrixSource& b, Index k, const Batch& batch, float* c,
              Index c_stride, const Finish& finish) {
  switch (plan.kind) {
    case TileKind::large: return run_gemm<LargeTile>(plan, a, b, k, batch, c, c_stride, finish);
    case TileKind::tall: return run_gemm<TallTile>(plan, a, b, k, batch, c, c_stride, finish);
    case TileKind::small: return run_gemm<SmallTile>(plan, a, b, k, batch, c, c_stride, finish);
    case TileKind::tf32: return run_gemm<Tf32Tile>(plan, a, b, k, batch, c, c_stride, finish);
    case TileKind::narrow: return run_gemm<NarrowTile>(plan, a, b, k, batch, c, c_stride, finish);
    case TileKind::skinny: return run_gemm<SkinnyTile>(plan, a, b, k, batch, c, c_stride, finish);
  }
}

// ---- The sum of the rows ----

constexpr int kSumColumns = 32;
constexpr Index kSumRows = 512;  // a block's, at least

// A block sums `chunk` rows of up to 32 columns; with fewer columns in the matrix, more of its threads share them.
// Bound by memory: 4 bytes a number.
__global__ void __launch_bounds__(kThreads)
    column_sum_kernel(Index rows, Index n, Index chunk, const float* x, Index stride, float* parts) {
  LEC7_SHARED(sums, float[kThreads]);
  const int t = static_cast<int>(threadIdx.x);
  const int width = n < kSumColumns ? static_cast<int>(n) : kSumColumns, lanes = kThreads / width;
  const int lane = t / width;
  const Index groups = (n + width - 1) / width;
  const Index column = blockIdx.x % groups * width + t % width, part = blockIdx.x / groups;
  const Index end = (part + 1) * chunk < rows ? (part + 1) * chunk : rows;
  float sum = 0;
  if (lane < lanes && column < n) {
    for (Index row = part * chunk + lane; row < end; row += lanes) sum += x[row * stride + column];
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
  const bool tensor_cores = allow_tf32() && properties().compute_capability >= 80;
  for (const TileKind kind : kinds) {
    if (kind == TileKind::tf32 && !tensor_cores) continue;
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

void sum_parts(const float* parts, Index splits, Index rows, Index n, float* c, Index c_stride, const Finish& finish) {
  launch("sum_parts_kernel", sum_parts_kernel, strided_grid(rows * n), parts, splits, rows, n, c, c_stride, finish);
}

void gemm(Index m, Index n, Index k, const Matrix& a, const Matrix& b, float* c, Index c_stride, const float* bias,
          Activation activation, const Batch& batch) {
  const MatrixSource source_a = matrix_source(a, m, k, !a.transposed, batch.a_step);
  const MatrixSource source_b = matrix_source(b, n, k, b.transposed, batch.b_step);
  const Plan plan = plan_tiles(m, n, k, batch.count, kGemmTiles);
  const Finish finish{bias, activation};
  if (plan.splits <= 1) return run_gemm(plan, source_a, source_b, k, batch, c, c_stride, finish);
  const Index rows = batch.count * m;
  Buffer<float> parts(plan.splits * rows * n);
  run_gemm(plan, source_a, source_b, k, batch, parts.data(), n, {nullptr, Activation::none});
  sum_parts(parts.data(), plan.splits, rows, n, c, c_stride, finish);
}

void column_sum(Index rows, Index n, const float* x, Index stride, float* out) {
  const Index groups = ceil_div(n, std::max<Index>(1, std::min<Index>(n, kSumColumns)));
  if (groups == 0) return;
  const Index fill = std::min(kAtOnce / groups, rows / kSumRows);
  const Index chunk = std::max<Index>(1, ceil_div(rows, std::max<Index>(1, fill)));
  const Index parts = std::max<Index>(1, ceil_div(rows, chunk));
  const Grid grid{static_cast<unsigned>(groups * parts), kThreads};
  if (parts == 1) {
    launch("column_sum_kernel", column_sum_kernel, grid, rows, n, chunk, x, stride, out);
    return;
  }
  Buffer<float> partial(parts * n);
  launch("column_sum_kernel", column_sum_kernel, grid, rows, n, chunk, x, stride, partial.data());
  sum_parts(partial.data(), parts, 1, n, out, n, {nullptr, Activation::none});
}

}  // namespace lec7::cuda
