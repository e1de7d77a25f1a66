// Locally connected layers: at each position a product with filters that no other position uses, so all that counts is
// to read the filters (or write their gradient) once, at the speed of memory. A task is a position.
//
//   forward  patches times filters. Rows of A are the images; a row of a window is one run in x and the rows of B that
//            go with it follow one another, so nothing is gathered and nothing is packed
//   dweight  patches^T dy: the same runs as the columns of A
//   dx       dy filters^T, added to dx run by run. Windows overlap, so positions go in turns: in one turn no two
//   windows
//            touch, and a cell gets its parts in the order of the turns
#include "lec7/locally_connected.h"

#include <algorithm>

#include "gemm.h"
#include "scratch.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kGrain = 1 << 15;       // multiplications a task at least
constexpr Index kSerialWork = 1 << 18;  // under which a second thread does not pay

// One position: what it sees of each image, and its filters.
template <class T>
struct Spot {
  const LocallyConnectedShape& s;
  Index position;

  Index image_size() const { return s.height.in * s.width.in * s.channels; }
  Index output_size() const { return s.positions() * s.filters; }
  // Where row `kh` of the window begins in an image.
  Index run(Index kh) const {
    const Index h = s.height.origin(position / s.width.out) + kh, w = s.width.origin(position % s.width.out);
    return (h * s.width.in + w) * s.channels;
  }
  Index filters(Index kh) const { return (position * s.height.kernel + kh) * s.run() * s.filters; }
  Index outputs() const { return position * s.filters; }
};

// body(position) on each of them, a few in a row where each is little work.
template <class T, class Body>
void for_positions(const LocallyConnectedShape& s, Body&& body) {
  const Index work = std::max<Index>(1, s.batch * s.depth() * s.filters);
  const Index positions = s.positions(), grain = std::clamp<Index>(kGrain / work, 1, positions);
  const Index tasks = (positions + grain - 1) / grain;
  parallel_region(work * positions < kSerialWork ? 1 : tasks, [&](const Team& team) {
    team.for_each(tasks, [&](Index task) {
      for (Index i = task * grain; i < std::min((task + 1) * grain, positions); ++i) body(Spot<T>{s, i});
    });
  });
}

// body(j, width) on panels of columns.
template <class T, class Body>
LEC7_INLINE void for_panels(Index columns, Body&& body) {
  for (Index j = 0; j < columns; j += kPanel<T>) body(j, std::min(kPanel<T>, columns - j));
}

template <class T>
void input_gradient(const LocallyConnectedShape& s, const T* dy, const T* weight, T* dx) {
  const Index size = s.batch * s.height.in * s.width.in * s.channels;
  parallel_ranges(size, Index{1} << 16, [&](Index begin, Index end) { std::fill(dx + begin, dx + end, T{0}); });
  const auto turns = [](const Window& w) { return std::min(w.out, (w.kernel + w.stride - 1) / w.stride); };
  const Index turns_h = turns(s.height), turns_w = turns(s.width);
  const Index block = PackedB<T>::block_rows(s.filters);
  const Index tasks = ((s.height.out + turns_h - 1) / turns_h) * ((s.width.out + turns_w - 1) / turns_w);
  const Index threads = s.batch * s.depth() * s.filters * s.positions() < kSerialWork ? 1 : tasks;
  Scratch<T> packed(threads, block * kPanel<T>);
  parallel_region(threads, [&](const Team& team) {
    T* const panel_data = packed[team.thread];
    for (Index turn = 0; turn < turns_h * turns_w; ++turn) {
      const Index h0 = turn / turns_w, w0 = turn % turns_w;
      const Index rows = (s.height.out - h0 + turns_h - 1) / turns_h,
                  columns = (s.width.out - w0 + turns_w - 1) / turns_w;
      team.for_each(rows * columns, [&](Index task) {
        const Index h = h0 + task / columns * turns_h, w = w0 + task % columns * turns_w;
        const Spot<T> spot{s, h * s.width.out + w};
        for (Index kh = 0; kh < s.height.kernel; ++kh) {
          for (Index k0 = 0; k0 < s.filters; k0 += block) {
            const Index depth = std::min(block, s.filters - k0);
            for_panels<T>(s.run(), [&](Index j, Index width) {
              pack_panel<T>({weight + spot.filters(kh) + j * s.filters, s.filters, true}, width, k0, depth, 0,
                            panel_data);
              multiply_packed(s.batch, dy + spot.outputs() + k0, spot.output_size(), Order::row_major,
                              PackedB<T>{panel_data, depth, width}, 0, 1, dx + spot.run(kh) + j, spot.image_size(),
                              static_cast<const T*>(nullptr), true);
            });
          }
        }
      });
    }
  });
}

template <class T>
void weight_gradient(const LocallyConnectedShape& s, const T* dy, const T* x, T* dweight) {
  for_positions<T>(s, [&](const Spot<T>& spot) {
    for (Index kh = 0; kh < s.height.kernel; ++kh) {
      const T* const run = x + spot.run(kh);
      T* const out = dweight + spot.filters(kh);
      for_panels<T>(s.filters, [&](Index j, Index width) {
        with_vectors<T>(width, [&]<int NV> {
          for_row_tiles(s.run(), [&]<int MR>(Index i) LEC7_LAMBDA_INLINE {
            Tile<T, MR, NV> tile;
            tile.zero();
            tile.template multiply_unpacked<Order::transposed>(s.batch, run + i, spot.image_size(),
                                                               dy + spot.outputs() + j, spot.output_size(), width);
            tile.store_columns(out + i * s.filters + j, s.filters, width);
          });
        });
      });
    }
  });
}

// The sum over the images, in their order.
template <class T>
void bias_gradient(const LocallyConnectedShape& s, const T* dy, T* dbias) {
  const Index size = s.positions() * s.filters;
  parallel_ranges(size, std::max<Index>(1, kGrain / std::max<Index>(1, s.batch)), [&](Index begin, Index end) {
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
  // Rows of a window at a time, so that the panel of filters stays in L2 while the images pass over it.
  const Index block = std::clamp<Index>(kKBlock / s.run(), 1, s.height.kernel);
  for_positions<T>(s, [&](const Spot<T>& spot) {
    for_panels<T>(s.filters, [&](Index j, Index width) {
      for (Index kh0 = 0; kh0 < s.height.kernel; kh0 += block) {
        const Index kh_end = std::min(kh0 + block, s.height.kernel);
        with_vectors<T>(width, [&]<int NV> {
          for_row_tiles(s.batch, [&]<int MR>(Index n) LEC7_LAMBDA_INLINE {
            Tile<T, MR, NV> tile;
            T* const out = y + n * spot.output_size() + spot.outputs() + j;
            if (kh0 > 0) tile.load_columns(out, spot.output_size(), width);
            else if (bias != nullptr) tile.load_columns(bias + spot.outputs() + j, 0, width);
            else tile.zero();
            for (Index kh = kh0; kh < kh_end; ++kh) {
              tile.template multiply_unpacked<Order::row_major>(s.run(), x + n * spot.image_size() + spot.run(kh),
                                                                spot.image_size(), weight + spot.filters(kh) + j,
                                                                s.filters, width);
            }
            tile.store_columns(out, spot.output_size(), width);
          });
        });
      }
    });
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
