// Convolution. One rule, `convolve`, picks the variant:
//
//   Winograd   3 x 3 to 5 x 5 with stride 1, float32: fewer products                (winograd.cpp)
//   pointwise  1 x 1 with stride 1 is a matrix product of x itself
//   depthwise  one channel a filter: vectors run over the channels, a few positions share each loaded weight
//   few rows   up to kFewPositions positions: all patches are made first, and a task packs a panel of filters at a time
//   direct     filters are packed once; a task takes a block of positions, whose tiles read x where it stands
//
// Strided convolutions of few channels become Winograd's by space to depth (space_to_depth.h).
//
// The gradient of x is a convolution of dy with the turned, transposed filters; a stride s splits it into s phases (the
// cells i = r mod s of an axis), each of them dense with its own taps. Fewer channels than lanes take another way. The
// gradient of the filters is patches^T dy: a task sums over one chunk of positions, and chunks are added in order. With
// few channels it makes no patches.
#include "lec7/conv.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <span>

#include "activation.h"
#include "column_sum.h"
#include "patches.h"
#include "scratch.h"
#include "space_to_depth.h"
#include "winograd.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kFewPositions = 256;
constexpr Index kRowBlock = 120;      // positions a task: their patches of one block of taps (180 KiB) stay in L2
constexpr Index kLineChannels = 16;   // fewer than these make short runs: x is padded, to join those of a line
constexpr double kMostPadding = 4;    // times the size of x
constexpr Index kPanelGroup = 4;      // panels of filters a task
constexpr Index kGradientRows = 192;  // rows of the filters' gradient a task
constexpr Index kGradientTasks = 32;  // split positions into chunks until there are as many tasks,
constexpr Index kLeastChunk = 1024;   // but not into smaller ones
constexpr Index kHandedNumbers = Index{1} << 22;  // few channels: images a pass
// ---- Variants ----

template <class T>
void scatter_rows(const Convolution& c, Index row, Index rows, Index n, const T* block, Index ld, T* y) {
  Position at(c, row);
  for (Index i = 0; i < rows; ++i, at.next(c)) copy_run(n, block + i * ld, y + at.row_of_y(c) * c.filters);
}

template <class T>
void convolve_few(const Convolution& c, const T* x, const Filters<T>& filters, const T* bias, Activation activation,
                  T* y) {
  const Index m = c.positions(), k = c.depth(), n = c.out();
  const Index panels = PackedB<T>::panels(n), block = PackedB<T>::block_rows(k);
  const Index ld = k + W<T>;  // rows of patches are not a power of two apart
  const Index tasks = c.groups * panels, threads = limit_threads(c.work(), std::max(m, tasks));
  memory::Buffer<T> patches(c.groups * m * ld);
  Scratch<T> packed(threads, block * kPanel<T>), result(threads, c.dense() ? 0 : m * kPanel<T>);
  parallel_region(threads, [&](const Team& team) {
    team.for_each(c.groups * m, [&](Index task) {
      gather_patches(c, task / m, x, task % m, 1, 0, k, patches.data() + task * ld, ld);
    });
    T* const panel_data = packed[team.thread];
    team.for_each(tasks, [&](Index task) {
      const Index group = task / panels, panel = task % panels;
      const Index j = group * n + panel * kPanel<T>, width = std::min(kPanel<T>, n - panel * kPanel<T>);
      T* const out = c.dense() ? y + j : result[team.thread];
      const Index ld_out = c.dense() ? c.filters : kPanel<T>;
      for (Index k0 = 0; k0 < k; k0 += block) {
        const Index rows = std::min(block, k - k0);
        filters.pack(c, group, k0, rows, panel, panel_data);
        multiply_packed(m, patches.data() + group * m * ld + k0, ld, Order::row_major,
                        PackedB<T>{panel_data, rows, width}, 0, 1, out, ld_out, bias == nullptr ? nullptr : bias + j,
                        k0 > 0);
      }
      activate_rows(activation, m, width, out, ld_out);
      if (!c.dense()) scatter_rows(c, 0, m, width, out, ld_out, y + j);
    });
  });
}

// x with the zeros around it that the windows reach, or x itself where they stay inside.
template <class T>
class Padded {
 public:
  // Whether it is x itself, or a copy that costs less than to look where each tap is.
  static bool pays(const Convolution& c) {
    if (!copies(c)) return true;
    double size = 1, size_x = 1;
    for (const Window& w : c.windows) size *= static_cast<double>(reach(w)), size_x *= static_cast<double>(w.in);
    return c.in() < kLineChannels && size <= kMostPadding * size_x;
  }

