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
constexpr Index kGradientTasks = 32;        // split the positions into chunks until there are as many,
constexpr Index kLeastChunk = 1 << 16;      // but not into smaller ones than of so many numbers

template <int n>
using Constant = std::integral_constant<int, n>;

// Filters of K x K taps, S cells apart, known at compile time; K = 0: any others, taken tap by tap.
template <int K, int S>
struct Taps {
  static constexpr int kTogether = K == 0 ? 1 : K;  // taps in a row
  static constexpr int kCells(int columns) { return K == 0 ? columns : (columns - 1) * S + K; }
  static constexpr int cell(int column, int tap) { return K == 0 ? column : column * S + tap; }
};
using AnyTaps = Taps<0, 0>;

// Calls body(Taps) with those that are known at compile time. float64 is for checking.
template <class T, class Body>
void with_taps(const Windows& windows, Body&& body) {
  const auto& [wd, wh, ww] = windows;
  const auto is = [&](Index kernel, Index stride) {
    return wd.kernel == 1 && wd.pad_before == 0 && wd.pad_after == 0 && wh.kernel == kernel && ww.kernel == kernel &&
           wh.stride == stride && ww.stride == stride && wh.dilation == 1 && ww.dilation == 1;
  };
  if constexpr (std::is_same_v<T, float>) {
    if (is(3, 1)) return body(Taps<3, 1>{});
    if (is(3, 2)) return body(Taps<3, 2>{});
    if (is(5, 1)) return body(Taps<5, 1>{});
    if (is(5, 2)) return body(Taps<5, 2>{});
    if (is(7, 1)) return body(Taps<7, 1>{});
  }
  body(AnyTaps{});
}

// The same number, but what is computed from it is computed where it stands: out of a loop the compiler would bring
// more addresses than there are registers.
LEC7_INLINE Index opaque(Index n) {
#if defined(__GNUC__)
  asm("" : "+r"(n));
#endif
  return n;
}

// One or two rows of output positions of an image, and the rows of x under them.
template <class T>
struct Rows {
  const Convolution& c;
  const T* x;      // of this image
  const T* zeros;  // a row of x
  Index d, h;      // origin of the windows of the first row
  Range depth;     // the taps that meet x
  Range height;    // the rows of x at h + i * dilation that exist

