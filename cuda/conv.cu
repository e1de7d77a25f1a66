// Convolution. One rule for each of y, dx and dweight picks the variant:
//
//   pointwise   1 x 1 with stride 1 is a matrix product of x itself              (gemm.cu)
//   depthwise   one channel a filter, bound by memory                            (depthwise.cu)
//   Winograd    3 x 3 with stride 1, where conv_algorithm() is fast: a fourth of the products   (winograd.cu)
//   scattered   dx of few channels: dy W^T is what each window hands to the cells under it, and each cell adds up
//   implicit    the rest: a matrix product whose operand, the patches of x, is never stored
//
// With allow_tf32() pointwise and implicit products run on tensor cores, and Winograd's are not taken.
//
// Implicit products, in tiles of tile.h: a row is an output cell, k runs over the taps and in each over the channels, a
// column is a filter. 2 cells taps channels filters FLOPs, bound by the FMA units; with three divisions (divisor.h) a
// thread finds the tap and the channel that all its numbers of a step share. dx is the same kernel: the cells i = r
// (mod stride) of x are, for each r, a convolution of dy with some of the taps, and one launch does up to kMostPasses
// of them. dweight has the taps and channels as rows and sums over the cells of y, cut into parts.
#include "conv.h"

#include <algorithm>

#include "gemm.h"
#include "patches.h"
#include "tile.h"
#include "winograd.h"

namespace lec7::cuda {
namespace {

constexpr Index kHandedNumbers = Index{1} << 24;  // of few channels at a time: 64 MiB
constexpr Index kFewChannels = 16;                // leave most of a tile's 64 columns empty

Index output_cells(const ConvShape& s) { return s.batch * s.windows[0].out * s.windows[1].out * s.windows[2].out; }
Index input_cells(const ConvShape& s) { return s.batch * s.windows[0].in * s.windows[1].in * s.windows[2].in; }

// ---- The operands ----

// Rows are output cells, k the taps and channels.
struct PatchSource {
  const float* x;  // the group's first channel
  int channels;    // of all groups
  bool vector;     // four channels of a patch are 16 aligned bytes
  const Pass& pass;

  using Line = Walk;
  struct Step {
    Walk tap;
    int channel;
  };
  __device__ static bool along_depth() { return true; }
  __device__ Line line(Index row) const {
    return pass.walk_to_first(pass.output(row < pass.rows() ? static_cast<int>(row) : 0));
  }
  __device__ Step step(int k) const {
    const auto [tap, channel] = pass.tap_and_channel(k);
    return {pass.walk_to_tap(pass.tap(tap)), channel};
  }
  __device__ Found find(const Walk& first, const Step& step) const {
    const bool inside = pass.is_inside(first, step.tap);
    const int cell = inside ? Pass::cell(first, step.tap) : 0;
    return {x + step.channel + static_cast<Index>(cell) * channels, inside};
  }
};

// The filters with k the taps and channels of the pass: the filters' own channels (rows) in y's pass, the filters in
// dx's.
struct FilterSource {
  const float* weight;  // the group's first
  Index tap_stride, channel_stride, column_stride;
  int width;
  bool vector;
  const Pass& pass;

  using Line = const float*;
  __device__ bool along_depth() const { return channel_stride == 1; }
  __device__ Line line(Index column) const { return weight + (column < width ? column * column_stride : 0); }
  __device__ Index step(int k) const {
    const auto [tap, channel] = pass.tap_and_channel(k);
    return pass.stored(tap) * tap_stride + channel * channel_stride;
  }
  __device__ Found find(Line line, Index step) const { return {line + step, true}; }
};

// Rows (the operand is used transposed) are the taps and channels, k the output cells.
struct TransposedPatchSource {
  PatchSource patches;
  bool vector = patches.vector;