  Padded(const Convolution& c, const T* x) : copy_(copies(c) ? c.batch * size(c) : 0) {
    if (!copies(c)) {
      data_ = x;
      for (int axis = 0; axis < kSpatialAxes; ++axis) in_[axis] = c.windows[axis].in;
      return;
    }
    data_ = copy_.data();
    for (int axis = 0; axis < kSpatialAxes; ++axis) in_[axis] = reach(c.windows[axis]);
    const auto& [wd, wh, ww] = c.windows;
    const Index lines = in_[0] * in_[1], length = in_[2] * c.channels, line_x = ww.in * c.channels;
    const Index shift = ww.pad_before * c.channels;
    const Index begin = std::clamp<Index>(shift, 0, length), end = std::clamp<Index>(shift + line_x, begin, length);
    parallel_region(limit_threads(c.batch * size(c), c.batch * lines), [&](const Team& team) {
      team.for_each(c.batch * lines, [&](Index task) {
        const Index n = task / lines, d = task % lines / in_[1] - wd.pad_before, h = task % in_[1] - wh.pad_before;
        T* const to = copy_.data() + task * length;
        if (d < 0 || d >= wd.in || h < 0 || h >= wh.in) return zero_run(length, to);
        zero_run(begin, to);
        copy_run(end - begin, x + ((n * wd.in + d) * wh.in + h) * line_x + begin - shift, to + begin);
        zero_run(length - end, to + end);
      });
    });
  }

  const T* data() const { return data_; }
  // Of the positions [row, row + rows), where their windows begin, and `shift`.
  void find_origins(const Convolution& c, Index row, Index rows, Index shift, Index* origin) const {
    const auto& [wd, wh, ww] = c.windows;
    Position at(c, row);
    for (Index i = 0; i < rows;) {
      Index next =
          (((at.n * in_[0] + at.d * wd.stride) * in_[1] + at.h * wh.stride) * in_[2] + at.w * ww.stride) * c.channels +
          shift;
      for (const Index end = std::min(rows, i + ww.out - at.w); i < end; ++i, at.next(c)) {
        origin[i] = next;
        next += ww.stride * c.channels;
      }
    }
  }
  // From there to the cell of tap (d, h, w).
  Index offset(const Convolution& c, Index d, Index h, Index w) const {
    const auto& [wd, wh, ww] = c.windows;
    return ((d * wd.dilation * in_[1] + h * wh.dilation) * in_[2] + w * ww.dilation) * c.channels;
  }

 private:
  static Index reach(const Window& w) { return (w.out - 1) * w.stride + w.extent(); }
  static Index size(const Convolution& c) {
    return reach(c.windows[0]) * reach(c.windows[1]) * reach(c.windows[2]) * c.channels;
  }
  static bool copies(const Convolution& c) {
    return std::ranges::any_of(c.windows, [](const Window& w) { return w.pad_before != 0 || reach(w) > w.in; });
  }

  memory::Buffer<T> copy_;
  const T* data_;
  PerAxis in_;
};

// Numbers of a patch that stand together in x: from `begin` of the channels of tap (d, h, w) on.
struct Run {
  Index d, h, w, begin, length;
};

// Those of the numbers [k0, k0 + count) of a patch; whole lines of taps where x is padded.
Index find_runs(const Convolution& c, bool padded, Index k0, Index count, Run* runs) {
  const auto& [wd, wh, ww] = c.windows;
  const Index taps = padded && c.groups == 1 && ww.dilation == 1 ? ww.kernel : 1;  // that stand together
  const Index line = taps * c.in();
  Run* next = runs;
  for (Index k = k0; k < k0 + count;) {
    const Index tap = k / line * taps, begin = k % line, length = std::min(line - begin, k0 + count - k);
    *next++ = {tap / ww.kernel / wh.kernel, tap / ww.kernel % wh.kernel, tap % ww.kernel, begin, length};
    k += length;
  }
  return next - runs;
}

// Where each run of the patches at positions [row, row + rows) stands in x, or as many zeros.
template <class T>
void find_places(const Convolution& c, Index group, const T* x, const T* zeros, Index row, Index rows,
                 std::span<const Run> runs, const T** place) {
  const auto& [wd, wh, ww] = c.windows;
  Position at(c, row);
  for (Index i = 0; i < rows; ++i, at.next(c)) {
    const T* const image = x + at.n * wd.in * wh.in * ww.in * c.channels + group * c.in();
    const T** to = place + i;
    for (const Run& run : runs) {
      const Index d = wd.origin(at.d) + run.d * wd.dilation, h = wh.origin(at.h) + run.h * wh.dilation;
      const Index w = ww.origin(at.w) + run.w * ww.dilation;
      const bool inside = d >= 0 && d < wd.in && h >= 0 && h < wh.in && w >= 0 && w < ww.in;
      *to = inside ? image + ((d * wh.in + h) * ww.in + w) * c.channels + run.begin : zeros;
      to += rows;
    }
  }
}

// The same in a padded x.
template <class T>
void find_places(const Convolution& c, Index group, const Padded<T>& x, Index row, Index rows,
                 std::span<const Run> runs, Index* origin, const T** place) {
  x.find_origins(c, row, rows, group * c.in(), origin);
  for (const Run& run : runs) {
    const T* const from = x.data() + x.offset(c, run.d, run.h, run.w) + run.begin;
    for (Index i = 0; i < rows; ++i) place[i] = from + origin[i];
    place += rows;
  }
}

constexpr Index kLineTiles = 20;  // from here on, fives and sixes make any number of positions

