// Locally connected layers: at each position a product with filters that no other position uses, so all that counts is
// to read the filters (or write their gradient) once, at the speed of memory. A task is a position. What the images
// have there is gathered first: N short runs, far apart, of which each would otherwise stop a tile for a cache miss.
//
//   forward  patches times filters, a block of rows of the filters at a time, which is read once and stays in L2
//   dweight  patches^T dy
//   dx       filters dy^T, whose columns are the images, so that the filters are read as they lie; turned around on its
//            way to dx. Windows overlap, so segments of rows of positions go in turns: in one turn no two of them
//            touch, and a cell gets its parts in the order of the turns
#include "lec7/locally_connected.h"

#include <algorithm>

#include "gemm.h"
#include "scratch.h"
#include "stream.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kImages = 48;           // a block of rows of patches
constexpr Index kBlock = 1 << 12;       // numbers of a block of filters
constexpr Index kSlice = 4;             // rows of it between two prefetches of the next block
constexpr Index kTasks = 64;            // at least, where there are as many positions
constexpr Index kSegment = 8;           // positions a task of the gradient of x
constexpr Index kPastCaches = 1 << 20;  // numbers from which the gradient of the filters goes past the caches
constexpr Index kGrain = 1 << 15;       // multiplications a task at least
constexpr Index kSerialWork = 1 << 18;  // under which a second thread does not pay

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

template <class T>
LEC7_INLINE void copy(Index n, const T* from, T* to) {
  for_lanes<T>(
      n, [&](Index j, auto lanes) LEC7_LAMBDA_INLINE { store_lanes(to + j, load_lanes(from + j, lanes), lanes); });
}

// One position.
struct Spot {
  const LocallyConnectedShape& s;
  Index h, w;

  Index position() const { return h * s.width.out + w; }
  Index filters() const { return position() * s.depth() * s.filters; }
  Index outputs(Index n) const { return (n * s.positions() + position()) * s.filters; }
  // Where row `kh` of the window begins in image n.
  Index run(Index n, Index kh) const {
    return ((n * s.height.in + s.height.origin(h) + kh) * s.width.in + s.width.origin(w)) * s.channels;
  }

  template <class T>
  void gather_patches(const T* x, Index n0, Index images, T* patches, Index ld) const {
    for (Index n = 0; n < images; ++n) {
      for (Index kh = 0; kh < s.height.kernel; ++kh)
        copy(s.run(), x + run(n0 + n, kh), patches + n * ld + kh * s.run());
    }
  }
  template <class T>
  void gather_outputs(const T* dy, Index n0, Index images, T* rows, Index ld) const {
    for (Index n = 0; n < images; ++n) copy(s.filters, dy + outputs(n0 + n), rows + n * ld);
  }
};

Index work(const LocallyConnectedShape& s) { return s.batch * s.depth() * s.filters * s.positions(); }

// Rows are not a power of two apart, and may be read to their last vector: what stands past their end, in lanes that no
// store takes, does not matter.
template <class T>
Index padded(Index n) {
  return ceil_div(n, W<T>) * W<T> + W<T>;
}

// body(thread, spot) on each position, a few in a row where each is little work.
template <class Body>
void for_spots(const LocallyConnectedShape& s, Index threads, Body&& body) {
  const Index positions = s.positions(), each = std::max<Index>(1, work(s) / positions);
  const Index grain = std::clamp(std::max(kGrain / each, positions / kTasks), Index{1}, positions);
  const Index tasks = ceil_div(positions, grain);
  parallel_region(std::min(threads, tasks), [&](const Team& team) {
    team.for_each(tasks, [&](Index task) {
      for (Index i = task * grain; i < std::min((task + 1) * grain, positions); ++i) {
        body(team.thread, Spot{s, i / s.width.out, i % s.width.out});
      }
    });
  });
}

// Brings the next block of filters to L2 while tiles compute on this one: a few lines at each slice, since in one burst
// they would fill the line buffers and stop the loads.
template <class T>
class Upcoming {
 public:
  Upcoming(const T* next, Index numbers, Index slices) : next_(next), end_(next + numbers) {
    step_ = ceil_div(numbers, slices * kLine) * kLine;
  }
  LEC7_INLINE void prefetch() {
    for (const T* const stop = std::min(next_ + step_, end_); next_ < stop; next_ += kLine) {
      __builtin_prefetch(next_, 0, 2);
    }
  }

 private:
  static constexpr Index kLine = 64 / sizeof(T);
  const T* next_;
  const T* end_;
  Index step_;
};

// body(j, width) on panels of columns.
template <class T, class Body>
LEC7_INLINE void for_panels(Index columns, Body&& body) {
  for (Index j = 0; j < columns; j += kPanel<T>) body(j, std::min(kPanel<T>, columns - j));
}

