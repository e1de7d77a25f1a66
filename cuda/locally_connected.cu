// Locally connected layers: a matrix product at each position, with filters that no other position uses. Tiles of
// tile.h, a batch of products in one launch:
//
//   y        at each output cell: images x filters, k the numbers under its window
//   dweight  at each output cell: numbers under its window x filters, k the images
//   dx       at each input cell: images x channels, k the filters of all output cells that see it, so that each cell is
//            written once
//
// Bound by the filters, which are read (written in dweight) once: 4 bytes for 2 images FLOPs. A few images take the
// skinny tile.
#include "lec7/locally_connected.h"

#include <algorithm>
#include <stdexcept>

#include "divisor.h"
#include "tile.h"

namespace lec7::cuda {
namespace {

// Rows are images; k runs over the numbers of lines that are line_stride apart.
struct LineSource {
  using Number = float;
  const float* data;  // of the first image
  Index image_stride, line_stride;
  Divisor by_line;  // numbers of a line
  Index images;
  bool vector;

  using Line = const float*;
  __device__ static bool along_depth() { return true; }
  __device__ Line line(int image) const { return data + (image < images ? image * image_stride : 0); }
  __device__ Index step(int k) const { return offset(k); }
  __device__ Found<float> find(Line line, Index step) const { return {line + step, true}; }
  __device__ Index offset(int k) const {
    const auto [line, rest] = by_line(k);
    return line * line_stride + rest;
  }
};

// The transpose: rows are the numbers of the lines, k the images.
struct TransposedLineSource {
  using Number = float;
  LineSource lines;
  int depth;  // numbers in all lines
  bool vector = lines.vector;

  using Line = const float*;
  __device__ static bool along_depth() { return false; }
  __device__ Line line(int row) const { return lines.data + (row < depth ? lines.offset(row) : 0); }
  __device__ Index step(int image) const { return image * lines.image_stride; }
  __device__ Found<float> find(Line line, Index step) const { return {line + step, true}; }
};

// Columns are channels; k runs over the output cells that see an input cell, and in each over its filters.
struct CoverSource {
  using Number = float;
  const float* weight;               // of the first output cell, at its tap over the input cell
  Index down_stride, across_stride;  // to the next output cell's, at its tap
  Divisor by_across, by_filters;
  int filters, channels;
  bool vector;

