// The geometry of a convolution as kernels see it, in 32-bit numbers.
#pragma once

#include <algorithm>
#include <vector>

#include "divisor.h"
#include "kernel.h"
#include "lec7/conv.h"

namespace lec7::cuda {

// Output cell o of an axis sees with its tap t the input cell o * stride + offset + t * dilation, if there is one.
// Taps are in the order of the filters in memory, so that the dilation is negative where they are turned around. What
// is computed need not be all of the result: cell o is cell first_cell + o * cell_step of `size`, tap t stands at
// first_tap + t * tap_step of `kernel`.
struct Axis {
  int in, out, taps;
  int stride, offset, dilation;
  int size, first_cell, cell_step;
  int kernel, first_tap, tap_step;
};

struct Cell {
  int n, d, h, w;
};

// A way from the input's first cell to another, or from there on: `cells` in memory.
struct Walk {
  unsigned cells;
  int d, h, w;
};

// What turns x (batch, in, in, in) into y: a convolution, or the part of the gradient of x that one phase of the stride
// makes from dy.
class Pass {
 public:
  Pass() = default;
  Pass(int batch, const Axis (&axes)[kSpatialAxes], int channels);

  constexpr int rows() const { return batch_ * axes_[0].out * axes_[1].out * axes_[2].out; }
  constexpr int width() const { return axes_[2].out; }
  constexpr int taps() const { return taps_; }
  constexpr int depth() const {
    return taps_ * channels_;
  }  // numbers in a patch: taps, and in each the channels of a group

  __device__ Cell output(int row) const {
    const auto [lines, w] = out_[2](row);
    const auto [planes, h] = out_[1](lines);
    const auto [n, d] = out_[0](planes);
    return {n, d, h, w};
  }
  // Strips of `length` output cells, side by side, the last of a line shorter.
  constexpr Index strips(int length) const {
    return static_cast<Index>(batch_) * axes_[0].out * axes_[1].out * ((axes_[2].out + length - 1) / length);
  }
  __device__ Cell strip(int i, int length) const {
    const int across = (axes_[2].out + length - 1) / length;
    const auto [planes, h] = out_[1](i / across);
    const auto [n, d] = out_[0](planes);
    return {n, d, h, i % across * length};
  }
  // The input cell under the first tap, or what that would be.
  __device__ Cell origin(const Cell& o) const {
    return {o.n, o.d * axes_[0].stride + axes_[0].offset, o.h * axes_[1].stride + axes_[1].offset,
            o.w * axes_[2].stride + axes_[2].offset};
  }
  __device__ Divisor::Result tap_and_channel(int k) const { return by_channels_(k); }
  __device__ Cell tap(int t) const {
    const auto [lines, w] = by_taps_[1](t);
    const auto [d, h] = by_taps_[0](lines);
    return {0, d, h, w};
  }
  // The input cell under tap t, from the one under the first; -1: there is none.
  __device__ int input(const Cell& first, const Cell& t) const {
    const int d = first.d + t.d * axes_[0].dilation, h = first.h + t.h * axes_[1].dilation;
    const int w = first.w + t.w * axes_[2].dilation;
    const bool inside = static_cast<unsigned>(d) < static_cast<unsigned>(axes_[0].in) &&
                        static_cast<unsigned>(h) < static_cast<unsigned>(axes_[1].in) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(axes_[2].in);
    return inside ? ((first.n * axes_[0].in + d) * axes_[1].in + h) * axes_[2].in + w : -1;
  }
  // The same in two walks, each of which many such cells have in common: whether they lead to a cell, and which.
  __device__ Walk walk_to_first(const Cell& o) const {
    const Cell first = origin(o);
    return {cells(first.n, first.d, first.h, first.w), first.d, first.h, first.w};
  }
  __device__ Walk walk_to_tap(const Cell& t) const {
    const int d = t.d * axes_[0].dilation, h = t.h * axes_[1].dilation, w = t.w * axes_[2].dilation;
    return {cells(0, d, h, w), d, h, w};
  }
  __device__ bool is_inside(const Walk& first, const Walk& tap) const {
    const auto within = [&](int axis, int i) {
      return static_cast<unsigned>(i) < static_cast<unsigned>(axes_[axis].in);
    };
    return within(0, first.d + tap.d) & within(1, first.h + tap.h) & within(2, first.w + tap.w);
  }
  __device__ static int cell(const Walk& first, const Walk& tap) { return static_cast<int>(first.cells + tap.cells); }
  __device__ int cell_of_y(const Cell& o) const {
    const int d = axes_[0].first_cell + o.d * axes_[0].cell_step, h = axes_[1].first_cell + o.h * axes_[1].cell_step;
    return ((o.n * axes_[0].size + d) * axes_[1].size + h) * axes_[2].size + axes_[2].first_cell +
           o.w * axes_[2].cell_step;
  }
  // Where tap t stands in the filters.
  __device__ int stored(int t) const {
    if (every_tap_) return t;
    const Cell at = tap(t);
    return ((axes_[0].first_tap + at.d * axes_[0].tap_step) * axes_[1].kernel + axes_[1].first_tap +
            at.h * axes_[1].tap_step) *
               axes_[2].kernel +
           axes_[2].first_tap + at.w * axes_[2].tap_step;
  }