// The rows [0, rows) of a block, the runs of whose patches are at place[run * rows + row], times one packed panel of
// filters. On lines of kLineTiles positions and more a tile has its windows `step` apart, as rows of a matrix, and with
// few filters more of them: the sums hide the latency of the FMAs. Without a step, its rows are anywhere.
template <class T>
void multiply_runs(Index rows, std::span<const Run> runs, const T* const* place, Index step, const T* panel,
                   Index width, T* out, Index ld_out, const T* bias, bool accumulate) {
  with_vectors<T>(width, [&]<int NV> {
    const auto run_tile = [&]<int MR>(Index row, bool in_line) LEC7_LAMBDA_INLINE {
      Tile<T, MR, NV> tile;
      tile.zero();
      const T* b = panel;
      const T* const* from = place + row;
      for (const Run& run : runs) {
        if (in_line) {
          tile.template multiply<Order::row_major>(run.length, *from, step, b, NV * W<T>);
        } else if constexpr (MR <= kTileRows) {
          const T* a[MR];
          LEC7_UNROLL
          for (int i = 0; i < MR; ++i) a[i] = from[i];
          tile.multiply_rows(run.length, a, b);
        }
        b += run.length * NV * W<T>;
        from += rows;
      }
      T* const to = out + row * ld_out;
      if (accumulate) tile.add_columns(to, ld_out, width);
      else if (bias != nullptr) tile.add_columns(bias, 0, width);
      tile.store_columns(to, ld_out, width);
    };
    if (step == 0) {
      return for_row_tiles(rows,
                           [&]<int MR>(Index i) LEC7_LAMBDA_INLINE { run_tile.template operator()<MR>(i, false); });
    }
    for (Index row = 0; row < rows;) {
      Index end = row + 1;
      while (end < rows && place[end] == place[end - 1] + step) ++end;
      if constexpr (NV <= 2) {
        constexpr int kMore = 2 * kTileRows;
        for (; end - row >= kLineTiles + kMore || end - row == kMore; row += kMore) {
          run_tile.template operator()<kMore>(row, true);
        }
      }
      for_row_tiles(end - row,
                    [&]<int MR>(Index i) LEC7_LAMBDA_INLINE { run_tile.template operator()<MR>(row + i, true); });
      row = end;
    }
  });
}

template <class T>
void convolve_direct(const Convolution& c, const T* x, const Filters<T>& filters, const T* bias, Activation activation,
                     T* y) {
  const bool pads = Padded<T>::pays(c);
  std::optional<Padded<T>> padded_x;
  if (pads) padded_x.emplace(c, x);
  const Index m = c.positions(), k = c.depth(), n = c.out();
  const Index panels = PackedB<T>::panels(n), block = PackedB<T>::block_rows(k), blocks = ceil_div(k, block);
  const Index padded = PackedB<T>::padded_columns(n);
  const Index line = c.windows[2].out, lines = std::max<Index>(1, kRowBlock / line);
  const Index row_block = line < kLineTiles  ? ceil_div(kRowBlock, kTileRows) * kTileRows
                          : line < kRowBlock ? lines * line
                                             : ceil_div(line, ceil_div(line, kRowBlock));
  const Index row_blocks = ceil_div(m, row_block), panel_groups = ceil_div(panels, kPanelGroup);
  const Index tasks = c.groups * row_blocks * panel_groups, threads = limit_threads(c.work(), tasks);
  memory::Buffer<T> packed(c.groups * PackedB<T>::size(k, n));
  const Index most_runs = std::min(block, ceil_div(block, c.in()) + 2);  // the first and the last may be parts
  const Index step = pads && line >= kLineTiles ? c.windows[2].stride * c.channels : 0;
  Scratch<Index> origins(threads, row_block);
  Scratch<Run> run_lists(threads, most_runs);
  Scratch<const T*> place_lists(threads, most_runs * row_block);
  memory::Buffer<T> zeros(c.in());
  zero_run(c.in(), zeros.data());
  Scratch<T> result(threads, c.dense() ? 0 : row_block * n);
  parallel_region(threads, [&](const Team& team) {
    team.for_each(c.groups * blocks * panels, [&](Index task) {
      const Index group = task / (blocks * panels), k0 = task / panels % blocks * block, panel = task % panels;
      const Index rows = std::min(block, k - k0);
      filters.pack(c, group, k0, rows, panel, packed.data() + (group * k + k0) * padded + panel * kPanel<T> * rows);
    });
    Run* const run_list = run_lists[team.thread];
    const T** const place = place_lists[team.thread];
    team.for_each(tasks, [&](Index task) {
      const Index row = task / (c.groups * panel_groups) * row_block, rows = std::min(row_block, m - row);
      const Index group = task / panel_groups % c.groups;
      const Index first = task % panel_groups * kPanelGroup, last = std::min(first + kPanelGroup, panels);
      const Index j = first * kPanel<T>, width = std::min(last * kPanel<T>, n) - j;
      T* const out = c.dense() ? y + row * c.filters + group * n : result[team.thread];
      const Index ld_out = c.dense() ? c.filters : n;
      for (Index k0 = 0; k0 < k; k0 += block) {
        const Index depth = std::min(block, k - k0);
        const std::span<const Run> runs(run_list, find_runs(c, pads, k0, depth, run_list));
        if (pads) find_places(c, group, *padded_x, row, rows, runs, origins[team.thread], place);
        else find_places(c, group, x, zeros.data(), row, rows, runs, place);
        for (Index panel = first; panel < last; ++panel) {
          const Index at_panel = panel * kPanel<T>;
          multiply_runs(rows, runs, place, step, packed.data() + (group * k + k0) * padded + at_panel * depth,
                        std::min(kPanel<T>, n - at_panel), out + at_panel, ld_out,
                        bias == nullptr ? nullptr : bias + group * n + at_panel, k0 > 0);
        }
      }
      activate_rows(activation, rows, width, out + j, ld_out);
      if (!c.dense()) scatter_rows(c, row, rows, width, out + j, ld_out, y + group * n + j);
    });
  });
}