template <class T>
void weight_gradient(const LocallyConnectedShape& s, const T* dy, const T* x, T* dweight) {
  const Index threads = work(s) < kSerialWork ? 1 : kParallel;
  const Index ld_patches = padded<T>(s.depth()), ld_rows = padded<T>(s.filters);
  // Only whole cache lines at a time.
  constexpr Index line = 64;
  const bool past_caches = s.batch <= kImages && kPanel<T> * sizeof(T) % line == 0 &&
                           s.filters * static_cast<Index>(sizeof(T)) % line == 0 &&
                           reinterpret_cast<std::uintptr_t>(dweight) % line == 0 &&
                           s.positions() * s.depth() * s.filters >= kPastCaches;
  Scratch<T> patches(threads, kImages * ld_patches), rows(threads, kImages * ld_rows);
  for_spots(s, threads, [&](int thread, const Spot& spot) {
    T* const out = dweight + spot.filters();
    Index n = 0;
    do {
      const Index images = std::min(kImages, s.batch - n);
      spot.gather_patches(x, n, images, patches[thread], ld_patches);
      spot.gather_outputs(dy, n, images, rows[thread], ld_rows);
      for_panels<T>(s.filters, [&](Index j, Index width) {
        with_vectors<T>(width, [&]<int NV> {
          for_row_tiles(s.depth(), [&]<int MR>(Index i) LEC7_LAMBDA_INLINE {
            Tile<T, MR, NV> tile;
            tile.zero();
            tile.template multiply<Order::transposed>(images, patches[thread] + i, ld_patches, rows[thread] + j,
                                                      ld_rows);
            T* const to = out + i * s.filters + j;
            if (past_caches) {
              LEC7_UNROLL
              for (int r = 0; r < MR; ++r) {
                LEC7_UNROLL
                for (int v = 0; v < NV; ++v) store_past_caches(to + r * s.filters + v * W<T>, tile.c[r][v]);
              }
            } else {
              if (n > 0) tile.add_columns(to, s.filters, width);
              tile.store_columns(to, s.filters, width);
            }
          });
        });
      });
      n += images;
    } while (n < s.batch);
    finish_stores_past_caches();
  });
}

// dx of these images += the turned (K x images) gradient of one position's patches.
template <class T>
void add_patches(const Spot& spot, const T* turned, Index ld, Index n0, Index images, T* dx) {
  for (Index kh = 0; kh < spot.s.height.kernel; ++kh, turned += spot.s.run() * ld) {
    for_lanes<T>(spot.s.run(), [&](Index k, auto lanes) LEC7_LAMBDA_INLINE {
      for (Index n = 0; n < images; n += W<T>) {
        Vec<T> square[W<T>];
        LEC7_UNROLL
        for (int i = 0; i < W<T>; ++i) square[i] = i < lanes ? load(turned + (k + i) * ld + n) : Vec<T>{};
        transpose<T>(square);
        LEC7_UNROLL
        for (int i = 0; i < W<T>; ++i) {
          if (n + i >= images) break;
          T* const to = dx + spot.run(n0 + n + i, kh) + k;
          store_lanes(to, load_lanes(to, lanes) + square[i], lanes);
        }
      }
    });
  }
}

template <class T>
void input_gradient(const LocallyConnectedShape& s, const T* dy, const T* weight, T* dx) {
  const Index size = s.batch * s.height.in * s.width.in * s.channels;
  parallel_ranges(size, Index{1} << 16, [&](Index begin, Index end) { std::fill(dx + begin, dx + end, T{0}); });
  // Rows of positions `turns` apart share no cell, and neither do a row's segments of one parity.
  const Index turns = std::min(s.height.out, ceil_div(s.height.kernel, s.height.stride));
  const Index length = std::max(kSegment, ceil_div(s.width.kernel, s.width.stride));
  const Index segments = ceil_div(s.width.out, length);
  const Index threads = work(s) < kSerialWork ? 1 : ceil_div(s.height.out, turns) * ceil_div(segments, 2);
  Scratch<T> outputs(threads, s.filters * kPanel<T>), turned(threads, s.depth() * kPanel<T>);

  const auto add_gradient = [&](const Spot& spot, T* columns, T* result) {
    const T* const filters = weight + spot.filters();
    for (Index n = 0; n < s.batch; n += kPanel<T>) {
      const Index images = std::min(kPanel<T>, s.batch - n), ld = PackedB<T>::padded_columns(images);
      pack_panel<T>({dy + spot.outputs(n), s.positions() * s.filters, true}, images, 0, s.filters, 0, columns);
      with_vectors<T>(images, [&]<int NV> {
        for_row_tiles(s.depth(), [&]<int MR>(Index i) LEC7_LAMBDA_INLINE {
          Tile<T, MR, NV> tile;
          tile.zero();
          const T* const a = filters + i * s.filters;
          Upcoming<T> upcoming(a + kBlock, n == 0 ? MR * s.filters : 0, ceil_div(s.filters, 4 * kSlice));
          for (Index k = 0; k < s.filters; k += 4 * kSlice) {
            upcoming.prefetch();
            tile.template multiply<Order::row_major>(std::min(4 * kSlice, s.filters - k), a + k, s.filters,
                                                     columns + k * ld, NV * W<T>);
          }
          tile.store_to(result + i * ld, ld);
        });
      });
      add_patches(spot, result, ld, n, images, dx);
    }
  };
  parallel_region(threads, [&](const Team& team) {
    for (Index turn = 0; turn < 2 * turns; ++turn) {
      const Index h0 = turn / 2, parity = turn % 2, across = (segments + 1 - parity) / 2;
      team.for_each(ceil_div(s.height.out - h0, turns) * across, [&](Index task) {
        const Index h = h0 + task / across * turns, w0 = (parity + task % across * 2) * length;
        for (Index w = w0; w < std::min(w0 + length, s.width.out); ++w) {
          add_gradient(Spot{s, h, w}, outputs[team.thread], turned[team.thread]);
        }
      });
    }
  });
}