 private:
  __device__ unsigned cells(int n, int d, int h, int w) const {
    const auto in = [&](int axis) { return static_cast<unsigned>(axes_[axis].in); };
    return ((static_cast<unsigned>(n) * in(0) + static_cast<unsigned>(d)) * in(1) + static_cast<unsigned>(h)) * in(2) +
           static_cast<unsigned>(w);
  }

  Axis axes_[kSpatialAxes];
  int batch_, channels_, taps_;
  bool every_tap_;
  Divisor by_channels_, by_taps_[2], out_[kSpatialAxes];
};

// The other way round: the output cells whose windows are over an input cell.
struct Cover {
  Axis axes[kSpatialAxes];
  Divisor in[kSpatialAxes], by_stride[kSpatialAxes];

  __device__ Cell input(int row) const {
    const auto [lines, w] = in[2](row);
    const auto [planes, h] = in[1](lines);
    const auto [n, d] = in[0](planes);
    return {n, d, h, w};
  }
  // The output cell that sees cell i of an axis with tap t; -1: none.
  __device__ int output(int axis, int i, int t) const {
    const Axis& a = axes[axis];
    const int distance = i - a.offset - t * a.dilation;
    if (distance < 0) return -1;
    const auto [o, rest] = by_stride[axis](distance);
    return rest == 0 && o < a.out ? o : -1;
  }
  __device__ int row(int n, int d, int h, int w) const {
    return ((n * axes[0].out + d) * axes[1].out + h) * axes[2].out + w;
  }
};

Cover cover(const ConvShape& shape);
// y = convolution of x: one pass, `depth` numbers a patch and group.
Pass forward_pass(const ConvShape& shape);
// dx = the passes over dy, one for each phase of the stride: each cell of dx is in one of them, if without taps.
std::vector<Pass> input_gradient_passes(const ConvShape& shape);

// As many as one launch does; they fit into a kernel's 4 KiB of arguments.
inline constexpr int kMostPasses = 8;
struct Passes {
  Pass pass[kMostPasses];
};

// body(passes, count) for all of them.
template <class Body>
void for_passes(const std::vector<Pass>& all, Body&& body) {
  for (std::size_t first = 0; first < all.size(); first += kMostPasses) {
    const std::size_t count = std::min<std::size_t>(kMostPasses, all.size() - first);
    Passes some;
    std::copy_n(&all[first], count, some.pass);
    body(some, static_cast<int>(count));
  }
}

}  // namespace lec7::cuda
