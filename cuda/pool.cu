// pooling: a thread makes four channels of a cell of the result (one, where they do not come in fours), so that
// neighbours read neighbours and the cells that windows share come from L1; 1d, 2d and 3d are one kernel.
//
//   max forward      4 bytes a number of x, 8 of y;   sum and average: 4 and 4, forward and backward
//   max backward     4 bytes a number of dx, 8 of dy for each band that a chunk of winners falls into (often two),
//                    and 4 more to know them
//
// Sums go backward in gather form: an input cell adds up the windows that it is in. The maximum cannot, because argmax
// alone does not tell which windows those are, and to scatter with atomics would add in any order. So a warp takes a
// band of cells of 32 columns (an image's channel each), one a lane, which adds up its column in shared memory, in the
// order of the windows: nothing is shared between lanes. A first kernel notes which cells the winners of each chunk
// of windows span; a band skips chunks that stay clear of it.
#include "lec7/pool.h"

#include <algorithm>
#include <limits>

#include "divisor.h"
#include "elementwise.h"
#include "reduce.h"
#include "values.h"

namespace lec7::cuda {
namespace {

// Window (window.h) in 32-bit numbers, without divisions.
struct Axis {
  int in, out, kernel, stride, dilation, before, after;
  Divisor by_stride, by_dilation;

  struct Range {
    int begin, end;
  };
  __device__ int origin(int o) const { return o * stride - before; }
  __device__ Range taps(int o) const {
    const int first = origin(o);
    const int begin = first < 0 ? by_dilation(dilation - 1 - first).quotient : 0;
    const int end = first < in ? std::min(kernel, by_dilation(in - 1 - first).quotient + 1) : 0;
    return {begin, std::max(begin, end)};
  }
  // The taps that meet a cell of x or of its padding.
  __device__ int padded_taps(int o) const {
    const int left = before + in + after - 1 - o * stride;
    return left < 0 ? 0 : std::min(kernel, by_dilation(left).quotient + 1);
  }
  __device__ Range outputs(int i) const {
    const int beyond = i + before - (kernel - 1) * dilation;  // the first origin that still reaches i
    const int begin = beyond > 0 ? by_stride(beyond + stride - 1).quotient : 0;
    return {begin, std::min(out, by_stride(i + before).quotient + 1)};
  }
  __device__ bool sees(int o, int i) const { return dilation == 1 || by_dilation(i - origin(o)).remainder == 0; }
};

// The cell and the first channel of a vector of an image, and where its image begins among `cells` of each.
struct Place {
  Index image;
  int d, h, w, channel;
};

// The images, in vectors of `width` channels.
struct Geometry {
  Axis d, h, w;
  Index batch;
  int channels, width;
  Divisor by_vectors, by_in[2], by_out[2];

  Geometry(const PoolShape& s, bool fours)
      : d(axis(s.windows[0])), h(axis(s.windows[1])), w(axis(s.windows[2])), batch(s.x.batch) {
    width = fours && s.x.channels % 4 == 0 ? 4 : 1;
    channels = narrow(s.x.channels);
    narrow(checked_multiply(kOp, std::max(s.cells_in(), s.cells_out()), std::max<Index>(1, s.x.channels)));
    by_vectors = Divisor(std::max(1, channels / width));
    by_in[0] = Divisor(h.in);
    by_in[1] = Divisor(w.in);
    by_out[0] = Divisor(h.out);
    by_out[1] = Divisor(w.out);
  }
  __host__ __device__ int cells_in() const { return d.in * h.in * w.in; }
  __host__ __device__ int cells_out() const { return d.out * h.out * w.out; }

  // Vector i of x or dx, and of y or dy.
  __device__ Place input(Index i) const { return place(i, cells_in(), by_in); }
  __device__ Place output(Index i) const { return place(i, cells_out(), by_out); }

 private:
  static constexpr std::string_view kOp = "pooling on a GPU";
  static int narrow(Index n) {
    if (n > std::numeric_limits<int>::max()) fail(kOp, "an image is too large to count its numbers in int32");
    return static_cast<int>(n);
  }
  static Axis axis(const Window& w) {
    const Index padded = w.in + w.pad_before + w.pad_after;
    narrow(4 * padded);  // no sum that a kernel makes is larger
    const int stride = narrow(std::min(w.stride, padded)), dilation = narrow(w.dilation);
    return {narrow(w.in),         narrow(w.out),       narrow(w.kernel), stride,           dilation,
            narrow(w.pad_before), narrow(w.pad_after), Divisor(stride),  Divisor(dilation)};
  }
  __device__ Place place(Index i, int cells, const Divisor (&by_size)[2]) const {
    const int size = cells * (channels / width);
    const Index image = i / size;
    const auto [cell, vector] = by_vectors(static_cast<int>(i - image * size));
    const auto [lines, x] = by_size[1](cell);
    const auto [z, y] = by_size[0](lines);
    return {image, z, y, x, vector * width};
  }
};

// The cells of x under one window.
struct Cells {
  Axis::Range d, h, w;  // taps
  int d0, h0, w0;

