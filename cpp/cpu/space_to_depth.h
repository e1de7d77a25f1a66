// A convolution with stride S as one with stride 1: blocks of S x S cells become the channels of one cell.
//
//   x'[n, a, b, (i, j, c)] = x[n, a S + i - before, b S + j - before, c]   0 outside x
//   w'[s, t, (i, j, c), f] = w[s S + i, t S + j, c, f]                     0 past the last tap
//
// A first layer gains by it: its 3 channels become 12 or 48, and its K taps ceil(K / S), which Winograd's filtering
// takes (11 x 11, stride 4: 3 x 3).
#pragma once

#include "lec7/conv.h"
#include "lec7/memory.h"
#include "patches.h"

namespace lec7::cpu::LEC7_ISA {

template <class T>
struct SpaceToDepth {
  const ConvShape& from;
  ConvShape to = blocks_of(from);

  // In the depth nothing changes.
  static ConvShape blocks_of(ConvShape s) {
    for (int axis : {1, 2}) {
      Window& w = s.windows[axis];
      const Index kernel = ceil_div(w.kernel, w.stride);
      s.channels *= w.stride;
      w = {w.out + kernel - 1, w.out, kernel, 1, 1, 0, 0};
    }
    s.flip = false;
    return s;
  }

  Index x_size() const { return to.batch * to.windows[0].in * to.windows[1].in * to.windows[2].in * to.channels; }
  Index weight_size() const { return to.taps() * to.channels * to.filters; }

  // Calls body(block of a cell of x', run of cells of x, numbers of the run that exist: [begin, end)) for the rows
  // [a, a + 1) of x'; image counts those of the batch and the depth.
  template <class Body>
  void for_each_run(Index image, Index a, Body&& body) const {
    const Window &h = from.windows[1], &w = from.windows[2];
    const Index channels = from.channels, run = w.stride * channels, line = w.in * channels;
    for (Index i = 0; i < h.stride; ++i) {
      const Index row = a * h.stride + i - h.pad_before;
      const bool inside = row >= 0 && row < h.in;
      for (Index b = 0; b < to.windows[2].in; ++b) {
        const Index at = (b * w.stride - w.pad_before) * channels;
        const Index begin = inside ? std::clamp<Index>(-at, 0, run) : run;
        const Index end = inside ? std::clamp<Index>(line - at, begin, run) : run;
        body(((image * to.windows[1].in + a) * to.windows[2].in + b) * to.channels + i * run,
             (image * h.in + row) * line + at, begin, end);
      }
    }
  }

  void blocks_of_image(const T* x, T* out) const {
    const Index run = from.windows[2].stride * from.channels, rows = to.windows[1].in;
    parallel_for(to.batch * to.windows[0].in * rows, [&](Index task) {
      for_each_run(task / rows, task % rows, [&](Index block, Index cells, Index begin, Index end) {
        if (begin > 0 || end < run) zero_run(run, out + block);
        copy_run(end - begin, x + cells + begin, out + block + begin);
      });
    });
  }

  // The inverse; a cell of x that no window reaches is 0.
  void image_of_blocks(const T* blocks, T* x) const {
    const Window& h = from.windows[1];
    const Index rows = to.windows[1].in, line = from.windows[2].in * from.channels;
    const Index images = to.batch * to.windows[0].in;
    const Index reached =
        std::max<Index>(0, to.windows[2].in * from.windows[2].stride - from.windows[2].pad_before) * from.channels;
    parallel_for(images * h.in, [&](Index task) {
      const Index image = task / h.in, row = task % h.in + h.pad_before, a = row / h.stride;
      T* const to_row = x + task * line;
      if (a >= rows) return zero_run(line, to_row);
      if (reached < line) zero_run(line - reached, to_row + reached);
      const Window& w = from.windows[2];
      const Index run = w.stride * from.channels;
      const T* block = blocks + (image * rows + a) * to.windows[2].in * to.channels + row % h.stride * run;
      for (Index b = 0; b < to.windows[2].in; ++b, block += to.channels) {
        const Index at = (b * w.stride - w.pad_before) * from.channels;
        const Index begin = std::clamp<Index>(-at, 0, run), end = std::clamp<Index>(line - at, begin, run);
        copy_run(end - begin, block + begin, to_row + at + begin);
      }
    });
  }

  // Calls body(place of a row of F filters in w', its place in w or -1).
  template <class Body>
  void for_each_filter_row(Body&& body) const {
    const Window &h = from.windows[1], &w = from.windows[2];
    const Index kernel_h = to.windows[1].kernel, kernel_w = to.windows[2].kernel;
    const Index channels = from.channels, taps = from.taps();
    parallel_for(to.taps(), [&](Index tap) {
      const Index d = tap / (kernel_h * kernel_w), s = tap / kernel_w % kernel_h, t = tap % kernel_w;
      for (Index i = 0; i < h.stride; ++i) {
        for (Index j = 0; j < w.stride; ++j) {
          const Index kh = s * h.stride + i, kw = t * w.stride + j;
          const Index stored = (d * h.kernel + kh) * w.kernel + kw;
          const Index place = from.flip ? taps - 1 - stored : stored;
          for (Index c = 0; c < channels; ++c) {
            body(((tap * h.stride + i) * w.stride + j) * channels + c,
                 kh < h.kernel && kw < w.kernel ? place * channels + c : -1);
          }
        }
      }
    });
  }

  void blocks_of_filters(const T* weight, T* out) const {
    for_each_filter_row([&](Index block, Index row) {
      if (row < 0) zero_run(from.filters, out + block * from.filters);
      else copy_run(from.filters, weight + row * from.filters, out + block * from.filters);
    });
  }

  void filters_of_blocks(const T* blocks, T* weight) const {
    for_each_filter_row([&](Index block, Index row) {
      if (row >= 0) copy_run(from.filters, blocks + block * from.filters, weight + row * from.filters);
    });
  }
};

}  // namespace lec7::cpu::LEC7_ISA