  using Line = PatchSource::Step;
  __device__ static bool along_depth() { return false; }
  __device__ Line line(Index row) const { return patches.step(row < patches.pass.depth() ? static_cast<int>(row) : 0); }
  __device__ Walk step(int k) const {
    const Pass& pass = patches.pass;
    return pass.walk_to_first(pass.output(k));
  }
  __device__ Found find(const Line& line, const Walk& first) const { return patches.find(first, line); }
};

// ---- y and dx ----

struct ConvOperands {
  const float *x, *weight;
  float* y;
  int groups, in, out;                              // channels of a group of x and of y
  Index tap_stride, channel_stride, column_stride;  // of the filters
  Index group_stride;                               // from a group's filters to the next's
  bool x_vector, weight_vector, y_vector;
  Finish finish;
};

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kResident)
    conv_kernel(const __grid_constant__ Passes passes, ConvOperands o, Plan plan, Index part_size) {
  Index block = blockIdx.x;
  const auto next = [&](Index n) {
    const Index i = block % n;
    block /= n;
    return i;
  };
  const Index column = next(plan.tiles_across) * T::kColumns, row = next(plan.tiles_down) * T::kRows;
  const Index group = next(o.groups), part = next(plan.splits);
  const Pass& pass = passes.pass[block];
  const Index rows = pass.rows();
  if (row >= rows) return;  // of the phases some have fewer cells

  const PatchSource a{o.x + group * o.in, o.groups * o.in, o.x_vector, pass};
  const FilterSource b{
      o.weight + group * o.group_stride, o.tap_stride, o.channel_stride, o.column_stride, o.out, o.weight_vector, pass};
  float* const y = o.y + part * part_size + group * o.out;
  const int channels = o.groups * o.out;
  Finish finish = o.finish;
  if (finish.bias != nullptr) finish.bias += group * o.out;
  multiply_tile<T>(a, b, row, column, plan.begin(part), plan.end(part, pass.depth()),
                   [&](Index i, Index j, float4 quad) {
                     if (i >= rows) return;
                     const Index cell = pass.cell_of_y(pass.output(static_cast<int>(i)));
                     store_quad(y + cell * channels + j, j, o.out, o.y_vector, finish, quad);
                   });
}

template <class Body>
void with_tile(TileKind kind, Body&& body) {
  switch (kind) {
    case TileKind::tall: return body.template operator()<TallTile>();
    case TileKind::narrow: return body.template operator()<NarrowTile>();
    case TileKind::tf32: return body.template operator()<Tf32Tile>();
    default: return body.template operator()<SmallTile>();
  }
}
// A large tile's 64 sums and the place of a patch do not fit into the registers of a thread.
constexpr TileKind kConvTiles[] = {TileKind::tall, TileKind::small, TileKind::narrow, TileKind::tf32};

// y, of `size` numbers, from the passes over x: all its cells, each in one pass.
void convolve(const std::vector<Pass>& passes, ConvOperands o, Index size) {
  Index rows = 0, depth = 0;
  for (const Pass& pass : passes)
    rows = std::max<Index>(rows, pass.rows()), depth = std::max<Index>(depth, pass.depth());
  if (rows == 0) return;
  o.x_vector = is_vector(o.x, o.in);
  o.weight_vector = is_vector(o.weight, o.channel_stride == 1 ? o.in : o.out) && o.group_stride % 4 == 0;
  const auto some = static_cast<Index>(std::min<std::size_t>(passes.size(), kMostPasses));
  const Plan plan = plan_tiles(rows, o.out, depth, o.groups * some, kConvTiles);
  Buffer<float> parts(plan.splits > 1 ? plan.splits * size : 0);
  const Finish finish = o.finish;
  float* const y = o.y;
  if (plan.splits > 1) o.y = parts.data(), o.finish = {nullptr, Activation::none};
  o.y_vector = is_vector(o.y, o.out);
  for_passes(passes, [&](const Passes& now, int count) {
    with_tile(plan.kind, [&]<class T> {
      launch("conv_kernel", conv_kernel<T>, {static_cast<unsigned>(plan.blocks() * o.groups * count), T::kThreads}, now,
             o, plan, size);
    });
  });
  const Index channels = Index{o.groups} * o.out;
  if (plan.splits > 1) sum_parts(parts.data(), plan.splits, size / channels, channels, y, channels, finish);
}

// ---- dweight ----

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kResident)
    conv_weight_gradient_kernel(const __grid_constant__ Pass pass, const float* x, bool x_vector, int in,
                                MatrixSource dz, int groups, Plan plan, float* dweight, bool vector, Index part_size) {
  Index block = blockIdx.x;
  const auto next = [&](Index n) {
    const Index i = block % n;
    block /= n;
    return i;
  };
  const Index column = next(plan.tiles_across) * T::kColumns, row = next(plan.tiles_down) * T::kRows;
  const Index group = next(groups), part = block;
  const Index filters = groups * dz.width;

  const TransposedPatchSource a{{x + group * in, groups * in, x_vector, pass}};
  MatrixSource b = dz;
  b.data += group * dz.width;
  float* const to = dweight + part * part_size + group * dz.width;
  multiply_tile<T>(a, b, row, column, plan.begin(part), plan.end(part, pass.rows()),
                   [&](Index i, Index j, float4 quad) {
                     if (i < pass.depth()) {
                       store_quad(to + i * filters + j, j, dz.width, vector, {nullptr, Activation::none}, quad);
                     }
                   });
}