// The sum over the images, in their order.
template <class T>
void bias_gradient(const LocallyConnectedShape& s, const T* dy, T* dbias) {
  const Index size = s.positions() * s.filters;
  parallel_ranges(size, std::max<Index>(W<T>, kGrain / std::max<Index>(1, s.batch)), [&](Index begin, Index end) {
    for_lanes<T>(end - begin, [&](Index j, auto lanes) LEC7_LAMBDA_INLINE {
      Vec<T> sum{};
      for (Index n = 0; n < s.batch; ++n) sum += load_lanes(dy + n * size + begin + j, lanes);
      store_lanes(dbias + begin + j, sum, lanes);
    });
  });
}

}  // namespace

template <class T>
void locally_connected_forward(const LocallyConnectedShape& s, const T* x, const T* weight, const T* bias, T* y) {
  const Index threads = work(s) < kSerialWork ? 1 : kParallel;
  const Index ld = padded<T>(s.depth()), ld_y = s.positions() * s.filters;
  const Index block = std::clamp<Index>(kBlock / s.filters, 32, kKBlock);
  Scratch<T> patches(threads, kImages * ld);
  for_spots(s, threads, [&](int thread, const Spot& spot) {
    for (Index n0 = 0; n0 < s.batch; n0 += kImages) {
      const Index images = std::min(kImages, s.batch - n0);
      spot.gather_patches(x, n0, images, patches[thread], ld);
      for (Index k0 = 0; k0 < s.depth(); k0 += block) {
        const Index rows = std::min(block, s.depth() - k0);
        const T* const filters = weight + spot.filters() + k0 * s.filters;
        Upcoming<T> upcoming(filters + rows * s.filters, n0 == 0 ? rows * s.filters : 0,
                             ceil_div(rows, kSlice) * ceil_div(images, kTileRows) * PackedB<T>::panels(s.filters));
        for_panels<T>(s.filters, [&](Index j, Index width) {
          T* const out = y + spot.outputs(n0) + j;
          with_vectors<T>(width, [&]<int NV> {
            for_row_tiles(images, [&]<int MR>(Index n) LEC7_LAMBDA_INLINE {
              Tile<T, MR, NV> tile;
              tile.zero();
              for (Index k = 0; k < rows; k += kSlice) {
                upcoming.prefetch();
                const Index steps = std::min(kSlice, rows - k);
                const T* const a = patches[thread] + n * ld + k0 + k;
                const T* const b = filters + k * s.filters + j;
                if (width == NV * W<T>) tile.template multiply<Order::row_major>(steps, a, ld, b, s.filters);
                else tile.template multiply_unpacked<Order::row_major>(steps, a, ld, b, s.filters, width);
              }
              if (k0 > 0) tile.add_columns(out + n * ld_y, ld_y, width);
              else if (bias != nullptr) tile.add_columns(bias + spot.outputs(0) + j, 0, width);
              tile.store_columns(out + n * ld_y, ld_y, width);
            });
          });
        });
      }
    }
  });
}

template <class T>
void locally_connected_backward(const LocallyConnectedShape& s, const T* dy, const T* x, const T* weight, T* dx,
                                T* dweight, T* dbias) {
  if (dx != nullptr) input_gradient(s, dy, weight, dx);
  if (dweight != nullptr) weight_gradient(s, dy, x, dweight);
  if (dbias != nullptr) bias_gradient(s, dy, dbias);
}

#define LEC7_INSTANTIATE(T)                                                                                \
  template void locally_connected_forward(const LocallyConnectedShape&, const T*, const T*, const T*, T*); \
  template void locally_connected_backward(const LocallyConnectedShape&, const T*, const T*, const T*, T*, T*, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
