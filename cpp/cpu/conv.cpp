// Convolution. One rule, `convolve`, picks the variant:
//
//   Winograd   3 x 3 to 5 x 5 with stride 1, float32: fewer products                (winograd.cpp)
//   pointwise  1 x 1 with stride 1 is a matrix product of x itself
//   depthwise  one channel a filter                                             (depthwise.cpp)
//   few rows   up to kFewPositions positions: all patches are made first, and a task packs a panel of filters at a time
//   blocked    filters are packed once; a task makes the patches of a block of positions, a block of taps at a time
//
// The gradient of x is a convolution of dy with the turned, transposed filters; a stride s splits it into s phases (the
// cells i = r mod s of an axis), each of them dense with its own taps. Fewer channels than lanes take another way. The
// gradient of the filters is patches^T dy: a task sums over one chunk of positions, and chunks are added in order.
#include "lec7/conv.h"

#include <algorithm>
#include <numeric>

#include "activation.h"
#include "column_sum.h"
#include "depthwise.h"
#include "patches.h"
#include "scratch.h"
#include "winograd.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kFewPositions = 256;
constexpr Index kRowBlock = 120;      // positions a task: their patches of one block of taps (180 KiB) stay in L2
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

template <class T>
void convolve_blocked(const Convolution& c, const T* x, const Filters<T>& filters, const T* bias, Activation activation,
                      T* y) {
  const Index m = c.positions(), k = c.depth(), n = c.out();
  const Index panels = PackedB<T>::panels(n), block = PackedB<T>::block_rows(k), blocks = ceil_div(k, block);
  const Index padded = PackedB<T>::padded_columns(n), ld = block + W<T>;
  const Index row_block = ceil_div(ceil_div(m, ceil_div(m, kRowBlock)), kTileRows) * kTileRows;
  const Index row_blocks = ceil_div(m, row_block), panel_groups = ceil_div(panels, kPanelGroup);
  const Index tasks = c.groups * row_blocks * panel_groups, threads = limit_threads(c.work(), tasks);
  memory::Buffer<T> packed(c.groups * PackedB<T>::size(k, n));
  Scratch<T> patches(threads, row_block * ld);
  Scratch<T> result(threads, c.dense() ? 0 : row_block * n);
  parallel_region(threads, [&](const Team& team) {
    team.for_each(c.groups * blocks * panels, [&](Index task) {
      const Index group = task / (blocks * panels), k0 = task / panels % blocks * block, panel = task % panels;
      const Index rows = std::min(block, k - k0);
      filters.pack(c, group, k0, rows, panel, packed.data() + (group * k + k0) * padded + panel * kPanel<T> * rows);
    });
    T* const patch = patches[team.thread];
    team.for_each(tasks, [&](Index task) {
      const Index row = task / (c.groups * panel_groups) * row_block, rows = std::min(row_block, m - row);
      const Index group = task / panel_groups % c.groups;
      const Index first = task % panel_groups * kPanelGroup, last = std::min(first + kPanelGroup, panels);
      const Index j = first * kPanel<T>, width = std::min(last * kPanel<T>, n) - j;
      T* const out = c.dense() ? y + row * c.filters + group * n : result[team.thread];
      const Index ld_out = c.dense() ? c.filters : n;
      for (Index k0 = 0; k0 < k; k0 += block) {
        const Index depth = std::min(block, k - k0);
        gather_patches(c, group, x, row, rows, k0, depth, patch, ld);
        multiply_packed(rows, patch, ld, Order::row_major,
                        PackedB<T>{packed.data() + (group * k + k0) * padded, depth, n}, first, last, out, ld_out,
                        bias == nullptr ? nullptr : bias + group * n, k0 > 0);
      }
      activate_rows(activation, rows, width, out + j, ld_out);
      if (!c.dense()) scatter_rows(c, row, rows, width, out + j, ld_out, y + group * n + j);
    });
  });
}

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
    convolve_blocked(c, x, filters, bias, activation, y);
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
  if (s.groups == 1 && s.channels < W<T> && s.taps() > 1) return input_gradient_of_few_channels(s, dy, weight, dx);
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
        const Index r[] = {d, h, v};
        Convolution c{s.batch, {}, s.filters, s.channels, s.groups, {}, {d, h, v}, {}};
        Filters<T> filters{weight, {}, {}, {}, s.group_channels(), s.filters, true};
        for (int axis = 0; axis < kSpatialAxes; ++axis) {
          const Phase phase = phase_of(w[axis], r[axis]);
          c.windows[axis] = phase.window;
          c.size[axis] = w[axis].in;
          c.step[axis] = w[axis].stride;
          filters.kernel[axis] = w[axis].kernel;
          filters.first[axis] = s.flip ? w[axis].kernel - 1 - phase.first_tap : phase.first_tap;
          filters.step[axis] = s.flip ? -phase.tap_step : phase.tap_step;
        }
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
void weight_gradient(const ConvShape& s, const T* dy, const T* x, T* dweight) {
  const Convolution c = forward_convolution(s);
  const Index m = c.positions(), k = c.depth(), n = c.out();
  if (m == 0) return zero_run(k * c.filters, dweight);
  if constexpr (std::is_same_v<T, float>) {
    const Winograd method = winograd_method(c);
    if (method != Winograd::none) return winograd_weight_gradient(method, c, s.flip, dy, x, dweight);
  }
  if (is_depthwise(c)) return depthwise_weight_gradient(c, s.flip, dy, x, dweight);

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

}  // namespace

template <class T>
void conv_forward(const ConvShape& s, const T* x, const T* weight, const T* bias, T* y) {
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
  if (dx != nullptr) input_gradient(s, dy, weight, dx);
  if (dweight != nullptr) weight_gradient(s, dy, x, dweight);
  if (dbias != nullptr) column_sum(rows, s.filters, dy, s.filters, dbias);
}

#define LEC7_INSTANTIATE(T)                                                       \
  template void conv_forward(const ConvShape&, const T*, const T*, const T*, T*); \
  template void conv_backward(const ConvShape&, const T*, const T*, const T*, const T*, T*, T*, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
