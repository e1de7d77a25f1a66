// Depthwise convolution: a group is one channel, with one filter or a few. Bound by memory: 8 bytes for 2 taps FLOPs a
// number of y, where the reads of a patch's other taps come from L1; in dweight 8 bytes for each number of dy.
//
// y and dx are the same kernel, as in conv.cu: a thread sums kStrip cells that are side by side, four channels of each
// where they are 16 aligned bytes, with each number of the filters read once. In dweight a thread sums the products of
// kTaps taps over its cells of a part of y; the threads of a block that share a channel are added in shared memory, the
// parts by a second kernel.
#include <algorithm>

#include "conv.h"
#include "patches.h"
#include "tile.h"

namespace lec7::cuda {
namespace {

constexpr int kStrip = 4;
constexpr int kTaps = 9;
constexpr Index kBlocks = 1024;    // fill a GPU
constexpr Index kLeastCells = 16;  // of a thread of dweight

// The threads of a block: 2^across_bits neighbours take the channels, so that no more than half of them idle.
struct Lanes {
  int across_bits;

  explicit Lanes(Index channels) : across_bits(0) {
    while (across_bits < 5 && (1 << across_bits) < channels) ++across_bits;
  }
  constexpr int across() const { return 1 << across_bits; }
  constexpr int down() const { return kThreads >> across_bits; }
  __device__ int x() const { return static_cast<int>(threadIdx.x) & (across() - 1); }
  __device__ int y() const { return static_cast<int>(threadIdx.x) >> across_bits; }
};

template <int V>
struct Numbers {
  float v[V];
};
template <int V>
__device__ Numbers<V> load(const float* at) {
  Numbers<V> n;
  if constexpr (V == 4) {
    const float4 quad = __ldg(reinterpret_cast<const float4*>(at));
    n.v[0] = quad.x, n.v[1] = quad.y, n.v[2] = quad.z, n.v[3] = quad.w;
  } else {
    n.v[0] = __ldg(at);
  }
  return n;
}

// ---- y and dx ----

struct Depthwise {
  const float *x, *weight;
  float* y;
  int groups, in, out;  // channels of a group of x and of y: one of them is 1
  Finish<float> finish;
};

template <int V>
__global__ void __launch_bounds__(kThreads)
    depthwise_kernel(const __grid_constant__ Passes passes, Depthwise o, Lanes lanes, int across) {
  const Pass& pass = passes.pass[blockIdx.y];
  const int block = static_cast<int>(blockIdx.x);
  const int f = (block % across * lanes.across() + lanes.x()) * V, channels = o.groups * o.out;
  const Index strip = static_cast<Index>(block / across) * lanes.down() + lanes.y();
  if (f >= channels || strip >= pass.strips(kStrip)) return;
  const int filters = o.groups * o.in * o.out, x_channels = o.groups * o.in, x_channel = f / o.out * o.in;
  const Cell first = pass.strip(static_cast<int>(strip), kStrip);

  float sum[kStrip][V] = {};
  for (int t = 0; t < pass.taps(); ++t) {
    const Cell tap = pass.tap(t);
    const float* const weight = o.weight + static_cast<Index>(pass.stored(t)) * filters + f * o.in;
    for (int j = 0; j < o.in; ++j) {
      const Numbers<V> factor = load<V>(weight + j);
#pragma unroll
      for (int s = 0; s < kStrip; ++s) {
        const int cell = pass.input(pass.origin({first.n, first.d, first.h, first.w + s}), tap);
        if (cell < 0) continue;
        const Numbers<V> x = load<V>(o.x + static_cast<Index>(cell) * x_channels + x_channel + j);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[s][v] = fmaf(x.v[v], factor.v[v], sum[s][v]);
      }
    }
  }
#pragma unroll
  for (int s = 0; s < kStrip; ++s) {
    if (first.w + s >= pass.width()) break;
    float* const y = o.y + static_cast<Index>(pass.cell_of_y({first.n, first.d, first.h, first.w + s})) * channels + f;
#pragma unroll
    for (int v = 0; v < V; ++v) sum[s][v] = o.finish(sum[s][v], f + v);
    if constexpr (V == 4) {
      *reinterpret_cast<float4*>(y) = make_float4(sum[s][0], sum[s][1], sum[s][2], sum[s][3]);
    } else {
      y[0] = sum[s][0];
    }
  }
}

template <int V>
void run(const std::vector<Pass>& passes, const Depthwise& o) {
  const Index vectors = ceil_div(Index{o.groups} * o.out, V);
  const Lanes lanes(vectors);
  const Index across = ceil_div(vectors, lanes.across());
  Index strips = 0;
  for (const Pass& pass : passes) strips = std::max<Index>(strips, pass.strips(kStrip));
  for_passes(passes, [&](const Passes& now, int count) {
    const dim3 grid(static_cast<unsigned>(across * ceil_div(strips, lanes.down())), static_cast<unsigned>(count));
    launch("depthwise_kernel", depthwise_kernel<V>, {grid, kThreads}, now, o, lanes, static_cast<int>(across));
  });
}

void convolve(const std::vector<Pass>& passes, const Depthwise& o) {
  const bool vectors =
      o.in == 1 && o.out == 1 && is_vector(o.x, o.groups) && is_vector(o.weight, o.groups) && is_vector(o.y, o.groups);
  return vectors ? run<4>(passes, o) : run<1>(passes, o);
}

// ---- dweight ----

__global__ void __launch_bounds__(kThreads, 4)
    depthwise_weight_gradient_kernel(const __grid_constant__ Pass pass, const float* x, const float* dz, int channels,
                                     int multiplier, Lanes lanes, Index across, int tap_groups, int chunk,
                                     float* parts) {
  LEC7_SHARED(taps, Cell[kTaps]);
  LEC7_SHARED(sums, float[kThreads]);
  Index block = blockIdx.x;
  const int filters = channels * multiplier, first_tap = static_cast<int>(block % tap_groups) * kTaps;
  block /= tap_groups;
  const int f = static_cast<int>(block % across) * lanes.across() + lanes.x();
  const Index part = block / across;
  const int thread = static_cast<int>(threadIdx.x), rows = pass.rows();
  if (thread < kTaps && first_tap + thread < pass.taps()) taps[thread] = pass.tap(first_tap + thread);
  __syncthreads();

  float sum[kTaps] = {};
  if (f < filters) {
    const Index end = part * chunk + chunk < rows ? part * chunk + chunk : rows;
    for (Index row = part * chunk + lanes.y(); row < end; row += lanes.down()) {
      const Cell origin = pass.origin(pass.output(static_cast<int>(row)));
      const float factor = __ldg(dz + row * filters + f);
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        if (first_tap + t >= pass.taps()) break;
        const int cell = pass.input(origin, taps[t]);
        if (cell >= 0) sum[t] = fmaf(__ldg(x + static_cast<Index>(cell) * channels + f / multiplier), factor, sum[t]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    sums[thread] = sum[t];
    for (int half = kThreads / 2; half >= lanes.across(); half /= 2) {
      __syncthreads();
      if (thread < half) sums[thread] += sums[thread + half];
    }
    if (thread < lanes.across() && f < filters && first_tap + t < pass.taps()) {
      parts[(part * pass.taps() + first_tap + t) * filters + f] = sums[thread];
    }
    __syncthreads();
  }
}

Depthwise operands(const ConvShape& s, const float* x, const float* weight, float* y, const Finish<float>& finish) {
  return {x, weight, y, static_cast<int>(s.groups), 1, static_cast<int>(s.group_filters()), finish};
}

}  // namespace

void depthwise_forward(const ConvShape& s, const float* x, const float* weight, const float* bias, float* y) {
  convolve({forward_pass(s)}, operands(s, x, weight, y, {bias, s.activation}));
}

void depthwise_input_gradient(const ConvShape& s, const float* dz, const float* weight, const float* bias, float* dx) {
  Depthwise o = operands(s, dz, weight, dx, {bias, Activation::none});
  std::swap(o.in, o.out);
  convolve(input_gradient_passes(s), o);
}

void depthwise_weight_gradient(const ConvShape& s, const float* dz, const float* x, float* dweight) {
  const Pass pass = forward_pass(s);
  const Lanes lanes(s.filters);
  const Index across = ceil_div(s.filters, lanes.across()), groups = ceil_div(s.taps(), kTaps);
  const Index most = std::max<Index>(1, pass.rows() / (lanes.down() * kLeastCells));
  const Index chunk =
      std::max<Index>(1, ceil_div(pass.rows(), std::clamp<Index>(kBlocks / (across * groups), 1, most)));
  const Index parts = std::max<Index>(1, ceil_div(pass.rows(), chunk)), size = s.taps() * s.filters;
  Buffer<float> partial(parts > 1 ? parts * size : 0);
  launch("depthwise_weight_gradient_kernel", depthwise_weight_gradient_kernel,
         {static_cast<unsigned>(groups * across * parts), kThreads}, pass, x, dz, s.channels, s.group_filters(), lanes,
         across, groups, chunk, parts > 1 ? partial.data() : dweight);
  if (parts > 1) sum_parts(partial.data(), parts, 1, size, dweight, size, Finish<float>{nullptr, Activation::none});
}

}  // namespace lec7::cuda