// The output cells whose tap `tap` meets a cell of x.
Range cells_of_tap(const Window& w, Index tap) {
  const Index offset = tap * w.dilation - w.pad_before;
  const Index begin = offset < 0 ? ceil_div(-offset, w.stride) : 0;
  const Index end = offset < w.in ? std::min(w.out, (w.in - 1 - offset) / w.stride + 1) : 0;
  return {begin, std::max(begin, end)};
}

// A row of output positions of a depthwise convolution: the taps that its depth and height leave.
template <class T>
struct DepthwiseRow {
  const Convolution& c;
  const T* const* taps;  // all filters' numbers at each tap
  const T* x;            // of this image
  T* y;                  // of this row
  Index d, h;            // origin of the windows
  Range depth, height;

  // R positions from w on, of which all see the taps `range` of the last axis.
  template <int R, class N>
  LEC7_INLINE void run(Index w, Range range, Index channel, N lanes, Vec<T> start) const {
    const auto& [wd, wh, ww] = c.windows;
    Vec<T> sum[R];
    LEC7_UNROLL
    for (int r = 0; r < R; ++r) sum[r] = start;
    for (Index kd = depth.begin; kd < depth.end; ++kd) {
      for (Index kh = height.begin; kh < height.end; ++kh) {
        const Index row = (d + kd * wd.dilation) * wh.in + h + kh * wh.dilation;
        const T* const* const row_taps = taps + (kd * wh.kernel + kh) * ww.kernel;
        for (Index kw = range.begin; kw < range.end; ++kw) {
          const Vec<T> weight = load_lanes(row_taps[kw] + channel, lanes);
          const T* const p = x + (row * ww.in + ww.origin(w) + kw * ww.dilation) * c.channels + channel;
          LEC7_UNROLL
          for (int r = 0; r < R; ++r) sum[r] += weight * load_lanes(p + r * ww.stride * c.channels, lanes);
        }
      }
    }
    LEC7_UNROLL
    for (int r = 0; r < R; ++r) store_lanes(y + (w + r) * c.step[2] * c.channels + channel, sum[r], lanes);
  }
};

template <class T>
void convolve_depthwise(const Convolution& c, const T* x, const Filters<T>& filters, const T* bias,
                        Activation activation, T* y) {
  constexpr int R = 4;
  const auto& [wd, wh, ww] = c.windows;
  const Index lines = c.positions() / ww.out;
  // Between these all taps of the last axis meet a cell.
  const Index inner_begin = cells_of_tap(ww, 0).begin;
  const Index inner_end = std::max(inner_begin, cells_of_tap(ww, ww.kernel - 1).end);
  memory::Buffer<const T*> taps(c.taps());
  for (Index t = 0; t < c.taps(); ++t) taps[t] = filters.tap(c, t);
  parallel_region(limit_threads(c.positions() * c.taps() * c.channels, lines), [&](const Team& team) {
    team.for_each(lines, [&](Index line) {
      const Position at(c, line * ww.out);
      const DepthwiseRow<T> row{c,
                                taps.data(),
                                x + at.n * wd.in * wh.in * ww.in * c.channels,
                                y + at.row_of_y(c) * c.channels,
                                wd.origin(at.d),
                                wh.origin(at.h),
                                wd.taps(at.d),
                                wh.taps(at.h)};
      for_lanes<T>(c.channels, [&](Index channel, auto lanes) {
        const Vec<T> start = bias == nullptr ? Vec<T>{} : load_lanes(bias + channel, lanes);
        Index w = 0;
        for (; w < std::min(inner_begin, ww.out); ++w) row.template run<1>(w, ww.taps(w), channel, lanes, start);
        for (; w + R <= inner_end; w += R) row.template run<R>(w, {0, ww.kernel}, channel, lanes, start);
        for (; w < ww.out; ++w) row.template run<1>(w, ww.taps(w), channel, lanes, start);
      });
      // An activation comes with the forward alone, whose rows have no gaps.
      activate_rows(activation, 1, ww.out * c.channels, row.y, 0);
    });
  });
}

bool is_depthwise(const Convolution& c) { return c.in() == 1 && c.out() == 1 && c.groups > 1; }

bool is_pointwise(const Convolution& c) {
  if (c.taps() != 1 || c.groups != 1 || !c.dense()) return false;
  for (const Window& w : c.windows) {
    if (w.stride != 1 || w.pad_before != 0 || w.out != w.in) return false;
  }
  return true;
}

