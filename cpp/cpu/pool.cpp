// pooling: vectors of channels, every cell of the result written once, all bound by memory.
//
// Sums go backward in gather form: an input cell adds up the windows that it is in. The maximum cannot, because argmax
// alone does not tell which windows those are: it scatters, and zeroes dx just ahead of the furthest winner, so that
// the cells it adds to are still in the cache. AVX-512's scatter is no faster than sixteen scalar additions.
#include "lec7/pool.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "lec7/memory.h"
#include "lec7/parallel.h"
#include "simd.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kGrain = 1 << 15;        // numbers read a task
constexpr Index kFewTasks = 8;           // of the scatter: then images are cut
constexpr Index kLeastBand = 1 << 16;    // numbers
constexpr Index kScatterChunk = 1 << 9;  // winners looked at before they are added

// Calls body(c, vectors, lanes) on groups of channels: four whole vectors at a time, to hide the latency of a chain
// over the window's cells, then the rest by single vectors.
template <class T, class Body>
LEC7_INLINE void for_channels(Index channels, Body&& body) {
  constexpr auto all = std::integral_constant<Index, W<T>>{};
  Index c = 0;
  for (; c + 4 * W<T> <= channels; c += 4 * W<T>) body(c, std::integral_constant<int, 4>{}, all);
  for (; c + W<T> <= channels; c += W<T>) body(c, std::integral_constant<int, 1>{}, all);
  if (c < channels) body(c, std::integral_constant<int, 1>{}, channels - c);
}

// Calls body(n, d, h) on the rows of a batch of images, on all threads; a row takes about `work` additions.
template <class Body>
void for_image_rows(Index batch, Index depth, Index height, Index work, Body&& body) {
  parallel_ranges(batch * depth * height, std::max<Index>(1, kGrain / std::max<Index>(1, work)),
                  [&](Index begin, Index end) {
                    for (Index row = begin; row < end; ++row) {
                      body(row / (depth * height), row / height % depth, row % height);
                    }
                  });
}

// The cells of x under one window.
struct Cells {
  const PoolShape& shape;
  Range d, h, w;  // taps
  Index d0, h0, w0;

  LEC7_INLINE bool empty() const { return d.begin == d.end || h.begin == h.end || w.begin == w.end; }
  LEC7_INLINE Index first() const { return row(d.begin, h.begin) + w.begin * shape.windows[2].dilation; }

  template <class Body>
  LEC7_INLINE void for_each(Body&& body) const {
    const Index step = shape.windows[2].dilation;
    for (Index kd = d.begin; kd < d.end; ++kd) {
      for (Index kh = h.begin; kh < h.end; ++kh) {
        const Index start = row(kd, kh);
        for (Index kw = w.begin; kw < w.end; ++kw) body(start + kw * step);
      }
    }
  }

 private:
  LEC7_INLINE Index row(Index kd, Index kh) const {
    const Index depth = d0 + kd * shape.windows[0].dilation, height = h0 + kh * shape.windows[1].dilation;
    return (depth * shape.x.size[1] + height) * shape.x.size[2] + w0;
  }
};

// Calls body(n, o, cells, count) on every window: image n, output cell o. `count` is 1, or `together` where as many
// neighbours on a row meet x with the same taps.
template <int together = 1, class Body>
LEC7_INLINE void for_windows(const PoolShape& s, Body&& body) {
  const Window &wd = s.windows[0], &wh = s.windows[1], &ww = s.windows[2];
  memory::Buffer<Range> taps(ww.out);  // the divisions in them once, not once a row
  for (Index w = 0; w < ww.out; ++w) taps[w] = ww.taps(w);
  Index work = ww.out * s.x.channels;
  for (const Window& w : s.windows) work = std::min(kGrain, work) * std::min(w.kernel, w.in);
  for_image_rows(s.x.batch, wd.out, wh.out, work, [&](Index n, Index d, Index h) {
    Cells cells{s, wd.taps(d), wh.taps(h), {}, wd.origin(d), wh.origin(h), 0};
    for (Index w = 0; w < ww.out;) {
      cells.w = taps[w];
      cells.w0 = ww.origin(w);
      const Index o = (d * wh.out + h) * ww.out + w;
      // Taps at both ends alike are so between them.
      const Index last = w + together - 1;
      if (together > 1 && last < ww.out && taps[w].begin == taps[last].begin && taps[w].end == taps[last].end) {
        body(n, o, cells, std::integral_constant<int, together>{});
        w += together;
      } else {
        body(n, o, cells, std::integral_constant<int, 1>{});
        ++w;
      }
    }
  });
}

