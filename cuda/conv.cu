// Convolution. One rule for each of y, dx and dweight picks the variant:
//
//   pointwise   1 x 1 with stride 1 is a matrix product of x itself              (gemm.cu)
//   depthwise   one channel a filter, bound by memory                            (depthwise.cu)
//   Winograd    3 x 3 with stride 1, where conv_algorithm() is fast: a fourth of the products   (winograd.cu)
//   scattered   dx of few channels: dy W^T is what each window hands to the cells under it, and each cell adds up
//   implicit    the rest: a matrix product whose operand, the patches of x, is never stored
//
// With allow_tf32() pointwise and implicit products run on tensor cores, and Winograd's are not taken. float16 and
// bfloat16, whose products are on tensor cores wherever there are some, know the pointwise and the implicit variant.
//
// Implicit products, in tiles of tile.h: a row is an output cell, k runs over the taps and in each over the channels, a
// column is a filter. 2 cells taps channels filters FLOPs, bound by the FMA units; with three divisions (divisor.h) a
// thread finds the tap and the channel that all its numbers of a step share. dx is the same kernel: the cells i = r
// (mod stride) of x are, for each r, a convolution of dy with some of the taps, and one launch does up to kMostPasses
// of them. dweight has the taps and channels as rows and sums over the cells of y, cut into parts.
#include "conv.h"

#include <algorithm>
#include <numeric>

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
template <class T>
struct PatchSource {
  using Number = T;
  const T* x;    // the group's first channel
  int channels;  // of all groups
  bool vector;   // a group's channels are units of 16 aligned bytes
  const Pass& pass;

  using Line = Walk;
  struct Step {
    Walk tap;
    int channel;
  };
  __device__ static bool along_depth() { return true; }
  __device__ Line line(int row) const { return pass.walk_to_first(pass.output(row < pass.rows() ? row : 0)); }
  __device__ Step step(int k) const {
    const auto [tap, channel] = pass.tap_and_channel(k);
    return {pass.walk_to_tap(pass.tap(tap)), channel};
  }
  __device__ Found<T> find(const Walk& first, const Step& step) const {
    const bool inside = pass.is_inside(first, step.tap);
    const int cell = inside ? Pass::cell(first, step.tap) : 0;
    return {x + step.channel + static_cast<Index>(cell) * channels, inside};
  }
};

// The filters with k the taps and channels of the pass: the filters' own channels (rows) in y's pass, the filters in
// dx's.
template <class T>
struct FilterSource {
  using Number = T;
  const T* weight;  // the group's first
  Index tap_stride, channel_stride, column_stride;
  int width;
  bool vector;
  const Pass& pass;

  using Line = const T*;
  __device__ bool along_depth() const { return channel_stride == 1; }
  __device__ Line line(int column) const { return weight + (column < width ? column * column_stride : 0); }
  __device__ Index step(int k) const {
    const auto [tap, channel] = pass.tap_and_channel(k);
    return pass.stored(tap) * tap_stride + channel * channel_stride;
  }
  __device__ Found<T> find(Line line, Index step) const { return {line + step, true}; }
};

// Rows (the operand is used transposed) are the taps and channels, k the output cells.
template <class T>
struct TransposedPatchSource {
  using Number = T;
  PatchSource<T> patches;
  bool vector = patches.vector;

  using Line = typename PatchSource<T>::Step;
  __device__ static bool along_depth() { return false; }
  __device__ Line line(int row) const { return patches.step(row < patches.pass.depth() ? row : 0); }
  __device__ Walk step(int k) const {
    const Pass& pass = patches.pass;
    return pass.walk_to_first(pass.output(k));
  }
  __device__ Found<T> find(const Line& line, const Walk& first) const { return patches.find(first, line); }
};

// ---- y and dx ----

template <class T>
struct ConvOperands {
  const T *x, *weight;
  int groups, in, out;                              // channels of a group of x and of y
  Index tap_stride, channel_stride, column_stride;  // of the filters
  Index group_stride;                               // from a group's filters to the next's
  Finish<T> finish;
  bool x_vector = is_vector(x, in);
  bool weight_vector = is_vector(weight, std::gcd(channel_stride == 1 ? in : out, group_stride));
};

template <class Tile, class T>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    conv_kernel(const __grid_constant__ Passes passes, ConvOperands<T> o, Output<T> y, Plan plan, Index part_size) {
  BlockPlace place;
  const int column = place.next(plan.tiles_across) * Tile::kColumns, row = place.next(plan.tiles_down) * Tile::kRows;
  const int group = place.next(o.groups), part = place.next(plan.splits);
  const Pass& pass = passes.pass[place.rest()];
  const int rows = pass.rows();
  if (row >= rows) return;  // of the phases some have fewer cells

  const PatchSource<T> a{o.x + group * o.in, o.groups * o.in, o.x_vector, pass};
  const FilterSource<T> b{
      o.weight + group * o.group_stride, o.tap_stride, o.channel_stride, o.column_stride, o.out, o.weight_vector, pass};
  const Index first = part * part_size + group * o.out;
  const int channels = o.groups * o.out;
  Finish<T> finish = o.finish;
  if (finish.bias != nullptr) finish.bias += group * o.out;
  multiply_tile<Tile>(a, b, row, column, plan.begin(part), plan.end(part, pass.depth()),
                      [&](int i, int j, float4 quad) {
                        if (i >= rows) return;
                        const Index cell = pass.cell_of_y(pass.output(i));
                        y.store(first + cell * channels + j, j, o.out, finish, quad);
                      });
}