// y = activation(convolution of x + bias): the rule that picks a variant.
template <class T>
void convolve(const Convolution& c, const T* x, const Filters<T>& filters, const T* bias, Activation activation, T* y) {
  if (c.positions() == 0) return;
  if constexpr (std::is_same_v<T, float>) {
    const Winograd method = winograd_method(c);
    if (method != Winograd::none) return winograd_convolve(method, c, x, filters, bias, activation, y);
  }
  if (is_pointwise(c)) {
    gemm<T>(c.positions(), c.filters, c.channels, {x, c.channels}, {filters.data, filters.columns, filters.transposed},
            y, c.filters, bias, activation);
  } else if (is_depthwise(c)) {
    convolve_depthwise(c, x, filters, bias, activation, y);
  } else if (c.positions() <= kFewPositions) {
    convolve_few(c, x, filters, bias, activation, y);
  } else {
    convolve_direct(c, x, filters, bias, activation, y);
  }
}

// ---- The gradient of x ----

// The cells i = r, r + stride, ... of one axis of x, and the outputs and taps that meet them.
struct Phase {
  Window window;              // slides over dy
  Index first_tap, tap_step;  // of the forward's taps, for tap 0, 1, ... of the window
};

// Cell i = r + a * stride meets tap t in output o = a + (r + before - t dilation) / stride, where that is whole: from
// tap t0 on every (stride / g)th, each dilation / g outputs further down, g = gcd(stride, dilation). Turned around
// they are a window of stride 1.
Phase phase_of(const Window& w, Index r) {
  const Index g = std::gcd(w.stride, w.dilation), every = w.stride / g, dilation = w.dilation / g;
  Index t0 = 0;
  while (t0 < std::min(w.kernel, every) && (r + w.pad_before - t0 * w.dilation) % w.stride != 0) ++t0;
  const Index taps = t0 < std::min(w.kernel, every) ? ceil_div(w.kernel - t0, every) : 0;
  const Index nearest = (r + w.pad_before - t0 * w.dilation) / w.stride;
  const Index cells = ceil_div(w.in - r, w.stride);
  return {{w.out, cells, taps, 1, dilation, (taps - 1) * dilation - nearest, 0}, t0 + (taps - 1) * every, -every};
}

// The convolution of dy that gives the cells r + a stride of dx.
template <class T>
std::pair<Convolution, Filters<T>> gradient_convolution(const ConvShape& s, const T* weight, PerAxis r) {
  Convolution c{s.batch, {}, s.filters, s.channels, s.groups, {}, r, {}};
  Filters<T> filters{weight, {}, {}, {}, s.group_channels(), s.filters, true};
  for (int axis = 0; axis < kSpatialAxes; ++axis) {
    const Window& w = s.windows[axis];
    const Phase phase = phase_of(w, r[axis]);
    c.windows[axis] = phase.window;
    c.size[axis] = w.in;
    c.step[axis] = w.stride;
    filters.kernel[axis] = w.kernel;
    filters.first[axis] = s.flip ? w.kernel - 1 - phase.first_tap : phase.first_tap;
    filters.step[axis] = s.flip ? -phase.tap_step : phase.tap_step;
  }
  return {c, filters};
}

// The outputs of an axis whose tap `tap` meets cell i: one or none (-1).
Index output_of_cell(const Window& w, Index i, Index tap) {
  const Index offset = i + w.pad_before - tap * w.dilation;
  return offset >= 0 && offset % w.stride == 0 && offset / w.stride < w.out ? offset / w.stride : -1;
}

// Few channels leave most of a vector empty as the columns of a product. Here the columns are the taps too: dy W^T is
// what each window hands to the cells under it, and a task adds up the rows of dx, in the order of the taps.
template <class T>
void input_gradient_of_few_channels(const ConvShape& s, const T* dy, const T* weight, T* dx) {
  const auto& [wd, wh, ww] = s.windows;
  const Index k = s.taps() * s.channels, line = ww.kernel * s.channels;
  const Index windows = wd.out * wh.out * ww.out, row_size = ww.in * s.channels, rows = wd.in * wh.in;
  const Index images = std::clamp<Index>(kHandedNumbers / (windows * k), 1, s.batch);
  const bool one_run = ww.dilation == 1 && !s.flip;
  memory::Buffer<T> handed(images * windows * k);
  for (Index n = 0; n < s.batch; n += images) {
    const Index count = std::min(images, s.batch - n);
    gemm<T>(count * windows, k, s.filters, {dy + n * windows * s.filters, s.filters}, {weight, s.filters, true},
            handed.data(), k);
    parallel_region(limit_threads(count * windows * k, count * rows), [&](const Team& team) {
      team.for_each(count * rows, [&](Index task) {
        const Index image = task / rows, d = task % rows / wh.in, h = task % wh.in;
        T* const row = dx + (n * rows + task) * row_size;
        zero_run(row_size, row);
        const auto add = [&](Index at, Index length, const T* from) {
          const Index begin = std::max<Index>(0, -at), end = std::min(length, row_size - at);
          if (begin >= end) return;
          for_lanes<T>(end - begin, [&](Index j, auto lanes) {
            T* const to = row + (at + begin + j);
            store_lanes(to, load_lanes(to, lanes) + load_lanes(from + begin + j, lanes), lanes);
          });
        };
        for (Index kd = 0; kd < wd.kernel; ++kd) {
          const Index od = output_of_cell(wd, d, kd);
          for (Index kh = 0; od >= 0 && kh < wh.kernel; ++kh) {
            const Index oh = output_of_cell(wh, h, kh);
            if (oh < 0) continue;
            const Index tap_row = kd * wh.kernel + kh;
            const Index stored = s.flip ? wd.kernel * wh.kernel - 1 - tap_row : tap_row;
            const T* from = handed.data() + ((image * wd.out + od) * wh.out + oh) * ww.out * k + stored * line;
            for (Index ow = 0; ow < ww.out; ++ow, from += k) {
              const Index origin = ww.origin(ow);
              if (one_run) {
                add(origin * s.channels, line, from);
              } else {
                for (Index kw = 0; kw < ww.kernel; ++kw) {
                  add((origin + kw * ww.dilation) * s.channels, s.channels,
                      from + (s.flip ? ww.kernel - 1 - kw : kw) * s.channels);
                }
              }
            }
          }
        }
      });
    });
  }
}