// The largest so far, and where it was. The first of equals stays, and so does the first NaN.
template <class T>
struct Winner {
  Vec<T> value;
  Vec<Bits<T>> index;

  LEC7_INLINE void challenge(Vec<T> other, Vec<Bits<T>> other_index) {
#if defined(__AVX512F__)
    // "Not less or equal" holds for NaN, too. Two compares and two masked moves; GCC makes seven instructions of the
    // expression below.
    if constexpr (sizeof(T) == 4) {
      const __mmask16 number = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_ORD_Q);
      const __mmask16 better = _mm512_mask_cmp_ps_mask(number, (__m512)other, (__m512)value, _CMP_NLE_UQ);
      value = (Vec<T>)_mm512_mask_mov_ps((__m512)value, better, (__m512)other);
      index = (Vec<Bits<T>>)_mm512_mask_mov_epi32((__m512i)index, better, (__m512i)other_index);
    } else {
      const __mmask8 number = _mm512_cmp_pd_mask((__m512d)value, (__m512d)value, _CMP_ORD_Q);
      const __mmask8 better = _mm512_mask_cmp_pd_mask(number, (__m512d)other, (__m512d)value, _CMP_NLE_UQ);
      value = (Vec<T>)_mm512_mask_mov_pd((__m512d)value, better, (__m512d)other);
      index = (Vec<Bits<T>>)_mm512_mask_mov_epi64((__m512i)index, better, (__m512i)other_index);
    }
#else
    const Vec<Bits<T>> better = (other > value) | ((other != other) & (value == value));
    value = better ? other : value;
    index = better ? other_index : index;
#endif
  }
};

template <class T>
LEC7_INLINE void store_int32(std::int32_t* p, Vec<Bits<T>> v, Index n) {
  if constexpr (sizeof(T) == 4) {
    store_first(reinterpret_cast<float*>(p), (Vec<float>)v, n);
  } else {
    for (Index i = 0; i < n; ++i) p[i] = static_cast<std::int32_t>(v[i]);
  }
}

// 1 / count of each output cell, or 1.
template <class T>
void fill_scales(const PoolShape& s, Average average, T* scales) {
  const auto count = [&](int axis, Index o) {
    Window w = s.windows[axis];
    if (average == Average::padded_cells) {
      w.in += w.pad_before + w.pad_after;
      w.pad_before = 0;
    }
    const Range taps = w.taps(o);
    return taps.end - taps.begin;
  };
  for (Index d = 0; d < s.windows[0].out; ++d) {
    for (Index h = 0; h < s.windows[1].out; ++h) {
      const Index plane = count(0, d) * count(1, h);
      for (Index w = 0; w < s.windows[2].out; ++w) {
        const Index cells = average == Average::none ? 1 : std::max<Index>(1, plane * count(2, w));
        *scales++ = 1 / static_cast<T>(cells);
      }
    }
  }
}

// `together`: neighbouring windows, or groups of channels, that are looked at together, to hide the latency of a chain
// over the window's cells.
template <class T, int together>
void max_forward(const PoolShape& s, const T* x, T* y, std::int32_t* argmax) {
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  const Index channels = s.x.channels, step = s.windows[2].stride;
  for_windows<together>(s, [&](Index n, Index o, const Cells& cells, auto windows) LEC7_LAMBDA_INLINE {
    const T* const image = x + n * s.cells_in() * channels;
    const Index out = (n * s.cells_out() + o) * channels;
    const auto first = broadcast(static_cast<Bits<T>>(cells.empty() ? -1 : cells.first()));
    for_channels<T>(channels, [&](Index c, auto groups, auto lanes) LEC7_LAMBDA_INLINE {
      constexpr int kVectors = std::max<int>(windows, groups);
      const Index apart = windows > 1 ? step * channels : W<T>, out_apart = windows > 1 ? channels : W<T>;
      Winner<T> winners[kVectors];
      LEC7_UNROLL
      for (int v = 0; v < kVectors; ++v) winners[v] = {broadcast(lowest), first};
      cells.for_each([&](Index cell) LEC7_LAMBDA_INLINE {
        const auto index = broadcast(static_cast<Bits<T>>(cell));
        LEC7_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          winners[v].challenge(load_lanes(image + cell * channels + c + v * apart, lanes), index);
        }
      });
      LEC7_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const auto index =
            windows > 1 && !cells.empty() ? winners[v].index + static_cast<Bits<T>>(v * step) : winners[v].index;
        store_lanes(y + out + c + v * out_apart, winners[v].value, lanes);
        store_int32<T>(argmax + out + c + v * out_apart, index, lanes);
      }
    });
  });
}

}  // namespace

