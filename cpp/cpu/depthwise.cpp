// Depthwise convolution: vectors run over the channels. A block is up to 2 x 4 output positions; in every row of x
// under it, each vector is loaded once for all positions and taps that meet it. Blocks follow one another along a row,
// and two rows read four of x (of 3 x 3 filters), two of which the rows before have left in the cache.
//
// The gradient of the filters takes the same way: each block adds to its task's sum of every tap.
#include "depthwise.h"

#include <algorithm>
#include <type_traits>

#include "activation.h"
#include "lec7/memory.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr int kColumns = 4;                 // positions of a block in a row
constexpr Index kNumbers = Index{1} << 17;  // of y a task
constexpr Index kGradientTasks = 32;

// How a row of filters is read: K taps together, which positions S cells apart share. K = 1: tap by tap, S is not
// known.
template <int K, int S>
struct Taps {
  static constexpr int kTaps = K;
  static constexpr int kCells(int columns) { return K == 1 ? columns : (columns - 1) * S + K; }
  static constexpr int cell(int column, int tap) { return K == 1 ? column : column * S + tap; }
  // Two rows of a larger stride share too little.
  static constexpr bool kPairs = K == 1 || S == 1;
};
using AnyTaps = Taps<1, 0>;

// Calls body(Taps) with the widest that the last axis allows. float64 is for checking.
template <class T, class Body>
void with_taps(const Window& w, Body&& body) {
  if (std::is_same_v<T, float> && w.dilation == 1) {
    if (w.kernel == 3 && w.stride == 1) return body(Taps<3, 1>{});
    if (w.kernel == 3 && w.stride == 2) return body(Taps<3, 2>{});
    if (w.kernel == 5 && w.stride == 1) return body(Taps<5, 1>{});
    if (w.kernel == 5 && w.stride == 2) return body(Taps<5, 2>{});
  }
  body(AnyTaps{});
}

// One or two rows of output positions of an image, and the rows of x under them.
template <class T>
struct Rows {
  const Convolution& c;
  const T* x;    // of this image
  Index d, h;    // origin of the windows of the first row
  Range depth;   // the taps that meet x
  Range height;  // the rows of x at h + i * dilation that exist

  // On R x Q positions from column w on, which all see the taps `range` of the last axis: calls body(r, tap, cells),
  // where the taps from `tap` on meet these cells of row r.
  template <int R, int Q, class Taps, class N, class Body>
  LEC7_INLINE void for_taps(Taps, Index w, Range range, Index channel, N lanes, Body&& body) const {
    const auto& [wd, wh, ww] = c.windows;
    constexpr int kCells = Taps::kCells(Q);
    const Index step = (Taps::kTaps == 1 ? ww.stride : 1) * c.channels;
    for (Index kd = depth.begin; kd < depth.end; ++kd) {
      for (Index i = height.begin; i < height.end; ++i) {
        const Index row = (d + kd * wd.dilation) * wh.in + h + i * wh.dilation;
        const T* p = x + (row * ww.in + ww.origin(w)) * c.channels + channel;
        for (Index kw = range.begin; kw < range.end; kw += Taps::kTaps) {
          Vec<T> cells[kCells];
          LEC7_UNROLL
          for (int j = 0; j < kCells; ++j) {
            cells[j] = load_lanes(p + kw * ww.dilation * c.channels + j * step, lanes);
          }
          LEC7_UNROLL
          for (int r = 0; r < R; ++r) {
            const Index kh = i - r;
            if (kh >= 0 && kh < wh.kernel) body(r, (kd * wh.kernel + kh) * ww.kernel + kw, cells);
          }
        }
      }
    }
  }
};