template <class T>
void input_gradient(const ConvShape& s, const T* dy, const T* weight, T* dx) {
  if (s.batch == 0) return;
  const bool by_winograd =
      std::is_same_v<T, float> && winograd_method(gradient_convolution(s, weight, {}).first) != Winograd::none;
  if (s.groups == 1 && s.channels < W<T> && s.taps() > 1 && !by_winograd) {
    return input_gradient_of_few_channels(s, dy, weight, dx);
  }
  const Windows& w = s.windows;
  // A cell that no window meets (one left over by the stride, or a phase without taps) is not visited below.
  std::array<Index, 3> phases;
  bool all_visited = true;
  for (int axis = 0; axis < kSpatialAxes; ++axis) {
    phases[axis] = std::min(w[axis].stride, w[axis].in);
    for (Index r = 0; r < phases[axis]; ++r) all_visited = all_visited && phase_of(w[axis], r).window.kernel > 0;
  }
  const Index size = s.batch * w[0].in * w[1].in * w[2].in * s.channels;
  if (!all_visited)
    parallel_ranges(size, Index{1} << 16, [&](Index begin, Index end) { zero_run(end - begin, dx + begin); });

  for (Index d = 0; d < phases[0]; ++d) {
    for (Index h = 0; h < phases[1]; ++h) {
      for (Index v = 0; v < phases[2]; ++v) {
        const auto [c, filters] = gradient_convolution(s, weight, {d, h, v});
        if (c.taps() > 0) convolve<T>(c, dy, filters, nullptr, Activation::none, dx);
      }
    }
  }
}

// ---- The gradient of the filters ----

Convolution forward_convolution(const ConvShape& s) {
  Convolution c{s.batch, s.windows, s.channels, s.filters, s.groups, {}, {0, 0, 0}, {1, 1, 1}};
  for (int axis = 0; axis < kSpatialAxes; ++axis) c.size[axis] = s.windows[axis].out;
  return c;
}

template <class T>
void depthwise_weight_gradient(const Convolution& c, bool flip, const T* dy, const T* x, T* dweight) {
  const auto& [wd, wh, ww] = c.windows;
  const Index lines = c.positions() / ww.out, size = c.taps() * c.channels;
  const Index chunk_lines = ceil_div(lines, std::min(lines, kGradientTasks)), chunks = ceil_div(lines, chunk_lines);
  memory::Buffer<T> parts(chunks * size);
  parallel_region(limit_threads(c.positions() * size, chunks), [&](const Team& team) {
    team.for_each(chunks, [&](Index chunk) {
      T* const part = parts.data() + chunk * size;
      zero_run(size, part);
      for (Index line = chunk * chunk_lines; line < std::min((chunk + 1) * chunk_lines, lines); ++line) {
        const Position at(c, line * ww.out);
        const Range depth = wd.taps(at.d), height = wh.taps(at.h);
        for (Index kd = depth.begin; kd < depth.end; ++kd) {
          for (Index kh = height.begin; kh < height.end; ++kh) {
            const Index d = wd.origin(at.d) + kd * wd.dilation, h = wh.origin(at.h) + kh * wh.dilation;
            const T* const x_row = x + ((at.n * wd.in + d) * wh.in + h) * ww.in * c.channels;
            for (Index kw = 0; kw < ww.kernel; ++kw) {
              const Range cells = cells_of_tap(ww, kw);
              const Index count = cells.end - cells.begin;
              if (count == 0) continue;
              const T* const px = x_row + (ww.origin(cells.begin) + kw * ww.dilation) * c.channels;
              const T* const pd = dy + (line * ww.out + cells.begin) * c.channels;
              T* const sum = part + ((kd * wh.kernel + kh) * ww.kernel + kw) * c.channels;
              for_lanes<T>(c.channels, [&](Index j, auto lanes) {
                Vec<T> even = load_lanes(sum + j, lanes), odd{};
                Index i = 0;
                for (; i + 2 <= count; i += 2) {
                  even += load_lanes(px + i * ww.stride * c.channels + j, lanes) *
                          load_lanes(pd + i * c.channels + j, lanes);
                  odd += load_lanes(px + (i + 1) * ww.stride * c.channels + j, lanes) *
                         load_lanes(pd + (i + 1) * c.channels + j, lanes);
                }
                if (i < count) {
                  even += load_lanes(px + i * ww.stride * c.channels + j, lanes) *
                          load_lanes(pd + i * c.channels + j, lanes);
                }
                store_lanes(sum + j, even + odd, lanes);
              });
            }
          }
        }
      }
    });
  });
  add_parts(chunks, c.taps(), c.channels, flip, parts.data(), dweight);
}

