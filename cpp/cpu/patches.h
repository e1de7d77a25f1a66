// A convolution as a matrix product: the rows of A are the patches of x under the windows, B is the filters.
#pragma once

#include "gemm.h"
#include "lec7/parallel.h"
#include "lec7/window.h"

namespace lec7::cpu::LEC7_ISA {

inline constexpr Index kSerialWork = 1 << 18;  // multiplications under which a second thread does not pay

inline Index limit_threads(Index work, Index tasks) { return work < kSerialWork ? 1 : tasks; }

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// What is common to the forward and to the gradient of x, which is a convolution of dy (or several, one for each
// phase of the stride).
struct Convolution {
  Index batch;
  Windows windows;
  Index channels, filters, groups;  // of what goes in and what comes out
  // Output cell o is cell first + o * step of y's axis of `size` cells.
  PerAxis size, first, step;

  Index in() const { return channels / groups; }
  Index out() const { return filters / groups; }
  Index taps() const { return windows[0].kernel * windows[1].kernel * windows[2].kernel; }
  Index depth() const { return taps() * in(); }  // numbers in a patch
  Index positions() const { return batch * windows[0].out * windows[1].out * windows[2].out; }
  Index work() const { return positions() * depth() * filters; }
  // y holds the output cells one after the other.
  bool dense() const {
    for (int axis = 0; axis < kSpatialAxes; ++axis) {
      if (step[axis] != 1 || first[axis] != 0 || size[axis] != windows[axis].out) return false;
    }
    return true;
  }
};

// An output position, in row-major order.
struct Position {
  Index n, d, h, w;

  Position(const Convolution& c, Index row) {
    w = row % c.windows[2].out, row /= c.windows[2].out;
    h = row % c.windows[1].out, row /= c.windows[1].out;
    d = row % c.windows[0].out, n = row / c.windows[0].out;
  }
  void next(const Convolution& c) {
    if (++w < c.windows[2].out) return;
    w = 0;
    if (++h < c.windows[1].out) return;
    h = 0;
    if (++d < c.windows[0].out) return;
    d = 0, ++n;
  }
  Index row_of_y(const Convolution& c) const {
    return ((n * c.size[0] + c.first[0] + d * c.step[0]) * c.size[1] + c.first[1] + h * c.step[1]) * c.size[2] +
           c.first[2] + w * c.step[2];
  }
};

template <class T>
LEC7_INLINE void copy_run(Index n, const T* from, T* to) {
  for_lanes<T>(n, [&](Index j, auto lanes) { store_lanes(to + j, load_lanes(from + j, lanes), lanes); });
}

template <class T>
LEC7_INLINE void zero_run(Index n, T* to) {
  for_lanes<T>(n, [&](Index j, auto lanes) { store_lanes(to + j, Vec<T>{}, lanes); });
}

// The numbers [k0, k0 + count) of the patches of `rows` positions, rows `ld` apart; the channels of one group.
template <class T>
void gather_patches(const Convolution& c, Index group, const T* x, Index row, Index rows, Index k0, Index count, T* out,
                    Index ld) {
  const auto& [wd, wh, ww] = c.windows;
  const Index channels = c.in();
  const Index line = ww.kernel * channels;  // of a patch, from one row of x
  const bool one_run = c.groups == 1 && ww.dilation == 1;
  const Index first_line = k0 / line, first_begin = k0 % line;
  Position at(c, row);
  for (Index i = 0; i < rows; ++i, at.next(c), out += ld) {
    const Range taps = ww.taps(at.w);
    const Index origin = ww.origin(at.w);
    Index kd = first_line / wh.kernel, kh = first_line % wh.kernel, begin = first_begin;
    for (Index k = 0; k < count;) {
      const Index length = std::min(line - begin, count - k);
      T* const to = out + k;
      const Index d = wd.origin(at.d) + kd * wd.dilation, h = wh.origin(at.h) + kh * wh.dilation;
      if (d < 0 || d >= wd.in || h < 0 || h >= wh.in) {
        zero_run(length, to);
      } else {
        const Index base = (((at.n * wd.in + d) * wh.in + h) * ww.in + origin) * c.channels + group * channels;
        if (one_run) {
          const Index from = std::clamp<Index>(taps.begin * channels - begin, 0, length);
          const Index upto = std::clamp<Index>(taps.end * channels - begin, from, length);
          zero_run(from, to);
          if (from < upto) copy_run(upto - from, x + (base + begin + from), to + from);
          zero_run(length - upto, to + upto);
        } else {
          for (Index j = 0; j < length;) {
            const Index tap = (begin + j) / channels, channel = (begin + j) % channels;
            const Index n = std::min(channels - channel, length - j);
            if (tap < taps.begin || tap >= taps.end) zero_run(n, to + j);
            else copy_run(n, x + (base + tap * ww.dilation * c.channels + channel), to + j);
            j += n;
          }
        }
      }
      k += length;
      begin = 0;
      if (++kh == wh.kernel) kh = 0, ++kd;
    }
  }
}

// The filters (K..., C / groups, F) as the matrix B of a Convolution, whose tap t is the stored tap first + t * step
// along each axis. `transposed`: what goes in are F's numbers, what comes out C's.
template <class T>
struct Filters {
  const T* data;
  PerAxis kernel;  // stored
  PerAxis first, step;
  Index rows, columns;  // of a stored tap: C / groups, F
  bool transposed;

  // Tap number t of the convolution, in row-major order.
  const T* tap(const Convolution& c, Index t) const {
    const Index w = t % c.windows[2].kernel, h = t / c.windows[2].kernel % c.windows[1].kernel;
    const Index d = t / c.windows[2].kernel / c.windows[1].kernel;
    const Index stored =
        ((first[0] + d * step[0]) * kernel[1] + first[1] + h * step[1]) * kernel[2] + first[2] + w * step[2];
    return data + stored * rows * columns;
  }

  // Panel `panel` of rows [k0, k0 + count) of the matrix of one group, as pack_panel lays it out.
  void pack(const Convolution& c, Index group, Index k0, Index count, Index panel, T* packed) const {
    const Index in = c.in(), out = c.out();
    const Index width = PackedB<T>::padded_columns(std::min(kPanel<T>, out - panel * kPanel<T>));
    for (Index k = k0; k < k0 + count;) {
      const Index row = k % in, n = std::min(in - row, k0 + count - k);
      const Operand<T> matrix{tap(c, k / in) + group * (transposed ? in : out), columns, transposed};
      pack_panel(matrix, out, row, n, panel, packed + (k - k0) * width);
      k += n;
    }
  }
};

// dweight = the sum of `chunks` parts (taps x tap_size), in their order, with the taps turned around under `flip`.
template <class T>
void add_parts(Index chunks, Index taps, Index tap_size, bool flip, const T* parts, T* dweight) {
  const Index size = taps * tap_size;
  parallel_region(limit_threads(chunks * size, taps), [&](const Team& team) {
    team.for_each(taps, [&](Index tap) {
      const T* const from = parts + tap * tap_size;
      T* const to = dweight + (flip ? taps - 1 - tap : tap) * tap_size;
      for_lanes<T>(tap_size, [&](Index j, auto lanes) {
        Vec<T> sum = load_lanes(from + j, lanes);
        for (Index chunk = 1; chunk < chunks; ++chunk) sum += load_lanes(from + chunk * size + j, lanes);
        store_lanes(to + j, sum, lanes);
      });
    });
  });
}

}  // namespace lec7::cpu::LEC7_ISA