  __device__ Cells(const Geometry& g, const Place& out)
      : d(g.d.taps(out.d)),
        h(g.h.taps(out.h)),
        w(g.w.taps(out.w)),
        d0(g.d.origin(out.d)),
        h0(g.h.origin(out.h)),
        w0(g.w.origin(out.w)) {}

  __device__ bool empty() const { return d.begin == d.end || h.begin == h.end || w.begin == w.end; }
  __device__ int first(const Geometry& g) const { return row(g, d.begin, h.begin) + w.begin * g.w.dilation; }

  template <class Body>
  __device__ void for_each(const Geometry& g, Body&& body) const {
#pragma unroll 1  // of few passes each: copies of the body would only cost registers
    for (int kd = d.begin; kd < d.end; ++kd) {
#pragma unroll 1
      for (int kh = h.begin; kh < h.end; ++kh) {
        const int start = row(g, kd, kh);
#pragma unroll 2
        for (int kw = w.begin; kw < w.end; ++kw) body(start + kw * g.w.dilation);
      }
    }
  }

 private:
  __device__ int row(const Geometry& g, int kd, int kh) const {
    return ((d0 + kd * g.d.dilation) * g.h.in + h0 + kh * g.h.dilation) * g.w.in + w0;
  }
};

// What the sum of a window is multiplied by.
__device__ float scale_of(const Geometry& g, Average average, int od, int oh, int ow) {
  const auto count = [&](const Axis& axis, int o) {
    if (average == Average::padded_cells) return axis.padded_taps(o);
    const Axis::Range taps = axis.taps(o);
    return taps.end - taps.begin;
  };
  if (average == Average::none) return 1;
  return 1 / static_cast<float>(std::max(1, count(g.d, od) * count(g.h, oh) * count(g.w, ow)));
}

// kernel<width>(grid, vectors)
template <class Kernel>
void launch_vectors(const Geometry& g, int cells, Kernel&& kernel) {
  const Index n = g.batch * cells * (g.channels / g.width);
  if (g.width == 4) kernel.template operator()<4>(strided_grid(n), n);
  else kernel.template operator()<1>(strided_grid(n), n);
}

template <int width>
__global__ void __launch_bounds__(kThreads)
    max_pool_forward_kernel(Geometry g, Index n, const float* x, float* y, std::int32_t* argmax) {
  LEC7_STRIDED(i, n) {
    const Place out = g.output(i);
    const Cells cells(g, out);
    const float* const image = x + out.image * g.cells_in() * g.channels + out.channel;
    Floats<width> largest;
    int winner[width];
    const int first = cells.empty() ? -1 : cells.first(g);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      largest.at[j] = -INFINITY;
      winner[j] = first;
    }
    cells.for_each(g, [&](int cell) {
      const Floats<width> v = load<width>(image + cell * g.channels);
#pragma unroll
      for (int j = 0; j < width; ++j) {
        // Of equals, and of NaN, the first stays.
        const bool number = largest.at[j] == largest.at[j];
        if (number && !(v.at[j] <= largest.at[j])) {
          largest.at[j] = v.at[j];
          winner[j] = cell;
        }
      }
    });
    store(y + i * width, largest);
    if constexpr (width == 4) {
      const auto bits = [&](int j) { return static_cast<unsigned>(winner[j]); };
      __stwb(reinterpret_cast<uint4*>(argmax) + i, make_uint4(bits(0), bits(1), bits(2), bits(3)));
    } else {
      argmax[i] = winner[0];
    }
  }
}

template <int width>
__global__ void __launch_bounds__(kThreads)
    sum_pool_forward_kernel(Geometry g, Average average, Index n, const float* x, float* y) {
  LEC7_STRIDED(i, n) {
    const Place out = g.output(i);
    const float* const image = x + out.image * g.cells_in() * g.channels + out.channel;
    Floats<width> sum{};
    Cells(g, out).for_each(g, [&](int cell) {
      const Floats<width> v = load<width>(image + cell * g.channels);
#pragma unroll
      for (int j = 0; j < width; ++j) sum.at[j] += v.at[j];
    });
    const float scale = scale_of(g, average, out.d, out.h, out.w);
#pragma unroll
    for (int j = 0; j < width; ++j) sum.at[j] *= scale;
    store(y + i * width, sum);
  }
}

__global__ void __launch_bounds__(kThreads) scales_kernel(Geometry g, Average average, float* scales) {
  LEC7_STRIDED(o, g.cells_out()) {
    const auto [lines, w] = g.by_out[1](static_cast<int>(o));
    const auto [d, h] = g.by_out[0](lines);
    scales[o] = scale_of(g, average, d, h, w);
  }
}

// scales may be null (1). Left alone, the compiler spills two registers of 34 to fit in one more block.
template <int width>
__global__ void __launch_bounds__(kThreads, 4)
    sum_pool_backward_kernel(Geometry g, Index n, const float* scales, const float* dy, float* dx) {
  LEC7_STRIDED(i, n) {
    const Place in = g.input(i);
    const float* const image = dy + in.image * g.cells_out() * g.channels + in.channel;
    const Axis::Range ds = g.d.outputs(in.d), hs = g.h.outputs(in.h), ws = g.w.outputs(in.w);
    Floats<width> sum{};
#pragma unroll 1
    for (int od = ds.begin; od < ds.end; ++od) {
      if (!g.d.sees(od, in.d)) continue;
#pragma unroll 1
      for (int oh = hs.begin; oh < hs.end; ++oh) {
        if (!g.h.sees(oh, in.h)) continue;
#pragma unroll 1
        for (int ow = ws.begin; ow < ws.end; ++ow) {
          if (!g.w.sees(ow, in.w)) continue;
          const int o = (od * g.h.out + oh) * g.w.out + ow;
          const float scale = scales == nullptr ? 1.0f : scales[o];
          const Floats<width> v = load<width>(image + o * g.channels);
#pragma unroll
          for (int j = 0; j < width; ++j) sum.at[j] += scale * v.at[j];
        }
      }
    }
    store(dx + i * width, sum);
  }
}

// ---- the maximum backward ----

constexpr int kChunk = 32;      // windows
constexpr int kBandCells = 96;  // of a warp at most: 12 KiB of shared memory
constexpr int kWarps = 4;       // of a block
constexpr int kAhead = 8;       // winners under way

struct Columns {
  MaxPoolBackwardShape s;
  Indices argmax;