// A large tile's 64 sums and the place of a patch do not fit into the registers of a thread.
constexpr TileKind kFloatTiles[] = {TileKind::tall, TileKind::small, TileKind::narrow, TileKind::tf32};
constexpr TileKind kHalfTiles[] = {TileKind::half, TileKind::small};

template <class T>
Plan plan_conv(Index rows, Index columns, Index depth, Index count) {
  return is_half<T> ? plan_tiles(rows, columns, depth, count, kHalfTiles)
                    : plan_tiles(rows, columns, depth, count, kFloatTiles);
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
      case TileKind::tall: return body.template operator()<TallTile>();
      case TileKind::narrow: return body.template operator()<NarrowTile>();
      case TileKind::tf32: return body.template operator()<Tf32Tile>();
      default: return body.template operator()<SmallTile>();
    }
  }
}

// y, of `size` numbers, from the passes over x: all its cells, each in one pass.
template <class T>
void convolve(const std::vector<Pass>& passes, const ConvOperands<T>& o, T* y, Index size) {
  Index rows = 0, depth = 0;
  for (const Pass& pass : passes)
    rows = std::max<Index>(rows, pass.rows()), depth = std::max<Index>(depth, pass.depth());
  if (rows == 0) return;
  const auto some = static_cast<Index>(std::min<std::size_t>(passes.size(), kMostPasses));
  const Plan plan = plan_conv<T>(rows, o.out, depth, o.groups * some);
  const bool split = plan.splits > 1 || o.finish.later();
  Buffer<float> parts(split ? plan.splits * size : 0);
  ConvOperands<T> first = o;
  if (split) first.finish = {nullptr, Activation::none};
  const Output<T> output = split ? Output<T>::parts(parts.data(), o.out) : Output<T>(y, o.out);
  for_passes(passes, [&](const Passes& now, int count) {
    with_tile<T>(plan.kind, [&]<class Tile> {
      launch("conv_kernel", conv_kernel<Tile, T>,
             {static_cast<unsigned>(plan.blocks() * o.groups * count), Tile::kThreads}, now, first, output, plan, size);
    });
  });
  const Index channels = Index{o.groups} * o.out;
  if (split) sum_parts(parts.data(), plan.splits, size / channels, channels, y, channels, o.finish);
}

// ---- dweight ----

template <class Tile, class T>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    conv_weight_gradient_kernel(const __grid_constant__ Pass pass, const T* x, bool x_vector, int in,
                                MatrixSource<T> dz, int groups, Plan plan, Output<T> dweight, Index part_size) {
  BlockPlace place;
  const int column = place.next(plan.tiles_across) * Tile::kColumns, row = place.next(plan.tiles_down) * Tile::kRows;
  const int group = place.next(groups), part = place.rest();
  const int filters = groups * dz.width;

  const TransposedPatchSource<T> a{{x + group * in, groups * in, x_vector, pass}};
  MatrixSource<T> b = dz;
  b.data += group * dz.width;
  const Index first = part * part_size + group * dz.width;
  multiply_tile<Tile>(a, b, row, column, plan.begin(part), plan.end(part, pass.rows()), [&](int i, int j, float4 quad) {
    if (i >= pass.depth()) return;
    dweight.store(first + static_cast<Index>(i) * filters + j, j, dz.width, {nullptr, Activation::none}, quad);
  });
}

// ---- dx of few channels ----

