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

#include "elementwise.h"
#include "reduce.h"
#include "values.h"

namespace lec7::cuda {
namespace {

struct Geometry {
  Window d, h, w;
  Index batch, channels;

  explicit Geometry(const PoolShape& s)
      : d(s.windows[0]), h(s.windows[1]), w(s.windows[2]), batch(s.x.batch), channels(s.x.channels) {}
  __host__ __device__ Index cells_in() const { return d.in * h.in * w.in; }
  __host__ __device__ Index cells_out() const { return d.out * h.out * w.out; }
};

// The image, the cell and the first channel of vector i of an array (batch, depth, height, width, channels).
struct Place {
  Index image, d, h, w, channel;

  __device__ Place(Index i, Index height, Index depth, Index width, Index vectors, Index length) {
    const auto take = [&](Index size) {
      const Index quotient = i / size, rest = i - quotient * size;
      i = quotient;
      return rest;
    };
    channel = take(vectors) * length;
    w = take(width);
    h = take(height);
    d = take(depth);
    image = i;
  }
};

// The cells of x under one window.
struct Cells {
  Range d, h, w;  // taps
  Index d0, h0, w0;

  __device__ Cells(const Geometry& g, const Place& out)
      : d(g.d.taps(out.d)),
        h(g.h.taps(out.h)),
        w(g.w.taps(out.w)),
        d0(g.d.origin(out.d)),
        h0(g.h.origin(out.h)),
        w0(g.w.origin(out.w)) {}

  __device__ bool empty() const { return d.begin == d.end || h.begin == h.end || w.begin == w.end; }
  __device__ Index first(const Geometry& g) const { return row(g, d.begin, h.begin) + w.begin * g.w.dilation; }

  template <class Body>
  __device__ void for_each(const Geometry& g, Body&& body) const {
    for (Index kd = d.begin; kd < d.end; ++kd) {
      for (Index kh = h.begin; kh < h.end; ++kh) {
        const Index start = row(g, kd, kh);
        for (Index kw = w.begin; kw < w.end; ++kw) body(start + kw * g.w.dilation);
      }
    }
  }

 private:
  __device__ Index row(const Geometry& g, Index kd, Index kh) const {
    return ((d0 + kd * g.d.dilation) * g.h.in + h0 + kh * g.h.dilation) * g.w.in + w0;
  }
};

// What the sum of a window is multiplied by.
__device__ float scale_of(const Geometry& g, Average average, Index od, Index oh, Index ow) {
  const auto count = [&](Window w, Index o) {
    if (average == Average::padded_cells) {
      w.in += w.pad_before + w.pad_after;
      w.pad_before = 0;
    }
    const Range taps = w.taps(o);
    return taps.end - taps.begin;
  };
  if (average == Average::none) return 1;
  const Index cells = count(g.d, od) * count(g.h, oh) * count(g.w, ow);
  return 1 / static_cast<float>(cells < 1 ? 1 : cells);
}

// width channels a thread: body(thread's vector of y or x).
template <class Kernel>
void launch_vectors(const char* name, Kernel&& kernel, const Geometry& g, Index cells, bool fours) {
  const Index n = g.batch * cells * g.channels;
  if (fours && g.channels % 4 == 0) kernel.template operator()<4>(name, strided_grid(n / 4), n / 4);
  else kernel.template operator()<1>(name, strided_grid(n), n);
}

template <int width>
__global__ void __launch_bounds__(kThreads)
    max_pool_forward_kernel(Geometry g, Index n, const float* x, float* y, std::int32_t* argmax) {
  LEC7_STRIDED(i, n) {
    const Place out(i, g.h.out, g.d.out, g.w.out, g.channels / width, width);
    const Cells cells(g, out);
    const float* const image = x + out.image * g.cells_in() * g.channels + out.channel;
    Floats<width> largest;
    int winner[width];
    const int first = static_cast<int>(cells.empty() ? -1 : cells.first(g));
#pragma unroll
    for (int j = 0; j < width; ++j) {
      largest.at[j] = -INFINITY;
      winner[j] = first;
    }
    cells.for_each(g, [&](Index cell) {
      const Floats<width> v = load<width>(image + cell * g.channels);
#pragma unroll
      for (int j = 0; j < width; ++j) {
        // Of equals, and of NaN, the first stays.
        const bool number = largest.at[j] == largest.at[j];
        if (number && !(v.at[j] <= largest.at[j])) {
          largest.at[j] = v.at[j];
          winner[j] = static_cast<int>(cell);
        }
      }
    });
    store(y + i * width, largest);
#pragma unroll
    for (int j = 0; j < width; ++j) argmax[i * width + j] = winner[j];
  }
}

template <int width>
__global__ void __launch_bounds__(kThreads)
    sum_pool_forward_kernel(Geometry g, Average average, Index n, const float* x, float* y) {
  LEC7_STRIDED(i, n) {
    const Place out(i, g.h.out, g.d.out, g.w.out, g.channels / width, width);
    const float* const image = x + out.image * g.cells_in() * g.channels + out.channel;
    Floats<width> sum{};
    Cells(g, out).for_each(g, [&](Index cell) {
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
    const Place out(o, g.h.out, g.d.out, g.w.out, 1, 1);
    scales[o] = scale_of(g, average, out.d, out.h, out.w);
  }
}

// scales may be null (1).
template <int width>
__global__ void __launch_bounds__(kThreads)
    sum_pool_backward_kernel(Geometry g, Index n, const float* scales, const float* dy, float* dx) {
  LEC7_STRIDED(i, n) {
    const Place in(i, g.h.in, g.d.in, g.w.in, g.channels / width, width);
    const float* const image = dy + in.image * g.cells_out() * g.channels + in.channel;
    const Range ds = g.d.outputs(in.d), hs = g.h.outputs(in.h), ws = g.w.outputs(in.w);
    Floats<width> sum{};
    for (Index od = ds.begin; od < ds.end; ++od) {
      if (!g.d.sees(od, in.d)) continue;
      for (Index oh = hs.begin; oh < hs.end; ++oh) {
        if (!g.h.sees(oh, in.h)) continue;
        for (Index ow = ws.begin; ow < ws.end; ++ow) {
          if (!g.w.sees(ow, in.w)) continue;
          const Index o = (od * g.h.out + oh) * g.w.out + ow;
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
  const Geometry g(s);
  const auto run = [&]<int width>(const char* name, const Grid& grid, Index n) {
    launch(name, max_pool_forward_kernel<width>, grid, g, n, x, y, argmax);
  };
  launch_vectors("max_pool_forward_kernel", run, g, g.cells_out(), in_fours({x, y}));
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
  const Geometry g(s);
  const auto run = [&]<int width>(const char* name, const Grid& grid, Index n) {
    launch(name, sum_pool_forward_kernel<width>, grid, g, average, n, x, y);
  };
  launch_vectors("sum_pool_forward_kernel", run, g, g.cells_out(), in_fours({x, y}));
}

template <>
void sum_pool_backward(const PoolShape& s, Average average, const float* dy, float* dx) {
  const Geometry g(s);
  const bool scaled = average != Average::none;
  Buffer<float> scales(scaled ? g.cells_out() : 0);
  if (scaled) launch("scales_kernel", scales_kernel, strided_grid(g.cells_out()), g, average, scales.data());
  const auto run = [&]<int width>(const char* name, const Grid& grid, Index n) {
    launch(name, sum_pool_backward_kernel<width>, grid, g, n, scales.data(), dy, dx);
  };
  launch_vectors("sum_pool_backward_kernel", run, g, g.cells_in(), in_fours({dy, dx}));
}

}  // namespace lec7::cuda