// Calls body(R, rows, line) on the lines of output positions `range`: R of them, one or two, from `line` on.
template <bool pairs, class T, class Body>
LEC7_INLINE void for_rows(const Convolution& c, const T* x, Range range, Body&& body) {
  const auto& [wd, wh, ww] = c.windows;
  for (Index line = range.begin; line < range.end;) {
    const Position at(c, line * ww.out);
    const bool pair = pairs && wh.stride == 1 && wh.dilation == 1 && at.h + 1 < wh.out && line + 1 < range.end;
    Window rows = wh;
    rows.kernel += pair;
    const Rows<T> under{c,
                        x + at.n * wd.in * wh.in * ww.in * c.channels,
                        wd.origin(at.d),
                        wh.origin(at.h),
                        wd.taps(at.d),
                        rows.taps(at.h)};
    if constexpr (pairs) {
      if (pair) {
        body(std::integral_constant<int, 2>{}, under, line);
        line += 2;
        continue;
      }
    }
    body(std::integral_constant<int, 1>{}, under, line++);
  }
}

// The output cells that see all taps.
Range inner_cells(const Window& w) {
  const Index begin = std::min(w.out, ceil_div(w.pad_before, w.stride));
  const Index last = w.in + w.pad_before - w.extent();  // the largest origin, from the padding's start
  return {begin, std::max(begin, last < 0 ? 0 : std::min(w.out, last / w.stride + 1))};
}

}  // namespace

template <class T>
void convolve_depthwise(const Convolution& c, const T* x, const Filters<T>& filters, const T* bias,
                        Activation activation, T* y) {
  const Window& ww = c.windows[2];
  const Index taps = c.taps(), lines = c.positions() / ww.out, line_size = ww.out * c.channels;
  const Index task_lines = ceil_div(lines, ceil_div(lines * line_size, kNumbers));
  const Range inner = inner_cells(ww);
  // All taps of a vector of channels, then those of the next.
  memory::Buffer<T> packed(ceil_div(c.channels, W<T>) * taps * W<T>);
  for_lanes<T>(c.channels, [&](Index channel, auto lanes) {
    for (Index t = 0; t < taps; ++t) {
      store(packed.data() + channel * taps + t * W<T>, load_lanes(filters.tap(c, t) + channel, lanes));
    }
  });
  with_taps<T>(ww, [&]<class Taps>(Taps together) {
    parallel_region(limit_threads(lines * line_size * taps, ceil_div(lines, task_lines)), [&](const Team& team) {
      team.for_each(ceil_div(lines, task_lines), [&](Index task) {
        const Range range{task * task_lines, std::min((task + 1) * task_lines, lines)};
        for_rows<Taps::kPairs>(
            c, x, range, [&]<int R>(std::integral_constant<int, R>, const Rows<T>& rows, Index line) {
              T* const out = y + Position(c, line * ww.out).row_of_y(c) * c.channels;
              const Index ld = c.step[1] * c.size[2] * c.channels, step = c.step[2] * c.channels;
              const auto block = [&]<int Q>(std::integral_constant<int, Q>, auto kind, Index w, Range columns) {
                constexpr int kTaps = decltype(kind)::kTaps;
                for_lanes<T>(c.channels, [&](Index channel, auto lanes) LEC7_LAMBDA_INLINE {
                  const Vec<T> start = bias == nullptr ? Vec<T>{} : load_lanes(bias + channel, lanes);
                  Vec<T> sum[R][Q];
                  LEC7_UNROLL
                  for (int r = 0; r < R; ++r) {
                    LEC7_UNROLL
                    for (int q = 0; q < Q; ++q) sum[r][q] = start;
                  }
                  const T* const weights = packed.data() + channel * taps;
                  rows.template for_taps<R, Q>(kind, w, columns, channel, lanes,
                                               [&](int r, Index tap, const auto& cells) LEC7_LAMBDA_INLINE {
                                                 LEC7_UNROLL
                                                 for (int k = 0; k < kTaps; ++k) {
                                                   const Vec<T> weight = load(weights + (tap + k) * W<T>);
                                                   LEC7_UNROLL
                                                   for (int q = 0; q < Q; ++q)
                                                     sum[r][q] += weight * cells[decltype(kind)::cell(q, k)];
                                                 }
                                               });
                  LEC7_UNROLL
                  for (int r = 0; r < R; ++r) {
                    LEC7_UNROLL
                    for (int q = 0; q < Q; ++q) store_lanes(out + r * ld + (w + q) * step + channel, sum[r][q], lanes);
                  }
                });
              };
              const auto single = [&](Index w) { block(std::integral_constant<int, 1>{}, AnyTaps{}, w, ww.taps(w)); };
              const bool wide = inner.end - inner.begin >= kColumns;
              for (Index w = 0; w < (wide ? inner.begin : ww.out); ++w) single(w);
              if (wide) {
                // The last block may compute some positions again.
                for (Index w = inner.begin; w < inner.end; w += kColumns) {
                  block(std::integral_constant<int, kColumns>{}, together, std::min(w, inner.end - kColumns),
                        {0, ww.kernel});
                }
                for (Index w = inner.end; w < ww.out; ++w) single(w);
              }
              // An activation comes with the forward alone, whose rows have no gaps.
              activate_rows(activation, R, line_size, out, line_size);
            });
      });
    });
  });
}