  using Line = const float*;
  __device__ static bool along_depth() { return true; }
  __device__ Line line(int channel) const { return weight + (channel < channels ? channel * filters : 0); }
  __device__ Index step(int k) const {
    const auto [cell, filter] = by_filters(k);
    const auto [down, across] = by_across(cell);
    return down * down_stride + across * across_stride + filter;
  }
  __device__ Found<float> find(Line line, Index step) const { return {line + step, true}; }
};

// ---- The products of a cell ----

struct Geometry {
  Index batch, channels, filters, depth, run, positions;
  Window height, width;
};

struct Product {
  Geometry g;
  const float *x, *dy, *weight;  // x: the image whose windows are read
  Output<float> result;
  const float* bias;
  bool vector_a, vector_b;
};

// The numbers under the window of an output cell, of every image.
__device__ LineSource window_source(const Product& p, Index cell) {
  const Geometry& g = p.g;
  const Index h = cell / g.width.out * g.height.stride, w = cell % g.width.out * g.width.stride;
  const Index line = g.width.in * g.channels;
  return {
      p.x + h * line + w * g.channels, g.height.in * line, line, Divisor(static_cast<int>(g.run)), g.batch, p.vector_a};
}

struct Forward : Product {
  __device__ Index rows(Index) const { return g.batch; }
  __device__ Index columns() const { return g.filters; }
  __device__ Index depth(Index) const { return g.depth; }
  __device__ LineSource a(Index cell) const { return window_source(*this, cell); }
  __device__ MatrixSource<float> b(Index cell) const {
    const auto filters = static_cast<int>(g.filters);
    return {weight + cell * g.depth * g.filters, filters, 1, filters, vector_b};
  }
  __device__ Index row(Index cell, Index i) const { return (i * g.positions + cell) * g.filters; }
  __device__ const float* bias_of(Index cell) const { return bias == nullptr ? nullptr : bias + cell * g.filters; }
};

struct WeightGradient : Product {
  __device__ Index rows(Index) const { return g.depth; }
  __device__ Index columns() const { return g.filters; }
  __device__ Index depth(Index) const { return g.batch; }
  __device__ TransposedLineSource a(Index cell) const {
    return {window_source(*this, cell), static_cast<int>(g.depth)};
  }
  __device__ MatrixSource<float> b(Index cell) const {
    return {dy + cell * g.filters, static_cast<int>(g.filters), 1, static_cast<int>(g.positions * g.filters), vector_b};
  }
  __device__ Index row(Index cell, Index i) const { return (cell * g.depth + i) * g.filters; }
  __device__ const float* bias_of(Index) const { return nullptr; }
};

struct InputGradient : Product {
  // The output cells that see an input cell: a rectangle.
  struct Seen {
    Range down, across;
  };
  __device__ Seen seen(Index cell) const {
    return {g.height.outputs(cell / g.width.in), g.width.outputs(cell % g.width.in)};
  }
  __device__ Index rows(Index) const { return g.batch; }
  __device__ Index columns() const { return g.channels; }
  __device__ Index depth(Index cell) const {
    const auto [down, across] = seen(cell);
    return (down.end - down.begin) * (across.end - across.begin) * g.filters;
  }
  __device__ LineSource a(Index cell) const {
    const auto [down, across] = seen(cell);
    const Index line = g.width.out * g.filters, numbers = (across.end - across.begin) * g.filters;
    return {dy + down.begin * line + across.begin * g.filters,
            g.height.out * line,
            line,
            Divisor(static_cast<int>(numbers > 0 ? numbers : 1)),
            g.batch,
            vector_a};
  }
  __device__ CoverSource b(Index cell) const {
    const auto [down, across] = seen(cell);
    const Index tap = g.channels * g.filters, position = g.depth * g.filters;
    const Index h = cell / g.width.in - down.begin * g.height.stride;
    const Index w = cell % g.width.in - across.begin * g.width.stride;
    const auto cells = static_cast<int>(across.end - across.begin);
    return {weight + (down.begin * g.width.out + across.begin) * position + (h * g.width.kernel + w) * tap,
            g.width.out * position - g.height.stride * g.width.kernel * tap,
            position - g.width.stride * tap,
            Divisor(cells > 0 ? cells : 1),
            Divisor(static_cast<int>(g.filters)),
            static_cast<int>(g.filters),
            static_cast<int>(g.channels),
            vector_b};
  }
  __device__ Index row(Index cell, Index i) const { return (i * g.height.in * g.width.in + cell) * g.channels; }
  __device__ const float* bias_of(Index) const { return nullptr; }
};

template <class Tile, class P>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    locally_connected_kernel(const __grid_constant__ P p, Plan plan, Index cells, Index part_size) {
  BlockPlace place;
  const int column = place.next(plan.tiles_across) * Tile::kColumns, row = place.next(plan.tiles_down) * Tile::kRows;
  const Index cell = place.next(cells), part = place.rest(), rows = p.rows(cell);
  const Finish<float> finish{p.bias_of(cell), Activation::none};
  const auto a = p.a(cell);
  const auto b = p.b(cell);
  multiply_tile<Tile>(a, b, row, column, plan.begin(part), plan.end(part, p.depth(cell)),
                      [&](int i, int j, float4 quad) {
                        if (i >= rows) return;
                        const Index at = part * part_size + p.row(cell, i) + j;
                        p.result.store(at, j, p.columns(), finish, quad);
                      });
}

// The products of all cells, m x n each with k at most, into the result of `size` numbers, as rows of `row` numbers.
template <class P>
void multiply_cells(P p, float* result, Index cells, Index m, Index n, Index k, Index size, Index row) {
  constexpr TileKind kinds[] = {TileKind::small, TileKind::skinny};
  const Plan plan = plan_tiles(m, n, k, cells, kinds);
  if (size == 0) return;
  const Finish<float> finish{p.bias, Activation::none};
  Buffer<float> parts(plan.splits > 1 ? plan.splits * size : 0);
  if (plan.splits > 1) p.bias = nullptr;
  p.result = Output<float>(plan.splits > 1 ? parts.data() : result, n);
  const auto blocks = static_cast<unsigned>(plan.blocks() * cells);
  if (plan.kind == TileKind::skinny) {
    launch("locally_connected_kernel", locally_connected_kernel<SkinnyTile, P>, {blocks, SkinnyTile::kThreads}, p, plan,
           cells, size);
  } else {
    launch("locally_connected_kernel", locally_connected_kernel<SmallTile, P>, {blocks, SmallTile::kThreads}, p, plan,
           cells, size);
  }
  if (plan.splits > 1) sum_parts(parts.data(), plan.splits, size / row, row, result, row, finish);
}

Product product(const LocallyConnectedShape& s, const float* x, const float* dy, const float* weight,
                const float* bias) {
  if (s.positions() * s.filters > INT32_MAX) {
    throw std::runtime_error("locally_connected2d: CUDA's kernels count the numbers of an image of y in 31 bits");
  }
  const Geometry g{s.batch, s.channels, s.filters, s.depth(), s.run(), s.positions(), s.height, s.width};
  return {g, x, dy, weight, Output<float>(nullptr, 0), bias, false, false};
}

// The sum over the images, in their order: bound by memory, 4 bytes a number of dy.
__global__ void __launch_bounds__(kThreads)
    bias_gradient_kernel(Index images, Index size, const float* dy, float* dbias) {
  LEC7_STRIDED(i, size) {
    float sum = 0;
    for (Index n = 0; n < images; ++n) sum += dy[n * size + i];
    dbias[i] = sum;
  }
}

}  // namespace

template <>
void locally_connected_forward(const LocallyConnectedShape& s, const float* x, const float* weight, const float* bias,
                               float* y) {
  Forward p{product(s, x, nullptr, weight, bias)};
  p.vector_a = is_vector(x, s.channels), p.vector_b = is_vector(weight, s.filters);
  const Index row = s.positions() * s.filters;
  multiply_cells(p, y, s.positions(), s.batch, s.filters, s.depth(), s.batch * row, row);
}

template <>
void locally_connected_backward(const LocallyConnectedShape& s, const float* dy, const float* x, const float* weight,
                                float* dx, float* dweight, float* dbias) {
  const Index cells = s.height.in * s.width.in, windows = s.positions();
  if (dx != nullptr) {
    InputGradient p{product(s, nullptr, dy, weight, nullptr)};
    p.vector_a = is_vector(dy, s.filters), p.vector_b = is_vector(weight, s.filters);
    const auto most = [](const Window& w) { return std::min(w.out, ceil_div(w.kernel, w.stride)); };
    const Index k = most(s.height) * most(s.width) * s.filters, row = cells * s.channels;
    multiply_cells(p, dx, cells, s.batch, s.channels, k, s.batch * row, row);
  }
  if (dweight != nullptr) {
    WeightGradient p{product(s, x, dy, nullptr, nullptr)};
    p.vector_a = is_vector(x, s.channels), p.vector_b = is_vector(dy, s.filters);
    const Index size = windows * s.depth() * s.filters;
    multiply_cells(p, dweight, windows, s.depth(), s.filters, s.batch, size, size);
  }
  if (dbias != nullptr) {
    const Index size = windows * s.filters;
    launch("bias_gradient_kernel", bias_gradient_kernel, strided_grid(size), s.batch, size, dy, dbias);
  }
}

}  // namespace lec7::cuda
