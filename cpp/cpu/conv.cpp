// Convolution. One rule, `convolve`, picks the variant, and `weight_gradient` likewise:
//
//   Winograd   3 x 3 to 5 x 5 with stride 1, float32: fewer products   (winograd.cpp)
//   planar     few channels come out, with stride 1 along lines        (planar.cpp)
//   pointwise  1 x 1 with stride 1 is a matrix product of x itself     (gemm.cpp)
//   depthwise  one channel a filter                                    (depthwise.cpp)
//   direct     the rest                                                (direct.cpp)
//
// Strided convolutions of few channels become Winograd's by space to depth (space_to_depth.h).
//
// The gradient of x is a convolution of dy with the turned, transposed filters; a stride s splits it into s phases (the
// cells i = r mod s of an axis), each of them dense with its own taps. Where x has fewer channels than lanes and planar
// is not taken, windows hand what they have to the cells under them.
#include "lec7/conv.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "activation.h"
#include "column_sum.h"
#include "depthwise.h"
#include "direct.h"
#include "planar.h"
#include "space_to_depth.h"
#include "winograd.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kHandedNumbers = Index{1} << 22;  // few channels: images a pass
constexpr Index kRowNumbers = 2048;               // of dx a task then

// ---- The rule ----

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
  if (planar_pays<T>(c)) {
    convolve_planar(c, x, filters, bias, activation, y);
  } else if (is_pointwise(c)) {
    gemm<T>(c.positions(), c.filters, c.channels, {x, c.channels}, {filters.data, filters.columns, filters.transposed},
            y, c.filters, bias, activation);
  } else if (is_depthwise(c)) {
    convolve_depthwise(c, x, filters, bias, activation, y);
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
    // Several rows a task: two threads would take the lines that short rows share from each other.
    const Index grain = count * windows * k < kSerialWork ? count * rows : ceil_div(kRowNumbers, row_size);
    parallel_ranges(count * rows, grain, [&](Index first, Index last) {
      for (Index task = first; task < last; ++task) {
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
      }
    });
  }
}

template <class T>
void input_gradient(const ConvShape& s, const T* dy, const T* weight, T* dx) {
  if (s.batch == 0) return;
  const Convolution first = gradient_convolution(s, weight, {}).first;
  const bool by_winograd = std::is_same_v<T, float> && winograd_method(first) != Winograd::none;
  if (s.groups == 1 && s.channels < W<T> && s.taps() > 1 && !by_winograd && !planar_pays<T>(first)) {
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
void weight_gradient(const ConvShape& s, const T* dy, const T* x, T* dweight) {
  const Convolution c = forward_convolution(s);
  if (c.positions() == 0) return zero_run(c.depth() * c.filters, dweight);
  if constexpr (std::is_same_v<T, float>) {
    const Winograd method = winograd_method(c, true);
    if (method != Winograd::none) return winograd_weight_gradient(method, c, s.flip, dy, x, dweight);
  }
  if (planar_pays<T>(c)) planar_weight_gradient(c, s.flip, dy, x, dweight);
  else if (is_depthwise(c)) depthwise_weight_gradient(c, s.flip, dy, x, dweight);
  else direct_weight_gradient(c, s.flip, dy, x, dweight);
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