template <class T>
void depthwise_weight_gradient(const Convolution& c, bool flip, const T* dy, const T* x, T* dweight) {
  const Window& ww = c.windows[2];
  const Index lines = c.positions() / ww.out, size = c.taps() * c.channels, line_size = ww.out * c.channels;
  const Index chunk_lines = ceil_div(lines, std::min(lines, kGradientTasks)), chunks = ceil_div(lines, chunk_lines);
  const Range inner = inner_cells(ww);
  memory::Buffer<T> parts(chunks * size);
  with_taps<T>(ww, [&]<class Taps>(Taps together) {
    parallel_region(limit_threads(c.positions() * size, chunks), [&](const Team& team) {
      team.for_each(chunks, [&](Index chunk) {
        T* const part = parts.data() + chunk * size;
        zero_run(size, part);
        const Range range{chunk * chunk_lines, std::min((chunk + 1) * chunk_lines, lines)};
        for_rows<Taps::kPairs>(
            c, x, range, [&]<int R>(std::integral_constant<int, R>, const Rows<T>& rows, Index line) {
              const T* const gradient = dy + line * line_size;
              const auto block = [&]<int Q>(std::integral_constant<int, Q>, auto kind, Index w, Range columns) {
                constexpr int kTaps = decltype(kind)::kTaps;
                for_lanes<T>(c.channels, [&](Index channel, auto lanes) LEC7_LAMBDA_INLINE {
                  Vec<T> g[R][Q];
                  LEC7_UNROLL
                  for (int r = 0; r < R; ++r) {
                    LEC7_UNROLL
                    for (int q = 0; q < Q; ++q) {
                      g[r][q] = load_lanes(gradient + r * line_size + (w + q) * c.channels + channel, lanes);
                    }
                  }
                  rows.template for_taps<R, Q>(kind, w, columns, channel, lanes,
                                               [&](int r, Index tap, const auto& cells) LEC7_LAMBDA_INLINE {
                                                 LEC7_UNROLL
                                                 for (int k = 0; k < kTaps; ++k) {
                                                   T* const to = part + (tap + k) * c.channels + channel;
                                                   Vec<T> sum = load_lanes(to, lanes);
                                                   LEC7_UNROLL
                                                   for (int q = 0; q < Q; ++q)
                                                     sum += g[r][q] * cells[decltype(kind)::cell(q, k)];
                                                   store_lanes(to, sum, lanes);
                                                 }
                                               });
                });
              };
              const auto single = [&](Index w) { block(std::integral_constant<int, 1>{}, AnyTaps{}, w, ww.taps(w)); };
              Index w = 0;
              for (; w < inner.begin; ++w) single(w);
              for (; w + kColumns <= inner.end; w += kColumns) {
                block(std::integral_constant<int, kColumns>{}, together, w, {0, ww.kernel});
              }
              for (; w < ww.out; ++w) single(w);
            });
      });
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