template <class T>
void max_pool_forward(const PoolShape& s, const T* x, T* y, std::int32_t* argmax) {
  if (s.x.channels <= W<T>) max_forward<T, 4>(s, x, y, argmax);
  else max_forward<T, 1>(s, x, y, argmax);
}

namespace {

// Adds dy to the winners' cells, of `count` output cells. Where not all are `inside` the band, the others add 0 to its
// first or last cell: no branch could predict which they are.
template <bool inside, class T, class I>
LEC7_INLINE void scatter(Index count, Index channels, Range band, const T* dy, const I* argmax, T* image) {
  for (Index o = 0; o < count; ++o) {
    for (Index c = 0; c < channels; ++c) {
      const Index cell = argmax[o * channels + c];
      const T g = dy[o * channels + c];
      if constexpr (inside) {
        image[cell * channels + c] += g;
      } else {
        const Index nearest = std::clamp(cell, band.begin, band.end - 1);
        const Bits<T> mask = -static_cast<Bits<T>>(nearest == cell);
        image[nearest * channels + c] += std::bit_cast<T>(std::bit_cast<Bits<T>>(g) & mask);
      }
    }
  }
}

template <class T, class I>
Index max_backward(const MaxPoolBackwardShape& s, const T* dy, const I* argmax, T* dx) {
  // An image is one task; few of them are cut into bands of cells. A band takes what is its own from all winners, so
  // that a cell adds them up in the same order however it is cut.
  const Index few = (kFewTasks + s.batch - 1) / std::max<Index>(1, s.batch);
  const Index wanted = std::clamp<Index>(s.cells_in * s.channels / kLeastBand, 1, few);
  const Index band_cells = (s.cells_in + wanted - 1) / wanted, bands = (s.cells_in + band_cells - 1) / band_cells;
  const Index chunk = std::max<Index>(1, kScatterChunk / std::max<Index>(1, s.channels));
  const Index chunks = (s.cells_out + chunk - 1) / chunk;
  const Index nowhere = s.batch * s.cells_out * s.channels;
  std::atomic<Index> bad{nowhere};

  struct Winners {
    I least, most;  // of a chunk; least > most where one is out of range, and `bad` says which
  };
  const auto winners_of = [&](Index n, Index first) -> Winners {
    const Index begin = (n * s.cells_out + first) * s.channels;
    const Index size = std::min(chunk, s.cells_out - first) * s.channels;
    I least = std::numeric_limits<I>::max(), most = -1;
    for (Index i = begin; i < begin + size; ++i) {
      least = std::min(least, argmax[i]);
      most = std::max(most, argmax[i]);
    }
    if (size == 0 || (least >= -1 && most < s.cells_in)) return {least, most};
    Index found = begin, earliest = bad.load();
    while (argmax[found] >= -1 && argmax[found] < s.cells_in) ++found;
    while (found < earliest && !bad.compare_exchange_weak(earliest, found)) {
    }
    return {0, -1};
  };
  memory::Buffer<Winners> known(bands > 1 ? s.batch * chunks : 0);
  const bool small = s.batch * (s.cells_in + s.cells_out) * s.channels < kGrain;

  const auto run_band = [&](Index task) {
    const Index n = task / bands, begin = task % bands * band_cells, end = std::min(begin + band_cells, s.cells_in);
    T* const image = dx + n * s.cells_in * s.channels;
    Index zeroed = begin;  // cells of the band before this one are
    const auto zero_until = [&](Index cell) {
      std::memset(image + zeroed * s.channels, 0, static_cast<std::size_t>((cell - zeroed) * s.channels) * sizeof(T));
      zeroed = cell;
    };
    for (Index i = 0; i < chunks; ++i) {
      const auto [least, most] = bands > 1 ? known[n * chunks + i] : winners_of(n, i * chunk);
      if (least > most || most < begin || least >= end) continue;
      if (most >= zeroed) zero_until(std::min<Index>(most + 1, end));
      const Index count = std::min(chunk, s.cells_out - i * chunk);
      const Index at = (n * s.cells_out + i * chunk) * s.channels;
      if (least >= begin && most < end) scatter<true>(count, s.channels, {begin, end}, dy + at, argmax + at, image);
      else scatter<false>(count, s.channels, {begin, end}, dy + at, argmax + at, image);
    }
    zero_until(end);
  };
  parallel_region(small ? 1 : s.batch * bands, [&](const Team& team) {
    if (bands > 1) {
      team.for_each(s.batch * chunks, [&](Index i) { known[i] = winners_of(i / chunks, i % chunks * chunk); });
    }
    team.for_each(s.batch * bands, run_band);
  });
  return bad < nowhere ? bad.load() : -1;
}

}  // namespace