  __host__ __device__ Index groups() const { return (s.batch * s.channels + kWarp - 1) / kWarp; }
  __host__ __device__ Index chunks() const { return (s.cells_out + kChunk - 1) / kChunk; }
};

// The lane's column of a group.
struct Column {
  Index image, channel;
  bool inside;

  __device__ Column(const MaxPoolBackwardShape& s, Index group) {
    const Index column = group * kWarp + threadIdx.x % kWarp;
    image = column / s.channels;
    channel = column - image * s.channels;
    inside = column < s.batch * s.channels;
  }
  // Of the window o or the cell o.
  __device__ Index at(const MaxPoolBackwardShape& s, Index cells, Index o) const {
    return (image * cells + o) * s.channels + channel;
  }
};

// spans (groups, chunks): the first and the last cell that a winner is at. Winners outside are none.
__global__ void __launch_bounds__(kWarps* kWarp) winner_spans_kernel(Columns c, Range* spans) {
  const Index task = static_cast<Index>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const Index group = task / c.chunks(), chunk = task - group * c.chunks();
  const Column column(c.s, group);
  const Index begin = chunk * kChunk, end = begin + kChunk < c.s.cells_out ? begin + kChunk : c.s.cells_out;
  Index first = c.s.cells_in, last = -1;
  if (column.inside) {
#pragma unroll 8
    for (Index o = begin; o < end; ++o) {
      const Index cell = index_at(c.argmax, column.at(c.s, c.s.cells_out, o));
      if (cell < 0 || cell >= c.s.cells_in) continue;
      first = cell < first ? cell : first;
      last = cell > last ? cell : last;
    }
  }
  first = -warp_reduce(-first, Larger{});
  last = warp_reduce(last, Larger{});
  if (threadIdx.x % kWarp == 0 && task < c.groups() * c.chunks()) spans[task] = {first, last};
}

__global__ void __launch_bounds__(kWarps* kWarp)
    max_pool_backward_kernel(Columns c, int band_cells, Index bands, const Range* spans, const float* dy, float* dx) {
  LEC7_DYNAMIC_SHARED(sums, float);
  const MaxPoolBackwardShape& s = c.s;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const Index task = static_cast<Index>(blockIdx.x) * kWarps + warp;
  const Index group = task / bands, begin = (task - group * bands) * band_cells;
  if (group >= c.groups()) return;
  const Index cells = begin + band_cells < s.cells_in ? band_cells : s.cells_in - begin;
  float* const sum = sums + warp * band_cells * kWarp + lane;  // its cells are kWarp apart
  for (int cell = 0; cell < cells; ++cell) sum[cell * kWarp] = 0;

  const Column column(s, group);
  const Index chunks = c.chunks();
  for (Index base = 0; base < chunks; base += kWarp) {
    bool meets = base + lane < chunks;
    if (meets && spans != nullptr) {
      const Range span = spans[group * chunks + base + lane];
      meets = span.begin < begin + cells && span.end >= begin;
    }
    for (unsigned left = __ballot_sync(kAllLanes, meets); left != 0; left &= left - 1) {
      const Index first = (base + __ffs(static_cast<int>(left)) - 1) * kChunk;
      if (!column.inside) continue;
#pragma unroll 1
      for (Index o = first; o < first + kChunk; o += kAhead) {
        Index cell[kAhead];
        float g[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          cell[j] = -1;
          if (o + j < s.cells_out) {
            const Index at = column.at(s, s.cells_out, o + j);
            cell[j] = index_at(c.argmax, at) - begin;
            g[j] = dy[at];
          }
        }
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          if (cell[j] >= 0 && cell[j] < cells) sum[cell[j] * kWarp] += g[j];
        }
      }
    }
  }
  if (!column.inside) return;
  for (int cell = 0; cell < cells; ++cell) dx[column.at(s, s.cells_in, begin + cell)] = sum[cell * kWarp];
}

}  // namespace