// ---- dx of few channels ----

// dx = what the windows over each cell handed to it (cells of dy x taps x channels), in the order of the taps. Bound by
// memory: 4 bytes for each number handed.
__global__ void __launch_bounds__(kThreads)
    gather_windows_kernel(const __grid_constant__ Cover cover, Divisor by_channels, int channels, Index size,
                          const float* handed, Finish finish, float* dx) {
  const int depth = cover.axes[0].taps * cover.axes[1].taps * cover.axes[2].taps * channels;
  LEC7_STRIDED(i, size) {
    const auto [cell, c] = by_channels(static_cast<int>(i));
    const Cell at = cover.input(cell);
    float sum = 0;
    int tap = 0;
    for (int td = 0; td < cover.axes[0].taps; ++td) {
      const int d = cover.output(0, at.d, td);
      for (int th = 0; th < cover.axes[1].taps; ++th) {
        const int h = cover.output(1, at.h, th);
        for (int tw = 0; tw < cover.axes[2].taps; ++tw, ++tap) {
          const int w = cover.output(2, at.w, tw);
          if (d < 0 || h < 0 || w < 0) continue;
          sum += handed[static_cast<Index>(cover.row(at.n, d, h, w)) * depth + tap * channels + c];
        }
      }
    }
    dx[i] = finish(sum, c);
  }
}

void scatter_few_channels(const ConvShape& s, const float* dz, const float* weight, const Finish& finish, float* dx) {
  const Index windows = output_cells(s) / s.batch, cells = input_cells(s) / s.batch, depth = s.taps() * s.channels;
  const Index numbers = std::max(windows * depth, cells * s.channels);
  const Index images = std::clamp<Index>(kHandedNumbers / numbers, 1, s.batch);
  const Cover windows_over = cover(s);
  const Divisor by_channels(static_cast<int>(s.channels));
  Buffer<float> handed(images * windows * depth);
  for (Index n = 0; n < s.batch; n += images) {
    const Index count = std::min(images, s.batch - n), size = count * cells * s.channels;
    gemm(count * windows, depth, s.filters, {dz + n * windows * s.filters, s.filters}, {weight, s.filters, true},
         handed.data(), depth);
    launch("gather_windows_kernel", gather_windows_kernel, strided_grid(size), windows_over, by_channels,
           static_cast<int>(s.channels), size, handed.data(), finish, dx + n * cells * s.channels);
  }
}

// ---- The rule ----

bool is_pointwise(const ConvShape& s) {
  if (s.taps() != 1 || s.groups != 1) return false;
  return std::ranges::all_of(s.windows,
                             [](const Window& w) { return w.stride == 1 && w.pad_before == 0 && w.out == w.in; });
}

bool is_scattered(const ConvShape& s) {
  const Index image = s.windows[0].in * s.windows[1].in * s.windows[2].in * s.channels;
  return s.groups == 1 && s.channels < kFewChannels && s.taps() > 1 && s.batch > 0 && image <= INT32_MAX;
}

}  // namespace