// dx = what the windows over each cell handed to it (cells of dy x taps x channels), in the order of the taps. Bound by
// memory: 4 bytes for each number handed.
__global__ void __launch_bounds__(kThreads)
    gather_windows_kernel(const __grid_constant__ Cover cover, Divisor by_channels, int channels, Index size,
                          const float* handed, Finish<float> finish, float* dx) {
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

void scatter_few_channels(const ConvShape& s, const float* dz, const float* weight, const Finish<float>& finish,
                          float* dx) {
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

// What float32 alone has: y, dx or dweight by another variant than pointwise and implicit, if one pays.
template <class T>
bool forward_by_variant(const ConvShape& s, const T* x, const T* weight, const T* bias, T* y) {
  if constexpr (!is_half<T>) {
    if (is_depthwise(s)) return depthwise_forward(s, x, weight, bias, y), true;
    if (winograd_pays(s)) return winograd_forward(s, x, weight, bias, y), true;
  }
  return false;
}
template <class T>
bool input_gradient_by_variant(const ConvShape& s, const T* dz, const T* weight, const T* bias, T* dx) {
  if constexpr (!is_half<T>) {
    if (is_depthwise(s)) return depthwise_input_gradient(s, dz, weight, bias, dx), true;
    if (winograd_pays(s)) return winograd_input_gradient(s, dz, weight, bias, dx), true;
    if (is_scattered(s)) return scatter_few_channels(s, dz, weight, {bias, Activation::none}, dx), true;
  }
  return false;
}
template <class T>
bool weight_gradient_by_variant(const ConvShape& s, const T* dz, const T* x, T* dweight) {
  if constexpr (!is_half<T>) {
    if (is_depthwise(s)) return depthwise_weight_gradient(s, dz, x, dweight), true;
    if (winograd_pays(s)) return winograd_weight_gradient(s, dz, x, dweight), true;
  }
  return false;
}

}  // namespace

template <class T>
void conv_forward(const ConvShape& s, const T* x, const T* weight, const T* bias, T* y) {
  const Index cells = output_cells(s);
  if (is_pointwise(s)) {
    return gemm(cells, s.filters, s.channels, {x, s.channels}, {weight, s.filters}, y, s.filters, bias, s.activation);
  }
  if (forward_by_variant(s, x, weight, bias, y)) return;
  const ConvOperands<T> o{x,
                          weight,
                          static_cast<int>(s.groups),
                          static_cast<int>(s.group_channels()),
                          static_cast<int>(s.group_filters()),
                          s.group_channels() * s.filters,
                          s.filters,
                          1,
                          s.group_filters(),
                          {bias, s.activation}};
  convolve({forward_pass(s)}, o, y, cells * s.filters);
}

template <class T>
void conv_input_gradient(const ConvShape& s, const T* dz, const T* weight, const T* bias, T* dx) {
  const Index cells = input_cells(s);
  if (is_pointwise(s)) {
    return gemm(cells, s.channels, s.filters, {dz, s.filters}, {weight, s.filters, true}, dx, s.channels, bias);
  }
  if (input_gradient_by_variant(s, dz, weight, bias, dx)) return;
  const ConvOperands<T> o{dz,
                          weight,
                          static_cast<int>(s.groups),
                          static_cast<int>(s.group_filters()),
                          static_cast<int>(s.group_channels()),
                          s.group_channels() * s.filters,
                          1,
                          s.filters,
                          s.group_filters(),
                          {bias, Activation::none}};
  convolve(input_gradient_passes(s), o, dx, cells * s.channels);
}

template <class T>
void conv_weight_gradient(const ConvShape& s, const T* dz, const T* x, T* dweight) {
  const Index cells = output_cells(s), depth = s.taps() * s.group_channels(), size = depth * s.filters;
  if (is_pointwise(s)) {
    return gemm(s.channels, s.filters, cells, {x, s.channels, true}, {dz, s.filters}, dweight, s.filters);
  }
  if (weight_gradient_by_variant(s, dz, x, dweight)) return;
  const Plan plan = plan_conv<T>(depth, s.group_filters(), cells, s.groups);
  const bool split = plan.splits > 1;
  Buffer<float> parts(split ? plan.splits * size : 0);
  const MatrixSource<T> b{dz, static_cast<int>(s.group_filters()), 1, static_cast<int>(s.filters),
                          is_vector(dz, s.group_filters())};
  const Output<T> output =
      split ? Output<T>::parts(parts.data(), s.group_filters()) : Output<T>(dweight, s.group_filters());
  with_tile<T>(plan.kind, [&]<class Tile> {
    launch("conv_weight_gradient_kernel", conv_weight_gradient_kernel<Tile, T>,
           {static_cast<unsigned>(plan.blocks() * s.groups), Tile::kThreads}, forward_pass(s), x,
           is_vector(x, s.group_channels()), s.group_channels(), b, s.groups, plan, output, size);
  });
  if (split) {
    sum_parts(parts.data(), plan.splits, 1, size, dweight, size, Finish<T>{nullptr, Activation::none});
  }
}

// dz is stored as T, rounded once.
template <class T>
void conv_backward(const ConvShape& s, const T* dy, const T* x, const T* weight, const T* y, T* dx, T* dweight,
                   T* dbias) {
  const Index rows = output_cells(s);
  const bool through = s.activation != Activation::none;
  Buffer<T> dz(through ? rows * s.filters : 0);
  if (through) {
    activation_backward(s.activation, rows * s.filters, dy, y, dz.data());
    dy = dz.data();
  }
  constexpr T* none = nullptr;
  if (dx != nullptr) conv_input_gradient<T>(s, dy, weight, none, dx);
  if (dweight != nullptr) conv_weight_gradient(s, dy, x, dweight);
  if (dbias != nullptr) column_sum(rows, s.filters, dy, s.filters, dbias);
}

#define LEC7_CONV_OF(T)                                                                              \
  template void conv_forward(const ConvShape&, const T*, const T*, const T*, T*);                    \
  template void conv_backward(const ConvShape&, const T*, const T*, const T*, const T*, T*, T*, T*); \
  template void conv_input_gradient(const ConvShape&, const T*, const T*, const T*, T*);             \
  template void conv_weight_gradient(const ConvShape&, const T*, const T*, T*)
LEC7_CONV_OF(float);
LEC7_CONV_OF(float16);
LEC7_CONV_OF(bfloat16);
#undef LEC7_CONV_OF

}  // namespace lec7::cuda