template <class T>
Index max_pool_backward(const MaxPoolBackwardShape& s, const T* dy, const Indices& argmax, T* dx) {
  if (argmax.wide) return max_backward(s, dy, static_cast<const std::int64_t*>(argmax.data), dx);
  return max_backward(s, dy, static_cast<const std::int32_t*>(argmax.data), dx);
}

template <class T>
void sum_pool_forward(const PoolShape& s, Average average, const T* x, T* y) {
  memory::Buffer<T> scales(s.cells_out());
  fill_scales(s, average, scales.data());
  for_windows(s, [&](Index n, Index o, const Cells& cells, auto) LEC7_LAMBDA_INLINE {
    const T* const image = x + n * s.cells_in() * s.x.channels;
    T* const out = y + (n * s.cells_out() + o) * s.x.channels;
    for_channels<T>(s.x.channels, [&](Index c, auto vectors, auto lanes) LEC7_LAMBDA_INLINE {
      constexpr int kVectors = vectors;
      Vec<T> sum[kVectors] = {};
      cells.for_each([&](Index cell) LEC7_LAMBDA_INLINE {
        LEC7_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[v] += load_lanes(image + cell * s.x.channels + c + v * W<T>, lanes);
      });
      LEC7_UNROLL
      for (int v = 0; v < kVectors; ++v) store_lanes(out + c + v * W<T>, sum[v] * scales[o], lanes);
    });
  });
}

template <class T>
void sum_pool_backward(const PoolShape& s, Average average, const T* dy, T* dx) {
  const Window &wd = s.windows[0], &wh = s.windows[1], &ww = s.windows[2];
  const Index channels = s.x.channels;
  memory::Buffer<T> scales(s.cells_out());
  fill_scales(s, average, scales.data());
  memory::Buffer<Range> outputs(ww.in);
  for (Index w = 0; w < ww.in; ++w) outputs[w] = ww.outputs(w);
  for_image_rows(s.x.batch, wd.in, wh.in, ww.in * channels, [&](Index n, Index d, Index h) {
    const T* const image = dy + n * s.cells_out() * channels;
    T* const row = dx + ((n * wd.in + d) * wh.in + h) * ww.in * channels;
    const Range ds = wd.outputs(d), hs = wh.outputs(h);
    for (Index w = 0; w < ww.in; ++w) {
      const Range ws = outputs[w];
      for_channels<T>(channels, [&](Index c, auto vectors, auto lanes) LEC7_LAMBDA_INLINE {
        constexpr int kVectors = vectors;
        Vec<T> sum[kVectors] = {};
        for (Index od = ds.begin; od < ds.end; ++od) {
          if (!wd.sees(od, d)) continue;
          for (Index oh = hs.begin; oh < hs.end; ++oh) {
            if (!wh.sees(oh, h)) continue;
            for (Index ow = ws.begin; ow < ws.end; ++ow) {
              if (!ww.sees(ow, w)) continue;
              const Index o = (od * wh.out + oh) * ww.out + ow;
              LEC7_UNROLL
              for (int v = 0; v < kVectors; ++v) {
                sum[v] += scales[o] * load_lanes(image + o * channels + c + v * W<T>, lanes);
              }
            }
          }
        }
        LEC7_UNROLL
        for (int v = 0; v < kVectors; ++v) store_lanes(row + w * channels + c + v * W<T>, sum[v], lanes);
      });
    }
  });
}

#define LEC7_INSTANTIATE(T)                                                                    \
  template void max_pool_forward(const PoolShape&, const T*, T*, std::int32_t*);               \
  template Index max_pool_backward(const MaxPoolBackwardShape&, const T*, const Indices&, T*); \
  template void sum_pool_forward(const PoolShape&, Average, const T*, T*);                     \
  template void sum_pool_backward(const PoolShape&, Average, const T*, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