template <>
void max_pool_forward(const PoolShape& s, const float* x, float* y, std::int32_t* argmax) {
  const Geometry g(s, in_fours({x, y, argmax}));
  launch_vectors(g, g.cells_out(), [&]<int width>(const Grid& grid, Index n) {
    launch("max_pool_forward_kernel", max_pool_forward_kernel<width>, grid, g, n, x, y, argmax);
  });
}

// The binding has argmax checked before: what is outside is skipped here.
template <>
Index max_pool_backward(const MaxPoolBackwardShape& s, const float* dy, const Indices& argmax, float* dx) {
  if (s.batch * s.cells_in * s.channels == 0) return -1;
  const Columns columns{s, argmax};
  const Index bands = ceil_div(s.cells_in, kBandCells), chunks = columns.chunks();
  const int band_cells = static_cast<int>(ceil_div(s.cells_in, bands));
  const auto blocks = [](Index warps) { return static_cast<unsigned>(ceil_div(warps, kWarps)); };
  Buffer<Range> spans(bands > 1 ? columns.groups() * chunks : 0);
  if (bands > 1) {
    launch("winner_spans_kernel", winner_spans_kernel, {blocks(columns.groups() * chunks), kWarps * kWarp}, columns,
           spans.data());
  }
  const std::size_t shared = sizeof(float) * kWarps * kWarp * static_cast<std::size_t>(band_cells);
  launch("max_pool_backward_kernel", max_pool_backward_kernel,
         {blocks(columns.groups() * bands), kWarps * kWarp, shared}, columns, band_cells, bands, spans.data(), dy, dx);
  return -1;
}

template <>
void sum_pool_forward(const PoolShape& s, Average average, const float* x, float* y) {
  const Geometry g(s, in_fours({x, y}));
  launch_vectors(g, g.cells_out(), [&]<int width>(const Grid& grid, Index n) {
    launch("sum_pool_forward_kernel", sum_pool_forward_kernel<width>, grid, g, average, n, x, y);
  });
}

template <>
void sum_pool_backward(const PoolShape& s, Average average, const float* dy, float* dx) {
  const Geometry g(s, in_fours({dy, dx}));
  const bool scaled = average != Average::none;
  Buffer<float> scales(scaled ? g.cells_out() : 0);
  if (scaled) launch("scales_kernel", scales_kernel, strided_grid(g.cells_out()), g, average, scales.data());
  launch_vectors(g, g.cells_in(), [&]<int width>(const Grid& grid, Index n) {
    launch("sum_pool_backward_kernel", sum_pool_backward_kernel<width>, grid, g, n, scales.data(), dy, dx);
  });
}

}  // namespace lec7::cuda
