#include "patches.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace lec7::cuda {
namespace {

// Coordinates leave the image by less than this, and the cells of an array are counted in 31 bits.
constexpr Index kMostPadded = Index{1} << 30;
constexpr Index kMostCells = INT32_MAX - 1024;  // a tile of rows ends past the last

int narrow(Index n) { return static_cast<int>(n); }

void check_sizes(const ConvShape& s) {
  Index in = s.batch, out = s.batch;
  bool fits = s.taps() * s.group_channels() <= kMostCells && s.taps() * s.group_filters() <= kMostCells;
  for (const Window& w : s.windows) {
    fits = fits && w.in + w.pad_before + w.pad_after <= kMostPadded;
    in *= w.in, out *= w.out;
    fits = fits && in <= kMostCells && out <= kMostCells;
  }
  if (!fits) throw std::runtime_error("conv: CUDA's kernels count the cells of an image batch in 31 bits");
}

Axis forward_axis(const Window& w, bool flip) {
  const Index end = (w.kernel - 1) * w.dilation;
  Axis a{};
  a.in = narrow(w.in), a.out = a.size = narrow(w.out), a.taps = a.kernel = narrow(w.kernel);
  a.stride = narrow(w.stride);
  a.offset = narrow((flip ? end : 0) - w.pad_before);
  a.dilation = narrow(w.kernel == 1 ? 0 : flip ? -w.dilation : w.dilation);
  a.first_cell = a.first_tap = 0;
  a.cell_step = a.tap_step = 1;
  return a;
}

// The cells i = r, r + stride, ... of x, and the outputs that meet them. Cell r + a * stride meets tap t in output
// a + (r + before - t dilation) / stride, where that is whole: from tap t0 on every (stride / g)th, each dilation / g
// outputs further down, g = gcd(stride, dilation).
Axis phase_axis(const Window& w, bool flip, Index r) {
  const Index g = std::gcd(w.stride, w.dilation), every = w.stride / g, most = std::min(w.kernel, every);
  Index t0 = 0;
  while (t0 < most && (r + w.pad_before - t0 * w.dilation) % w.stride != 0) ++t0;
  const Index taps = t0 < most ? ceil_div(w.kernel - t0, every) : 0;
  const Index nearest = taps > 0 ? (r + w.pad_before - t0 * w.dilation) / w.stride : 0;
  const Index dilation = taps > 1 ? w.dilation / g : 0, last = t0 + (taps - 1) * every;
  Axis a{};
  a.in = narrow(w.out), a.out = narrow(ceil_div(w.in - r, w.stride)), a.taps = narrow(taps);
  a.stride = 1;
  a.offset = narrow(flip ? nearest - (taps - 1) * dilation : nearest);
  a.dilation = narrow(flip ? dilation : -dilation);
  a.size = narrow(w.in), a.first_cell = narrow(r);
  a.cell_step = narrow(a.out > 1 ? w.stride : 1);
  a.kernel = narrow(w.kernel);
  a.first_tap = narrow(flip ? w.kernel - 1 - last : t0);
  a.tap_step = narrow(taps > 1 ? every : 1);
  return a;
}

}  // namespace

Pass::Pass(int batch, const Axis (&axes)[kSpatialAxes], int channels)
    : batch_(batch), channels_(channels), by_channels_(channels) {
  every_tap_ = true;
  taps_ = 1;
  for (int axis = 0; axis < kSpatialAxes; ++axis) {
    const Axis& a = axes_[axis] = axes[axis];
    taps_ *= a.taps;
    every_tap_ = every_tap_ && a.taps == a.kernel;
    out_[axis] = Divisor(a.out);
    if (axis > 0) by_taps_[axis - 1] = Divisor(std::max(1, a.taps));
  }
}

Cover cover(const ConvShape& s) {
  check_sizes(s);
  Cover c;
  for (int axis = 0; axis < kSpatialAxes; ++axis) {
    const Axis& a = c.axes[axis] = forward_axis(s.windows[axis], s.flip);
    c.in[axis] = Divisor(a.in);
    c.by_stride[axis] = Divisor(a.stride);
  }
  return c;
}

Pass forward_pass(const ConvShape& s) {
  check_sizes(s);
  Axis axes[kSpatialAxes];
  for (int axis = 0; axis < kSpatialAxes; ++axis) axes[axis] = forward_axis(s.windows[axis], s.flip);
  return Pass(narrow(s.batch), axes, narrow(s.group_channels()));
}

std::vector<Pass> input_gradient_passes(const ConvShape& s) {
  check_sizes(s);
  std::vector<Pass> passes;
  Axis axes[kSpatialAxes];
  const auto phases = [&](int axis) { return std::min(s.windows[axis].stride, s.windows[axis].in); };
  for (Index d = 0; d < phases(0); ++d) {
    axes[0] = phase_axis(s.windows[0], s.flip, d);
    for (Index h = 0; h < phases(1); ++h) {
      axes[1] = phase_axis(s.windows[1], s.flip, h);
      for (Index w = 0; w < phases(2); ++w) {
        axes[2] = phase_axis(s.windows[2], s.flip, w);
        passes.emplace_back(narrow(s.batch), axes, narrow(s.group_filters()));
      }
    }
  }
  return passes;
}

}  // namespace lec7::cuda
