// The direct convolution: tiles of positions and filters over all taps.
//
//   few        up to kFewPositions positions: all patches are made first, and a task packs a panel of filters at a time
//   many       filters are packed once; a task takes a block of positions, whose tiles read x where it stands
//
//   gradient of the filters, patches^T dy: a task sums over a chunk of positions, and chunks are added in order
//   of patches    they are made and dy is packed, a block of positions at a time
//   along lines   few channels: tiles of taps read x and dy where they stand
#include "direct.h"

#include <algorithm>
#include <optional>
#include <span>

#include "activation.h"
#include "scratch.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kFewPositions = 256;  // too few to pack all filters before
constexpr Index kRowBlock = 120;      // positions a task: their patches of one block of taps (180 KiB) stay in L2
constexpr Index kLineChannels = 16;   // fewer than these make short runs: x is padded, to join those of a line
constexpr double kMostPadding = 4;    // times the size of x
constexpr Index kPanelGroup = 4;      // panels of filters a task
constexpr Index kGradientRows = 192;  // rows of the filters' gradient a task
constexpr Index kGradientTasks = 32;  // split positions into chunks until there are as many tasks,
constexpr Index kLeastChunk = 1024;   // but not into smaller ones

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
void convolve_many(const Convolution& c, const T* x, const Filters<T>& filters, const T* bias, Activation activation,
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

// ---- The gradient of the filters ----

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
void weight_gradient_of_patches(const Convolution& c, bool flip, const T* dy, const T* x, T* dweight) {
  const Index m = c.positions(), k = c.depth(), n = c.out();
  const Index row_block = ceil_div(ceil_div(k, ceil_div(k, kGradientRows)), kTileRows) * kTileRows;
  const Index row_blocks = ceil_div(k, row_block);
  const Index panels = PackedB<T>::panels(n), panel_groups = ceil_div(panels, kPanelGroup);
  const Index blocks = c.groups * row_blocks * panel_groups;
  const Index chunk_rows =
      ceil_div(m, std::clamp<Index>(ceil_div(kGradientTasks, blocks), 1, ceil_div(m, kLeastChunk)));
  const Index chunks = ceil_div(m, chunk_rows);
  const Index block_positions = PackedB<T>::block_rows(chunk_rows), ld = row_block + W<T>;
  const Index threads = limit_threads(c.work(), chunks * blocks);
  const bool direct = chunks == 1 && !flip;

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
  if (!direct) add_parts(chunks, c.taps(), c.in() * c.filters, flip, parts.data(), dweight);
}

}  // namespace

template <class T>
void convolve_direct(const Convolution& c, const T* x, const Filters<T>& filters, const T* bias, Activation activation,
                     T* y) {
  if (c.positions() <= kFewPositions) convolve_few(c, x, filters, bias, activation, y);
  else convolve_many(c, x, filters, bias, activation, y);
}

template <class T>
void direct_weight_gradient(const Convolution& c, bool flip, const T* dy, const T* x, T* dweight) {
  if (c.in() < kLineChannels && Padded<T>::pays(c)) weight_gradient_along_lines(c, flip, dy, x, dweight);
  else weight_gradient_of_patches(c, flip, dy, x, dweight);
}

#define LEC7_INSTANTIATE(T)                                                                                 \
  template void convolve_direct(const Convolution&, const T*, const Filters<T>&, const T*, Activation, T*); \
  template void direct_weight_gradient(const Convolution&, bool, const T*, const T*, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