template <>
void conv_forward(const ConvShape& s, const float* x, const float* weight, const float* bias, float* y) {
  const Index cells = output_cells(s);
  if (is_pointwise(s)) {
    return gemm(cells, s.filters, s.channels, {x, s.channels}, {weight, s.filters}, y, s.filters, bias, s.activation);
  }
  if (is_depthwise(s)) return depthwise_forward(s, x, weight, bias, y);
  if (winograd_pays(s)) return winograd_forward(s, x, weight, bias, y);
  ConvOperands o{x,
                 weight,
                 y,
                 static_cast<int>(s.groups),
                 static_cast<int>(s.group_channels()),
                 static_cast<int>(s.group_filters()),
                 s.group_channels() * s.filters,
                 s.filters,
                 1,
                 s.group_filters(),
                 false,
                 false,
                 false,
                 {bias, s.activation}};
  convolve({forward_pass(s)}, o, cells * s.filters);
}

void conv_input_gradient(const ConvShape& s, const float* dz, const float* weight, const float* bias, float* dx) {
  const Index cells = input_cells(s);
  const Finish finish{bias, Activation::none};
  if (is_pointwise(s)) {
    return gemm(cells, s.channels, s.filters, {dz, s.filters}, {weight, s.filters, true}, dx, s.channels, bias);
  }
  if (is_depthwise(s)) return depthwise_input_gradient(s, dz, weight, bias, dx);
  if (winograd_pays(s)) return winograd_input_gradient(s, dz, weight, bias, dx);
  if (is_scattered(s)) return scatter_few_channels(s, dz, weight, finish, dx);
  ConvOperands o{dz,
                 weight,
                 dx,
                 static_cast<int>(s.groups),
                 static_cast<int>(s.group_filters()),
                 static_cast<int>(s.group_channels()),
                 s.group_channels() * s.filters,
                 1,
                 s.filters,
                 s.group_filters(),
                 false,
                 false,
                 false,
                 finish};
  convolve(input_gradient_passes(s), o, cells * s.channels);
}

void conv_weight_gradient(const ConvShape& s, const float* dz, const float* x, float* dweight) {
  const Index cells = output_cells(s), depth = s.taps() * s.group_channels(), size = depth * s.filters;
  if (is_pointwise(s)) {
    return gemm(s.channels, s.filters, cells, {x, s.channels, true}, {dz, s.filters}, dweight, s.filters);
  }
  if (is_depthwise(s)) return depthwise_weight_gradient(s, dz, x, dweight);
  if (winograd_pays(s)) return winograd_weight_gradient(s, dz, x, dweight);
  const Plan plan = plan_tiles(depth, s.group_filters(), cells, s.groups, kConvTiles);
  Buffer<float> parts(plan.splits > 1 ? plan.splits * size : 0);
  float* const to = plan.splits > 1 ? parts.data() : dweight;
  const MatrixSource b{dz, static_cast<int>(s.group_filters()), 1, static_cast<int>(s.filters),
                       is_vector(dz, s.group_filters())};
  with_tile(plan.kind, [&]<class T> {
    launch("conv_weight_gradient_kernel", conv_weight_gradient_kernel<T>,
           {static_cast<unsigned>(plan.blocks() * s.groups), T::kThreads}, forward_pass(s), x,
           is_vector(x, s.group_channels()), s.group_channels(), b, s.groups, plan, to,
           is_vector(to, s.group_filters()), size);
  });
  if (plan.splits > 1) sum_parts(parts.data(), plan.splits, 1, size, dweight, size, {nullptr, Activation::none});
}

template <>
void conv_backward(const ConvShape& s, const float* dy, const float* x, const float* weight, const float* y, float* dx,
                   float* dweight, float* dbias) {
  const Index rows = output_cells(s);
  const bool through = s.activation != Activation::none;
  Buffer<float> dz(through ? rows * s.filters : 0);
  if (through) {
    activation_backward(s.activation, rows * s.filters, dy, y, dz.data());
    dy = dz.data();
  }
  if (dx != nullptr) conv_input_gradient(s, dy, weight, nullptr, dx);
  if (dweight != nullptr) conv_weight_gradient(s, dy, x, dweight);
  if (dbias != nullptr) column_sum(rows, s.filters, dy, s.filters, dbias);
}

}  // namespace lec7::cuda