constexpr Index kGradientPositions = 512;  // whose dy and x stay in the cache while all tiles of taps take them

// Few channels: patches would cost more than the products. A tile of taps that stand together in x runs along the
// lines of the output; rows of x are the columns of A, rows of dy those of B.
template <class T>
void weight_gradient_along_lines(const Convolution& c, bool flip, const T* dy, const T* x_, T* dweight) {
  const Padded<T> x(c, x_);
  const Index k = c.depth(), n = c.out(), line = c.windows[2].out, lines = c.positions() / line;
  const Index step = c.windows[2].stride * c.channels;
  const Index block = std::max<Index>(1, kGradientPositions / line);
  const Index blocks = ceil_div(lines, block), chunk = ceil_div(blocks, std::min(blocks, kGradientTasks));
  const Index chunks = ceil_div(blocks, chunk), panels = PackedB<T>::panels(n);
  const Index threads = limit_threads(c.work(), chunks);
  memory::Buffer<T> parts(chunks * k * c.filters);
  memory::Buffer<Run> runs(k);
  const Index run_count = find_runs(c, true, 0, k, runs.data());
  Scratch<Index> origins(threads, block);
  parallel_region(threads, [&](const Team& team) {
    Index* const origin = origins[team.thread];
    team.for_each(chunks, [&](Index task) {
      T* const part = parts.data() + task * k * c.filters;
      for (Index at = task * chunk; at < std::min((task + 1) * chunk, blocks); ++at) {
        const Index first = at * block, count = std::min(block, lines - first);
        for (Index i = 0; i < count; ++i) x.find_origins(c, (first + i) * line, 1, 0, origin + i);
        for (Index group = 0; group < c.groups; ++group) {
          for (Index panel = 0; panel < panels; ++panel) {
            const Index j = group * n + panel * kPanel<T>, width = std::min(kPanel<T>, n - panel * kPanel<T>);
            const T* const dy_block = dy + first * line * c.filters + j;
            T* to = part + j;
            for (Index r = 0; r < run_count; ++r) {
              const Run& run = runs[r];
              const T* const x_run = x.data() + group * c.in() + x.offset(c, run.d, run.h, run.w) + run.begin;
              with_vectors<T>(width, [&]<int NV> {
                for_row_tiles(run.length, [&]<int MR>(Index i) LEC7_LAMBDA_INLINE {
                  Tile<T, MR, NV> tile;
                  tile.zero();
                  for (Index l = 0; l < count; ++l) {
                    const T* const a = x_run + origin[l] + i;
                    const T* const b = dy_block + l * line * c.filters;
                    if (width == NV * W<T>) {
                      tile.template multiply<Order::transposed>(line, a, step, b, c.filters);
                    } else {
                      tile.template multiply_unpacked<Order::transposed>(line, a, step, b, c.filters, width);
                    }
                  }
                  if (at > task * chunk) tile.add_columns(to + i * c.filters, c.filters, width);
                  tile.store_columns(to + i * c.filters, c.filters, width);
                });
              });
              to += run.length * c.filters;
            }
          }
        }
      }
    });
  });
  add_parts(chunks, c.taps(), c.in() * c.filters, flip, parts.data(), dweight);
}

template <class T>
void weight_gradient(const ConvShape& s, const T* dy, const T* x, T* dweight) {
  const Convolution c = forward_convolution(s);
  const Index m = c.positions(), k = c.depth(), n = c.out();
  if (m == 0) return zero_run(k * c.filters, dweight);
  if constexpr (std::is_same_v<T, float>) {
    const Winograd method = winograd_method(c);
    if (method != Winograd::none) return winograd_weight_gradient(method, c, s.flip, dy, x, dweight);
  }
  if (is_depthwise(c)) return depthwise_weight_gradient(c, s.flip, dy, x, dweight);
  if (c.in() < kLineChannels && Padded<T>::pays(c)) return weight_gradient_along_lines(c, s.flip, dy, x, dweight);

  const Index row_block = ceil_div(ceil_div(k, ceil_div(k, kGradientRows)), kTileRows) * kTileRows;
  const Index row_blocks = ceil_div(k, row_block);
  const Index panels = PackedB<T>::panels(n), panel_groups = ceil_div(panels, kPanelGroup);
  const Index blocks = c.groups * row_blocks * panel_groups;
  const Index chunk_rows =
      ceil_div(m, std::clamp<Index>(ceil_div(kGradientTasks, blocks), 1, ceil_div(m, kLeastChunk)));
  const Index chunks = ceil_div(m, chunk_rows);
  const Index block_positions = PackedB<T>::block_rows(chunk_rows), ld = row_block + W<T>;
  const Index threads = limit_threads(c.work(), chunks * blocks);
  const bool direct = chunks == 1 && !s.flip;

  memory::Buffer<T> parts(direct ? 0 : chunks * k * c.filters);
  Scratch<T> patches(threads, block_positions * ld), packed(threads, block_positions * kPanelGroup * kPanel<T>);
  parallel_region(threads, [&](const Team& team) {
    T* const patch = patches[team.thread];
    T* const panel_data = packed[team.thread];
    team.for_each(chunks * blocks, [&](Index task) {
      const Index chunk = task / blocks, group = task / (row_blocks * panel_groups) % c.groups;
      const Index k0 = task / panel_groups % row_blocks * row_block, rows = std::min(row_block, k - k0);
      const Index j = task % panel_groups * kPanelGroup * kPanel<T>, width = std::min(kPanelGroup * kPanel<T>, n - j);
      const Index begin = chunk * chunk_rows, end = std::min(begin + chunk_rows, m);
      T* const out = (direct ? dweight : parts.data() + chunk * k * c.filters) + k0 * c.filters + group * n + j;
      for (Index at = begin; at < end; at += block_positions) {
        const Index count = std::min(block_positions, end - at);
        gather_patches(c, group, x, at, count, k0, rows, patch, ld);
        for (Index panel = 0; panel * kPanel<T> < width; ++panel) {
          pack_panel<T>({dy + group * n + j, c.filters}, width, at, count, panel,
                        panel_data + panel * kPanel<T> * count);
        }
        multiply_packed(rows, patch, ld, Order::transposed, PackedB<T>{panel_data, count, width}, 0,
                        PackedB<T>::panels(width), out, c.filters, static_cast<const T*>(nullptr), at > begin);
      }
    });
  });
  if (!direct) add_parts(chunks, c.taps(), c.in() * c.filters, s.flip, parts.data(), dweight);
}