  // On R x Q positions from column w on: calls body(r, tap, cells), where the taps from `tap` on meet these cells of
  // row r. Where `edge`, cells may lie outside. Of AnyTaps all positions see the taps `range` of the last axis.
  template <int R, int Q, bool edge, int K, int S, class N, class Body>
  LEC7_INLINE void for_taps(Taps<K, S> taps, Index w, Range range, Index channel, N lanes, Body&& body) const {
    const auto& [wd, wh, ww] = c.windows;
    constexpr int kCells = taps.kCells(Q);
    Vec<T> cells[kCells];
    if constexpr (K > 0) {
      const Index channels = opaque(c.channels), first = ww.origin(w), begin = first * channels + channel;
      LEC7_UNROLL
      for (int i = 0; i < (R - 1) * S + K; ++i) {
        const T* const row = i < height.begin || i >= height.end ? zeros : x + (d * wh.in + h + i) * ww.in * channels;
        LEC7_UNROLL
        for (int j = 0; j < kCells; ++j) {
          const bool outside = edge && (first + j < 0 || first + j >= ww.in);
          cells[j] = outside ? Vec<T>{} : load_lanes(row + begin + j * channels, lanes);
        }
        LEC7_UNROLL
        for (int r = 0; r < R; ++r) {
          const int kh = i - r * S;
          if (kh >= 0 && kh < K) body(r, kh * K, cells);
        }
      }
    } else {
      for (Index kd = depth.begin; kd < depth.end; ++kd) {
        for (Index i = height.begin; i < height.end; ++i) {
          const Index row = (d + kd * wd.dilation) * wh.in + h + i * wh.dilation;
          const T* const p = x + (row * ww.in + ww.origin(w)) * c.channels + channel;
          for (Index kw = range.begin; kw < range.end; ++kw) {
            LEC7_UNROLL
            for (int j = 0; j < kCells; ++j) {
              cells[j] = load_lanes(p + (kw * ww.dilation + j * ww.stride) * c.channels, lanes);
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
  }
};

// Calls body(Constant<R>, rows, line) on the lines of output positions `range`: R of them, one or two, from `line` on.
template <class T, int K, int S, class Body>
LEC7_INLINE void for_rows(Taps<K, S>, const Convolution& c, const T* x, const T* zeros, Range range, Body&& body) {
  constexpr int kRows = S < 2 ? 2 : 1;  // rows of a larger stride share too little
  const auto& [wd, wh, ww] = c.windows;
  const Index most = wh.stride == 1 && wh.dilation == 1 ? kRows : 1;
  for (Index line = range.begin; line < range.end;) {
    const Position at(c, line * ww.out);
    const Index count = at.h + most <= wh.out && line + most <= range.end ? most : 1;
    Window rows = wh;
    rows.kernel += (count - 1) * wh.stride;
    const T* const image = x + at.n * wd.in * wh.in * ww.in * c.channels;
    const Rows<T> under{c, image, zeros, wd.origin(at.d), wh.origin(at.h), wd.taps(at.d), rows.taps(at.h)};
    if (count == kRows) body(Constant<kRows>{}, under, line);
    else body(Constant<1>{}, under, line);
    line += count;
  }
}

// Calls block(Constant<Q>, edge, taps, w, range) on blocks of Q positions, which are all of a row. The last may hold
// some of those before it where they may be taken `again`.
template <bool again, int K, int S, class Block>
LEC7_INLINE void for_blocks(Taps<K, S> taps, const Window& window, Block&& block) {
  // The positions that see all taps. A phase of dx may begin inside its axis: then there is less than no padding.
  const Index first = std::clamp<Index>(ceil_div(window.pad_before, window.stride), 0, window.out);
  const Index most = window.in + window.pad_before - window.extent();
  const Index last = std::max(first, most < 0 ? 0 : std::min(window.out, most / window.stride + 1));
  const auto single = [&](Index w) { block(Constant<1>{}, std::false_type{}, AnyTaps{}, w, window.taps(w)); };
  const Index begin = K > 0 ? 0 : first, end = K > 0 ? window.out : last;
  Index w = 0;
  if (end - begin >= kColumns) {
    for (; w < begin; ++w) single(w);
    for (; w + (again ? 1 : kColumns) <= end; w += kColumns) {
      const Index at = std::min(w, end - kColumns);
      if (at >= first && at + kColumns <= last) {
        block(Constant<kColumns>{}, std::false_type{}, taps, at, Range{0, window.kernel});
      } else {
        block(Constant<kColumns>{}, std::true_type{}, taps, at, Range{0, window.kernel});
      }
    }
    w = std::min(w, end);
  }
  for (; w < window.out; ++w) single(w);
}

}  // namespace

template <class T>
void convolve_depthwise(const Convolution& c, const T* x, const Filters<T>& filters, const T* bias,
                        Activation activation, T* y) {
  const Window& ww = c.windows[2];
  const Index count = c.taps(), lines = c.positions() / ww.out, line_size = ww.out * c.channels;
  const Index task_lines = ceil_div(lines, ceil_div(lines * line_size, kNumbers)), tasks = ceil_div(lines, task_lines);
  // All taps of a vector of channels, then those of the next.
  memory::Buffer<T> packed(ceil_div(c.channels, W<T>) * count * W<T>), zeros(ww.in * c.channels);
  zero_run(ww.in * c.channels, zeros.data());
  for_lanes<T>(c.channels, [&](Index channel, auto lanes) {
    for (Index t = 0; t < count; ++t) {
      store(packed.data() + channel * count + t * W<T>, load_lanes(filters.tap(c, t) + channel, lanes));
    }
  });
  with_taps<T>(c.windows, [&](auto known_taps) {
    parallel_region(limit_threads(lines * line_size * count, tasks), [&](const Team& team) {
      team.for_each(tasks, [&](Index task) {
        const Range range{task * task_lines, std::min((task + 1) * task_lines, lines)};
        for_rows(known_taps, c, x, zeros.data(), range, [&]<int R>(Constant<R>, const Rows<T>& rows, Index line) {
          T* const out = y + Position(c, line * ww.out).row_of_y(c) * c.channels;
          const auto block = [&]<int Q, bool edge, int K, int S>(Constant<Q>, std::bool_constant<edge>, Taps<K, S> taps,
                                                                 Index w, Range columns) {
            for_lanes<T>(c.channels, [&](Index channel, auto lanes) LEC7_LAMBDA_INLINE {
              const Vec<T> start = bias == nullptr ? Vec<T>{} : load_lanes(bias + channel, lanes);
              const T* const weights = packed.data() + channel * count;
              Vec<T> sum[R][Q];
              LEC7_UNROLL
              for (int i = 0; i < R * Q; ++i) sum[i / Q][i % Q] = start;
              const auto add = [&](int r, Index tap, const auto& cells) LEC7_LAMBDA_INLINE {
                LEC7_UNROLL
                for (int k = 0; k < taps.kTogether; ++k) {
                  const Vec<T> weight = load(weights + (tap + k) * W<T>);
                  LEC7_UNROLL
                  for (int q = 0; q < Q; ++q) sum[r][q] += weight * cells[taps.cell(q, k)];
                }
              };
              rows.template for_taps<R, Q, edge>(taps, w, columns, channel, lanes, add);
              const Index channels = opaque(c.channels);
              T* const to = out + w * c.step[2] * channels + channel;
              LEC7_UNROLL
              for (int i = 0; i < R * Q; ++i) {
                store_lanes(to + (i / Q * c.step[1] * c.size[2] + i % Q * c.step[2]) * channels, sum[i / Q][i % Q],
                            lanes);
              }
            });
          };
          for_blocks<true>(known_taps, ww, block);
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
  const Index lines = c.positions() / ww.out, size = c.taps() * c.channels;
  const Index most = std::min(lines, ceil_div(c.positions() * c.channels, kLeastChunk));
  const Index chunk_lines = ceil_div(lines, std::min(most, kGradientTasks)), chunks = ceil_div(lines, chunk_lines);
  memory::Buffer<T> parts(chunks * size), zeros(ww.in * c.channels);
  zero_run(ww.in * c.channels, zeros.data());
  with_taps<T>(c.windows, [&](auto known_taps) {
    parallel_region(limit_threads(c.positions() * size, chunks), [&](const Team& team) {
      team.for_each(chunks, [&](Index chunk) {
        T* const part = parts.data() + chunk * size;
        zero_run(size, part);
        const Range range{chunk * chunk_lines, std::min((chunk + 1) * chunk_lines, lines)};
        for_rows(known_taps, c, x, zeros.data(), range, [&]<int R>(Constant<R>, const Rows<T>& rows, Index line) {
          const auto block = [&]<int Q, bool edge, int K, int S>(Constant<Q>, std::bool_constant<edge>, Taps<K, S> taps,
                                                                 Index w, Range columns) {
            for_lanes<T>(c.channels, [&](Index channel, auto lanes) LEC7_LAMBDA_INLINE {
              const Index channels = opaque(c.channels);
              const T* const from = dy + (line * ww.out + w) * channels + channel;
              Vec<T> g[R][Q];
              LEC7_UNROLL
              for (int i = 0; i < R * Q; ++i) {
                g[i / Q][i % Q] = load_lanes(from + (i / Q * ww.out + i % Q) * channels, lanes);
              }
              const auto add = [&](int r, Index tap, const auto& cells) LEC7_LAMBDA_INLINE {
                LEC7_UNROLL
                for (int k = 0; k < taps.kTogether; ++k) {
                  T* const to = part + (tap + k) * channels + channel;
                  Vec<T> sum = load_lanes(to, lanes);
                  LEC7_UNROLL
                  for (int q = 0; q < Q; ++q) sum += g[r][q] * cells[taps.cell(q, k)];
                  store_lanes(to, sum, lanes);
                }
              };
              rows.template for_taps<R, Q, edge>(taps, w, columns, channel, lanes, add);
            });
          };
          for_blocks<false>(known_taps, ww, block);
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
