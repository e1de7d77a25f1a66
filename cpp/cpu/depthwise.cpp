// Depthwise convolution: vectors run over the channels, a few positions share each loaded weight.
#include "depthwise.h"

#include <algorithm>

#include "activation.h"
#include "lec7/memory.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kGradientTasks = 32;

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

}  // namespace

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

#define LEC7_INSTANTIATE(T)                                                                                    \
  template void convolve_depthwise(const Convolution&, const T*, const Filters<T>&, const T*, Activation, T*); \
  template void depthwise_weight_gradient(const Convolution&, bool, const T*, const T*, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