// ---- Strided convolutions of few channels, by space to depth ----

constexpr Index kBlockChannels = 16;  // under which a vector of channels is mostly empty

// Whether blocks of S x S cells make it a convolution that Winograd's filtering takes.
template <class T>
bool blocks_pay(const ConvShape& s) {
  if (!std::is_same_v<T, float> || s.groups != 1 || s.channels >= kBlockChannels) return false;
  const auto& [wd, wh, ww] = s.windows;
  if (wh.stride * ww.stride == 1 || wh.dilation != 1 || ww.dilation != 1) return false;
  return winograd_method(forward_convolution(SpaceToDepth<T>::blocks_of(s))) != Winograd::none;
}

template <class T>
void forward_by_blocks(const ConvShape& s, const T* x, const T* weight, const T* bias, T* y) {
  const SpaceToDepth<T> blocks{s};
  memory::Buffer<T> x_blocks(blocks.x_size()), filters(blocks.weight_size());
  blocks.blocks_of_image(x, x_blocks.data());
  blocks.blocks_of_filters(weight, filters.data());
  conv_forward<T>(blocks.to, x_blocks.data(), filters.data(), bias, y);
}

template <class T>
void input_gradient_by_blocks(const ConvShape& s, const T* dy, const T* weight, T* dx) {
  const SpaceToDepth<T> blocks{s};
  memory::Buffer<T> dx_blocks(blocks.x_size()), filters(blocks.weight_size());
  blocks.blocks_of_filters(weight, filters.data());
  input_gradient<T>(blocks.to, dy, filters.data(), dx_blocks.data());
  blocks.image_of_blocks(dx_blocks.data(), dx);
}

template <class T>
void weight_gradient_by_blocks(const ConvShape& s, const T* dy, const T* x, T* dweight) {
  const SpaceToDepth<T> blocks{s};
  memory::Buffer<T> x_blocks(blocks.x_size()), filters(blocks.weight_size());
  blocks.blocks_of_image(x, x_blocks.data());
  weight_gradient<T>(blocks.to, dy, x_blocks.data(), filters.data());
  blocks.filters_of_blocks(filters.data(), dweight);
}

}  // namespace

template <class T>
void conv_forward(const ConvShape& s, const T* x, const T* weight, const T* bias, T* y) {
  if (blocks_pay<T>(s)) return forward_by_blocks(s, x, weight, bias, y);
  Filters<T> filters{weight, {}, {}, {}, s.group_channels(), s.filters, false};
  for (int axis = 0; axis < kSpatialAxes; ++axis) {
    filters.kernel[axis] = s.windows[axis].kernel;
    filters.first[axis] = s.flip ? s.windows[axis].kernel - 1 : 0;
    filters.step[axis] = s.flip ? -1 : 1;
  }
  convolve(forward_convolution(s), x, filters, bias, s.activation, y);
}

template <class T>
void conv_backward(const ConvShape& s, const T* dy, const T* x, const T* weight, const T* y, T* dx, T* dweight,
                   T* dbias) {
  const Index rows = forward_convolution(s).positions();
  const bool through = s.activation != Activation::none;
  memory::Buffer<T> dz(through ? rows * s.filters : 0);
  if (through) {
    activation_backward(s.activation, rows * s.filters, dy, y, dz.data());
    dy = dz.data();
  }
  const bool by_blocks = blocks_pay<T>(s);
  if (dx != nullptr) (by_blocks ? input_gradient_by_blocks<T> : input_gradient<T>)(s, dy, weight, dx);
  if (dweight != nullptr) (by_blocks ? weight_gradient_by_blocks<T> : weight_gradient<T>)(s, dy, x, dweight);
  if (dbias != nullptr) column_sum(rows, s.filters, dy, s.filters, dbias);
}

#define LEC7_INSTANTIATE(T)                                                       \
  template void conv_forward(const ConvShape&, const T*, const T*, const T*, T*); \
  template void conv_backward(const ConvShape&, const T*, const T*, const T*, const T*, T*, T*, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
