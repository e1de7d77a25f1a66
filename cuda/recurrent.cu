// Recurrent sequences. x Wx + b of all steps is one matrix product, and so are the gradients of the weights, of x and
// the bias; what is left is the recurrence, in one of two ways:
//
//   persistent  one launch for the whole sequence. A block owns some hidden units, with all their gates, for some rows
//               of the batch, and keeps its columns of Wh (backward: its rows) in shared memory from the first step to
//               the last; all blocks meet once a step, where they exchange h (backward: dz) through L2. A step is
//               2 N H G H FLOPs, and each block reads h of its rows, 4 H bytes a row (dz: 4 G H). Few rows take the
//               time of the barrier and of one way through L2
//   steps       where Wh does not fit, where rows are many, or for a single step: a matrix product and an elementwise
//               kernel for each, bound by the reading of Wh, 4 G H H bytes, or by arithmetic
//
// The order of sums is the same from run to run. It depends on the sizes and, in the persistent kernels, on the number
// of the GPU's multiprocessors.
//
// Backward hands dh on in two parts: through Wh, a product with dz, and directly (the GRU's z). Rows that are not alive
// at a step have dz = 0 and keep the direct part, so that a row's last step finds dh_last there, and dh0 is what is
// left at the end, whatever the lengths are.
#include "lec7/recurrent.h"

#include <algorithm>

#include "activation.h"
#include "arrays.h"
#include "async_copy.h"
#include "gemm.h"
#include "grid.h"
#include "half.h"
#include "kernel.h"
#include "lengths.h"
#include "mma.h"

namespace lec7::cuda {
namespace {

constexpr Index kMostRows = 256;      // of a batch, up to which a step is bound by latency
constexpr int kTileBytes = 16 << 10;  // of h or dz, in each of two buffers
constexpr int kTileNumbers = kTileBytes / static_cast<int>(sizeof(float));

static_assert(2 * kTileBytes >= kThreads * 4 * 4 * static_cast<int>(sizeof(float)), "a thread has 4 x 4 sums");

// ---- where rows begin and end ----

// h before the first step and after each one.
template <class T>
struct States {
  const T *h0, *hs;
  const Index* lengths;
  bool reverse;
};
// What a kernel only copies: one kernel for both types of 16 bits.
template <class T>
using Stored = std::conditional_t<is_half<T>, std::uint16_t, T>;
template <class T>
Stored<T>* stored(T* x) {
  return reinterpret_cast<Stored<T>*>(x);
}
template <class T>
const Stored<T>* stored(const T* x) {
  return reinterpret_cast<const Stored<T>*>(x);
}
template <class Arrays>
auto states_of(const Arrays& a) {
  return States{a.h0, static_cast<decltype(a.h0)>(a.hs), a.lengths, a.reverse};
}

template <class Arrays>
__device__ Index time_of(const RecurrentShape& s, const Arrays& a, Index step) {
  return a.reverse ? s.steps - 1 - step : step;
}
template <class Arrays>
__device__ Index length_of(const RecurrentShape& s, const Arrays& a, Index n) {
  return a.lengths == nullptr ? s.steps : a.lengths[n];
}
// Is h0 the state of row n before time t? (Also where the row has not begun.)
template <class Arrays>
__device__ bool begins(const RecurrentShape& s, const Arrays& a, Index t, Index n) {
  return a.reverse ? t + 1 >= length_of(s, a, n) : t == 0;
}
// The row of a (T, N, H) array that came before (t, n).
template <class Arrays>
__device__ Index row_before(const RecurrentShape& s, const Arrays& a, Index t, Index n) {
  return (a.reverse ? t + 1 : t - 1) * s.batch + n;
}
// h of row n before time t.
template <class Arrays>
__device__ auto state_before(const RecurrentShape& s, const Arrays& a, Index t, Index n) {
  using Pointer = decltype(a.h0);
  return begins(s, a, t, n) ? a.h0 + n * s.hidden : static_cast<Pointer>(a.hs) + row_before(s, a, t, n) * s.hidden;
}

// ---- one unit of one row at one step ----

// The sums before the nonlinearities, x Wx + b + h Wh:
//   RNN   in x
//   LSTM  i, f, o, g
//   GRU   r, z; and apart, since r comes between them, h Wh_n and x Wx_n + b_n
template <int G, class T>
__device__ void unit_forward(const RecurrentShape& s, const RecurrentForward<T>& a, Index t, Index n, Index j,
                             float4 sums, float h_before) {
  const Index H = s.hidden, row = t * s.batch + n, length = length_of(s, a, n);
  const bool lives = t < length;
  T* const gates = a.gates + row * G * H + j;
  const auto store = [](T& to, float x) { to = from_float<T>(x); };
  float h, c = 0;
  if constexpr (G == 1) {
    h = activate(s.cell == Cell::rnn_relu ? Activation::relu : Activation::tanh, sums.x);
  } else if constexpr (G == 4) {
    const float in = sigmoid(sums.x), forget = sigmoid(sums.y), out = sigmoid(sums.z), g = tanhf(sums.w);
    const T& c_before = begins(s, a, t, n) ? a.c0[n * H + j] : a.cells[row_before(s, a, t, n) * H + j];
    c = forget * to_float(c_before) + in * g;
    h = out * tanhf(c);
    store(gates[0], in), store(gates[H], forget), store(gates[2 * H], out), store(gates[3 * H], g);
    store(a.cells[row * H + j], c);
  } else {
    const float r = sigmoid(sums.x), keep = sigmoid(sums.y), candidate = tanhf(sums.w + r * sums.z);
    h = (1 - keep) * candidate + keep * h_before;
    store(gates[0], r), store(gates[H], keep), store(gates[2 * H], candidate);
    store(a.cells[row * H + j], sums.z);
  }
  store(a.hs[row * H + j], lives ? h : 0);
  const bool ends = lives && (a.reverse ? t == 0 : t == length - 1);
  const bool never = length == 0 && (a.reverse ? t == 0 : t == s.steps - 1);
  if (a.h_last != nullptr && (ends || never)) a.h_last[n * H + j] = ends ? from_float<T>(h) : a.h0[n * H + j];
  if (G == 4 && (ends || never)) a.c_last[n * H + j] = ends ? from_float<T>(c) : a.c0[n * H + j];
}

// What the steps of backward share. dz as Wx sees it and as Wh sees it (the same but for the GRU), (T, N, G H); the
// direct part of dh and dc, (N, H); h before each step, (T, N, H).
template <class T>
struct Carried {
  T *dz_x, *dz_h;
  float *dh, *dc;
  const T* before;
};

// `dh`: what came through Wh.
template <int G, class T>
__device__ void unit_backward(const RecurrentShape& s, const RecurrentBackward<T>& a, const Carried<T>& to, Index t,
                              Index n, Index j, float dh) {
  const Index H = s.hidden, row = t * s.batch + n, at = n * H + j;
  T* const dz = to.dz_x + row * G * H + j;
  T* const dz_h = to.dz_h + row * G * H + j;
  const auto store = [](T& to, float x) { to = from_float<T>(x); };
  dh += to.dh[at];
  if (t >= length_of(s, a, n)) {
    to.dh[at] = dh;
#pragma unroll
    for (int g = 0; g < G; ++g) dz[g * H] = dz_h[g * H] = T{};
    return;
  }
  if (a.dhs != nullptr) dh += to_float(a.dhs[row * H + j]);
  float direct = 0;
  if constexpr (G == 1) {
    const Activation activation = s.cell == Cell::rnn_relu ? Activation::relu : Activation::tanh;
    store(dz[0], dh * activation_slope(activation, to_float(a.hs[row * H + j])));
  } else if constexpr (G == 4) {
    const T* const gates = a.gates + row * G * H + j;
    const float in = to_float(gates[0]), forget = to_float(gates[H]);
    const float out = to_float(gates[2 * H]), g = to_float(gates[3 * H]);
    const float c_before = to_float(begins(s, a, t, n) ? a.c0[at] : a.cells[row_before(s, a, t, n) * H + j]);
    const float tanh_c = tanhf(to_float(a.cells[row * H + j]));
    const float dc = to.dc[at] + dh * out * (1 - tanh_c * tanh_c);
    store(dz[0], dc * g * in * (1 - in));
    store(dz[H], dc * c_before * forget * (1 - forget));
    store(dz[2 * H], dh * tanh_c * out * (1 - out));
    store(dz[3 * H], dc * in * (1 - g * g));
    to.dc[at] = dc * forget;
  } else {
    const T* const gates = a.gates + row * G * H + j;
    const float r = to_float(gates[0]), keep = to_float(gates[H]), candidate = to_float(gates[2 * H]);
    const float dz_n = dh * (1 - keep) * (1 - candidate * candidate);
    const float dz_r = dz_n * to_float(a.cells[row * H + j]) * r * (1 - r);
    const float dz_z = dh * (to_float(to.before[row * H + j]) - candidate) * keep * (1 - keep);
    dz[0] = dz_h[0] = from_float<T>(dz_r);
    dz[H] = dz_h[H] = from_float<T>(dz_z);
    store(dz[2 * H], dz_n);
    store(dz_h[2 * H], dz_n * r);
    direct = dh * keep;
  }
  to.dh[at] = direct;
}

// ---- step by step ----

template <int G, class T>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_step_forward_kernel(RecurrentShape s, RecurrentForward<T> a, Index t, const float* inputs,
                                  const T* h_before, const float* products) {
  const Index H = s.hidden;
#pragma unroll 1
  LEC7_STRIDED(i, s.batch * H) {
    const Index n = i / H, j = i - n * H;
    const float* const x = inputs + (t * s.batch + n) * G * H + j;
    const float* const h = products + n * G * H + j;
    float4 sums = make_float4(x[0] + h[0], 0, 0, 0);
    if constexpr (G > 1) sums.y = x[H] + h[H];
    if constexpr (G == 3) sums.z = h[2 * H], sums.w = x[2 * H];
    if constexpr (G == 4) sums.z = x[2 * H] + h[2 * H], sums.w = x[3 * H] + h[3 * H];
    unit_forward<G>(s, a, t, n, j, sums, to_float(h_before[i]));
  }
}

// products: null before the first step.
template <int G, class T>
__global__ void __launch_bounds__(kThreads)
    recurrent_step_backward_kernel(RecurrentShape s, RecurrentBackward<T> a, Carried<T> to, Index t,
                                   const float* products) {
#pragma unroll 1
  LEC7_STRIDED(i, s.batch * s.hidden) {
    const Index n = i / s.hidden;
    unit_backward<G>(s, a, to, t, n, i - n * s.hidden, products == nullptr ? 0 : products[i]);
  }
}

// h before each of the steps [t, t + count), (count, N, H).
template <class T>
__global__ void __launch_bounds__(kThreads)
    recurrent_before_kernel(RecurrentShape s, States<T> states, Index t, Index count, T* out) {
#pragma unroll 1
  LEC7_STRIDED(i, count * s.batch * s.hidden) {
    const Index row = i / s.hidden;
    out[i] = state_before(s, states, t + row / s.batch, row % s.batch)[i - row * s.hidden];
  }
}

// x without what stands past a row's end: it may be anything, NaN too; its dz is 0, but 0 times NaN is not.
template <class T>
__global__ void __launch_bounds__(kThreads)
    recurrent_living_kernel(RecurrentShape s, const Index* lengths, const T* x, T* out) {
#pragma unroll 1
  LEC7_STRIDED(i, s.steps * s.batch * s.inputs) {
    const Index row = i / s.inputs;
    out[i] = row / s.batch < lengths[row % s.batch] ? x[i] : T{};
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    recurrent_first_kernel(Index n, const float* through, const float* direct, T* dh0) {
  LEC7_STRIDED(i, n) dh0[i] = from_float<T>(through[i] + direct[i]);
}

// ---- persistent, in float32 ----

// How blocks share the work: block b has `units` units and `rows` rows, which it takes in chunks of 4 * row_groups. A
// thread multiplies 4 rows with one quad of columns (4 gates of a unit, or 4 units) over one slice of the depth.
struct Share {
  int depth;  // of the product
  int units, unit_blocks, rows, row_blocks;
  int quads, row_groups, slices;
  int tile;      // columns of h or dz that are in shared memory at a time
  bool aligned;  // rows of h begin at 16 bytes

  constexpr int blocks() const { return unit_blocks * row_blocks; }
  constexpr int chunk() const { return 4 * row_groups; }
  constexpr int padded_depth() const { return (depth + 3) / 4 * 4; }
  constexpr std::size_t bytes() const {
    return static_cast<std::size_t>(padded_depth()) * static_cast<std::size_t>(quads) * sizeof(float4) + 2 * kTileBytes;
  }
};

// A block's part of the work and its shared memory.
struct Block {
  const Share& share;
  Index unit, row;  // the first ones
  int units, rows;
  float4* weights;  // (padded depth, quads)
  float* tiles;
  float4* sums;  // (slices, chunk, quads), where the tiles were

  __device__ Block(const Share& p, const RecurrentShape& s, float4* shared)
      : share(p),
        unit(static_cast<Index>(blockIdx.x % p.unit_blocks) * p.units),
        row(static_cast<Index>(blockIdx.x / p.unit_blocks) * p.rows),
        units(static_cast<int>(s.hidden - unit < p.units ? s.hidden - unit : p.units)),
        rows(static_cast<int>(s.batch - row < p.rows ? s.batch - row : p.rows)),
        weights(shared),
        tiles(reinterpret_cast<float*>(shared + static_cast<Index>(p.padded_depth()) * p.quads)),
        sums(reinterpret_cast<float4*>(tiles)) {}

  // weights[k][quad][c] = column(k, quad, c), with zeros past the depth. Neighbouring threads take what stands side by
  // side in memory: quads, or the depth.
  template <class Column>
  __device__ void load_weights(bool along_depth, Column&& column) const {
    const int deep = share.padded_depth(), count = deep * share.quads;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      const int quad = along_depth ? i / deep : i % share.quads, k = along_depth ? i % deep : i / share.quads;
      float4 value = make_float4(0, 0, 0, 0);
      if (k < share.depth) {
        value = make_float4(column(k, quad, 0), column(k, quad, 1), column(k, quad, 2), column(k, quad, 3));
      }
      weights[k * share.quads + quad] = value;
    }
  }

  // Begins to copy columns [k0, k0 + tile) of the rows of a chunk.
  template <class RowOf>
  __device__ void copy(int count, int k0, RowOf&& row_of, float* tile) const {
    const int across = share.tile / 4;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < share.chunk() * across; i += kThreads) {
      const int r = i / across, column = 4 * (i - r * across), left = r < count ? share.depth - k0 - column : 0;
      const float* const from = left > 0 ? row_of(r) + k0 + column : row_of(0);
      float* const to = tile + r * (share.tile + 4) + column;
      if (share.aligned) {
        copy_async16(to, from, left > 0 ? 16 : 0);
      } else {
        for (int l = 0; l < 4; ++l) copy_async4(to + l, l < left ? from + l : from, l < left);
      }
    }
    commit_copies();
  }

  // first(r, quad) plus the rows of a chunk, row_of(r) for r < count, times the weights: read by products() or
  // product().
  template <class RowOf, class First>
  __device__ void multiply(int count, RowOf&& row_of, First&& first) const {
    const Share& p = share;
    const int t = static_cast<int>(threadIdx.x), quad = t % p.quads, group = t / p.quads % p.row_groups;
    const int slice = t / (p.quads * p.row_groups), stride = p.tile + 4;
    __syncthreads();  // the sums of the chunk before were read
    copy(count, 0, row_of, tiles);
    float4 sum[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (slice == 0 && group + i * p.row_groups < count) sum[i] = first(group + i * p.row_groups, quad);
    }
    for (int k0 = 0, now = 0; k0 < p.depth; k0 += p.tile, now ^= 1) {
      float* const tile = tiles + now * kTileNumbers;
      if (k0 + p.tile < p.depth) {
        copy(count, k0 + p.tile, row_of, tiles + (now ^ 1) * kTileNumbers);
        wait_for_copies<1>();
      } else {
        wait_for_copies<0>();
      }
      __syncthreads();
      const int end = p.padded_depth() - k0 < p.tile ? p.padded_depth() - k0 : p.tile;
      if (slice < p.slices) {
        for (int k = 4 * slice; k < end; k += 4 * p.slices) {
          float4 w[4];
#pragma unroll
          for (int l = 0; l < 4; ++l) w[l] = weights[(k0 + k + l) * p.quads + quad];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float4 quad_of_row = *reinterpret_cast<const float4*>(tile + (group + i * p.row_groups) * stride + k);
            const float x[4] = {quad_of_row.x, quad_of_row.y, quad_of_row.z, quad_of_row.w};
#pragma unroll
            for (int l = 0; l < 4; ++l) {
              sum[i].x += x[l] * w[l].x;
              sum[i].y += x[l] * w[l].y;
              sum[i].z += x[l] * w[l].z;
              sum[i].w += x[l] * w[l].w;
            }
          }
        }
      }
      __syncthreads();
    }
    if (slice < p.slices) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[(slice * p.chunk() + group + i * p.row_groups) * p.quads + quad] = sum[i];
    }
    __syncthreads();
  }

  // Row r of the chunk times a quad of columns, or one of them.
  __device__ float4 products(int r, int quad) const {
    float4 sum = sums[r * share.quads + quad];
    for (int slice = 1; slice < share.slices; ++slice) {
      const float4 more = sums[(slice * share.chunk() + r) * share.quads + quad];
      sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
    }
    return sum;
  }
  __device__ float product(int r, int column) const {
    const float* const first = reinterpret_cast<const float*>(sums + r * share.quads) + column;
    float sum = first[0];
    for (int slice = 1; slice < share.slices; ++slice) sum += first[4 * slice * share.chunk() * share.quads];
    return sum;
  }

  // For each chunk of rows: body(first row, how many).
  template <class Body>
  __device__ void for_chunks(Body&& body) const {
    for (int r = 0; r < rows; r += share.chunk()) body(row + r, rows - r < share.chunk() ? rows - r : share.chunk());
  }
  // body(r, j) for the rows of a chunk and the block's units: always the same thread for the same two.
  template <class Body>
  __device__ void for_units(int count, Body&& body) const {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count * units; i += kThreads) body(i / units, i % units);
  }
};

template <int G>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_forward_kernel(RecurrentShape s, RecurrentForward<float> a, const float* x_products, Share share) {
  LEC7_DYNAMIC_SHARED(shared, float4);
  const Block block(share, s, shared);
  const Index H = s.hidden;
  block.load_weights(false, [&](int k, int quad, int c) {
    const int unit = G == 1 ? 4 * quad + c : quad, gate = G == 1 ? 0 : c;
    return unit < block.units && gate < G ? a.weight_h[k * G * H + gate * H + block.unit + unit] : 0.0f;
  });
  for (Index step = 0; step < s.steps; ++step) {
    const Index t = time_of(s, a, step);
    block.for_chunks([&](Index n, int count) {
      const auto inputs = [&](int r, int quad) {
        float4 x = make_float4(0, 0, 0, 0);
        const Index j = block.unit + (G == 1 ? 4 * quad : quad);
        const float* const from = x_products + (t * s.batch + n + r) * G * H + j;
        const Index apart = G == 1 ? 1 : H;
        const int left = block.units - (G == 1 ? 4 * quad : quad);  // the last block may have fewer units
        const int numbers = G == 1 ? left : left > 0 ? G : 0;
        if (numbers > 0) x.x = from[0];
        if (numbers > 1) x.y = from[apart];
        if (numbers > 2) x.z = from[2 * apart];
        if (numbers > 3) x.w = from[3 * apart];
        return G == 3 ? make_float4(x.x, x.y, 0, x.z) : x;
      };
      block.multiply(count, [&](int r) { return state_before(s, a, t, n + r); }, inputs);
      block.for_units(count, [&](int r, int unit) {
        const float4 sums = G == 1 ? make_float4(block.product(r, unit), 0, 0, 0) : block.products(r, unit);
        const Index j = block.unit + unit;
        unit_forward<G>(s, a, t, n + r, j, sums, G == 3 ? state_before(s, a, t, n + r)[j] : 0);
      });
    });
    if (step + 1 < s.steps) sync_grid();
  }
}

template <int G>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_backward_kernel(RecurrentShape s, RecurrentBackward<float> a, Carried<float> to, Share share) {
  LEC7_DYNAMIC_SHARED(shared, float4);
  const Block block(share, s, shared);
  const Index H = s.hidden;
  block.load_weights(true, [&](int k, int quad, int c) {
    return 4 * quad + c < block.units ? a.weight_h[(block.unit + 4 * quad + c) * G * H + k] : 0.0f;
  });
  // The walk back; after it, what comes through the first step's dz is dh0.
  const Index first = a.dh0 != nullptr ? -1 : 0;
  for (Index step = s.steps - 1; step >= first; --step) {
    const Index t = time_of(s, a, step), after = time_of(s, a, step + 1);
    const bool last = step == s.steps - 1;
    block.for_chunks([&](Index n, int count) {
      if (!last) {
        block.multiply(
            count, [&](int r) { return to.dz_h + (after * s.batch + n + r) * G * H; },
            [](int, int) { return make_float4(0, 0, 0, 0); });
      }
      block.for_units(count, [&](int r, int unit) {
        const Index j = block.unit + unit;
        const float dh = last ? 0 : block.product(r, unit);
        if (step >= 0) unit_backward<G>(s, a, to, t, n + r, j, dh);
        else a.dh0[(n + r) * H + j] = dh + to.dh[(n + r) * H + j];
      });
    });
    if (step > first) sync_grid();
  }
}

// ---- persistent, on tensor cores ----

// The transposed product: 16 columns of Wh (backward: rows) are the rows of what a warp multiplies with one
// instruction, and 8 rows of the batch its columns. A block has `units` units, `columns` numbers for each row of the
// batch, and takes its rows 8 at a time. A warp multiplies every `groups`th tile of 16 columns over every `slices`th
// part of the depth, kPart numbers.
constexpr int kRowsAtOnce = 8, kTileColumns = 16, kPart = 32, kWarps = kThreads / 32;
constexpr int kTilesAtOnce = 8;  // of sums in a warp's registers, 4 each

struct MmaShare {
  int depth, parts;
  int units, unit_blocks, rows, row_blocks;
  int columns, tiles, slices, groups;
  bool aligned;  // rows of h begin at 16 bytes

  constexpr int blocks() const { return unit_blocks * row_blocks; }
  constexpr int stride() const { return kTileColumns * tiles + 4; }  // of sums: lanes write to different banks
  constexpr int fragments() const { return tiles * parts * 2; }
  // The weights; the sums of each slice; what stands before them.
  constexpr std::size_t bytes() const {
    return static_cast<std::size_t>(fragments()) * 32 * sizeof(uint4) +
           static_cast<std::size_t>((slices + 1) * kRowsAtOnce * stride()) * sizeof(float);
  }
};

template <class T>
struct MmaBlock {
  const MmaShare& share;
  Index unit, row;  // the first ones
  int units, rows;
  uint4* weights;  // (tiles, parts, 2, lanes): fragments of mma
  float* sums;     // (slices, kRowsAtOnce, stride)
  float* inputs;   // (kRowsAtOnce, stride)

  __device__ MmaBlock(const MmaShare& p, const RecurrentShape& s, uint4* shared)
      : share(p),
        unit(static_cast<Index>(blockIdx.x % p.unit_blocks) * p.units),
        row(static_cast<Index>(blockIdx.x / p.unit_blocks) * p.rows),
        units(static_cast<int>(s.hidden - unit < p.units ? s.hidden - unit : p.units)),
        rows(static_cast<int>(s.batch - row < p.rows ? s.batch - row : p.rows)),
        weights(shared),
        sums(reinterpret_cast<float*>(shared + p.fragments() * 32)),
        inputs(sums + p.slices * kRowsAtOnce * p.stride()) {}

  // The depth is in such an order that a lane's numbers of two products, k..k + 7, stand side by side in a row of the
  // batch: the first product takes k..k + 3, the second the others. first(c): where column c begins, or null; its
  // numbers are `apart`.
  template <class First>
  __device__ void load_weights(Index apart, First&& first) const {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
    for (int f = warp; f < share.fragments(); f += kWarps) {
      const int k = f / 2 % share.parts * kPart + lane % 4 * 8 + f % 2 * 4;
      unsigned pairs[2][2];
#pragma unroll
      for (int eighth = 0; eighth < 2; ++eighth) {
        const int c = f / 2 / share.parts * kTileColumns + lane / 4 + 8 * eighth;
        const T* const column = c < share.columns ? first(c) : nullptr;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const unsigned bits = column != nullptr && k + i < share.depth ? column[(k + i) * apart].bits : 0;
          if (i % 2 == 0) pairs[eighth][i / 2] = bits;
          else pairs[eighth][i / 2] |= bits << 16;
        }
      }
      weights[f * 32 + lane] = make_uint4(pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1]);
    }
  }

  // Numbers k..k + 7 of a row, with zeros from `end` on.
  __device__ uint4 load(const T* row, int k, int end) const {
    unsigned pairs[4] = {};
    if (k < end) {
      if (share.aligned) return *reinterpret_cast<const uint4*>(row + k);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const unsigned bits = k + i < end ? row[k + i].bits : 0;
        pairs[i / 2] |= bits << i % 2 * 16;
      }
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }

  // Rows of the batch, row_of(r) for r < count, times the weights: read by product() after a barrier.
  template <class RowOf>
  __device__ void multiply(int count, RowOf&& row_of) const {
    const MmaShare& p = share;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int slice = warp % p.slices, group = warp / p.slices, g = lane / 4, t = lane % 4;
    const T* const row = g < count ? row_of(g) + 8 * t : nullptr;
    const int depth_left = row == nullptr ? 0 : p.depth - 8 * t;
#pragma unroll 1
    for (int tile = group; tile < p.tiles; tile += kTilesAtOnce * p.groups) {
      float sum[kTilesAtOnce][4] = {};
      constexpr int kAhead = 4;
#pragma unroll 1
      for (int first = slice; first < p.parts; first += kAhead * p.slices) {
        uint4 x[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) x[i] = load(row, (first + i * p.slices) * kPart, depth_left);
        const int end = first + kAhead * p.slices < p.parts ? first + kAhead * p.slices : p.parts;
#pragma unroll 1
        for (int part = first; part < end; part += p.slices) {
#pragma unroll
          for (int m = 0; m < kTilesAtOnce; ++m) {
            const int now = tile + m * p.groups;
            if (now >= p.tiles) break;
            const uint4* const w = weights + (now * p.parts + part) * 2 * 32 + lane;
            multiply_part(sum[m], w[0], x[0].x, x[0].y);
            multiply_part(sum[m], w[32], x[0].z, x[0].w);
          }
#pragma unroll
          for (int i = 1; i < kAhead; ++i) x[i - 1] = x[i];
        }
      }
#pragma unroll
      for (int m = 0; m < kTilesAtOnce; ++m) {
        const int now = tile + m * p.groups;
        if (now >= p.tiles) break;
        float* const to = sums + (slice * kRowsAtOnce + 2 * t) * p.stride() + now * kTileColumns + g;
        to[0] = sum[m][0], to[p.stride()] = sum[m][1];
        to[8] = sum[m][2], to[p.stride() + 8] = sum[m][3];
      }
    }
  }
  __device__ static void multiply_part(float (&sum)[4], const uint4& w, unsigned first, unsigned second) {
    const unsigned a[4] = {w.x, w.y, w.z, w.w}, b[2] = {first, second};
    mma<T>(sum, a, b);
  }

  // The products of row r and `n` columns, a block's units apart.
  template <int n>
  __device__ void products(int r, int column, float (&result)[n]) const {
    const float* from = sums + r * share.stride() + column;
#pragma unroll
    for (int i = 0; i < n; ++i) result[i] = from[i * share.units];
#pragma unroll 1
    for (int slice = 1; slice < share.slices; ++slice) {
      from += kRowsAtOnce * share.stride();
#pragma unroll
      for (int i = 0; i < n; ++i) result[i] += from[i * share.units];
    }
  }

  // For each few rows: body(first row, how many).
  template <class Body>
  __device__ void for_chunks(Body&& body) const {
#pragma unroll 1
    for (int r = 0; r < rows; r += kRowsAtOnce) body(row + r, rows - r < kRowsAtOnce ? rows - r : kRowsAtOnce);
  }
  // body(r, j) for these rows and the block's units: always the same thread for the same two.
  template <class Body>
  __device__ void for_units(int count, Body&& body) const {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < count * units; i += kThreads) body(i / units, i % units);
  }
};

template <int G, class T>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_mma_forward_kernel(RecurrentShape s, RecurrentForward<T> a, const float* inputs, MmaShare share) {
  LEC7_DYNAMIC_SHARED(shared, uint4);
  const MmaBlock<T> block(share, s, shared);
  const Index H = s.hidden;
  block.load_weights(G * H, [&](int c) {  // gate by gate
    const int gate = c / share.units, j = c % share.units;
    return j < block.units ? a.weight_h + gate * H + block.unit + j : nullptr;
  });
  for (Index step = 0; step < s.steps; ++step) {
    const Index t = time_of(s, a, step);
    block.for_chunks([&](Index n, int count) {
      __syncthreads();  // the sums of the rows before were read, or the weights written
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < count * share.columns; i += kThreads) {
        const int r = i / share.columns, c = i % share.columns, gate = c / share.units, j = c % share.units;
        if (j >= block.units) continue;
        copy_async4(block.inputs + r * share.stride() + c,
                    inputs + ((t * s.batch + n + r) * G + gate) * H + block.unit + j);
      }
      commit_copies();
      block.multiply(count, [&](int r) { return state_before(s, a, t, n + r); });
      wait_for_copies<0>();
      __syncthreads();
      block.for_units(count, [&](int r, int unit) {
        const float* const from = block.inputs + r * share.stride() + unit;
        float z[G], x[G];
        block.products(r, unit, z);
#pragma unroll
        for (int gate = 0; gate < G; ++gate) {
          x[gate] = from[gate * share.units];
          if (G != 3 || gate < 2) z[gate] += x[gate];
        }
        float4 sums = make_float4(z[0], 0, 0, 0);
        if constexpr (G > 1) sums.y = z[1], sums.z = z[2];
        if constexpr (G == 3) sums.w = x[2];
        if constexpr (G == 4) sums.w = z[3];
        const Index j = block.unit + unit;
        unit_forward<G>(s, a, t, n + r, j, sums, G == 3 ? to_float(state_before(s, a, t, n + r)[j]) : 0);
      });
    });
    if (step + 1 < s.steps) sync_grid();
  }
}

template <int G, class T>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_mma_backward_kernel(RecurrentShape s, RecurrentBackward<T> a, Carried<T> to, MmaShare share) {
  LEC7_DYNAMIC_SHARED(shared, uint4);
  const MmaBlock<T> block(share, s, shared);
  const Index H = s.hidden;
  block.load_weights(1, [&](int j) { return j < block.units ? a.weight_h + (block.unit + j) * G * H : nullptr; });
  // The walk back; after it, what comes through the first step's dz is dh0.
  const Index first = a.dh0 != nullptr ? -1 : 0;
  for (Index step = s.steps - 1; step >= first; --step) {
    const Index t = time_of(s, a, step), after = time_of(s, a, step + 1);
    const bool last = step == s.steps - 1;
    block.for_chunks([&](Index n, int count) {
      __syncthreads();  // the sums of the rows before were read, or the weights written
      if (!last) block.multiply(count, [&](int r) { return to.dz_h + (after * s.batch + n + r) * G * H; });
      __syncthreads();
      block.for_units(count, [&](int r, int unit) {
        const Index j = block.unit + unit;
        float dh[1] = {};
        if (!last) block.products(r, unit, dh);
        if (step >= 0) unit_backward<G>(s, a, to, t, n + r, j, dh[0]);
        else a.dh0[(n + r) * H + j] = from_float<T>(dh[0] + to.dh[(n + r) * H + j]);
      });
    });
    if (step > first) sync_grid();
  }
}

// ---- host ----

bool is_aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % sizeof(float4) == 0; }

// A share whose weights stay in shared memory, or one with no blocks. A quad holds `per_quad` units. Rows are split as
// far as the weights allow: a block reads the whole h (or dz) of its rows in each step.
Share share_of(const RecurrentShape& s, Index depth, int per_quad, bool aligned) {
  if (s.steps < 2 || s.batch == 0 || s.batch > kMostRows) return {};
  const int hidden = static_cast<int>(s.hidden), batch = static_cast<int>(s.batch);
  int row_blocks = 1;
  while (8 * row_blocks <= batch) row_blocks *= 2;
  for (row_blocks = std::min(row_blocks, properties().multiprocessors); row_blocks > 0; row_blocks /= 2) {
    Share p{};
    p.depth = static_cast<int>(depth);
    p.aligned = aligned && depth % 4 == 0;
    p.units = static_cast<int>(ceil_div(hidden, properties().multiprocessors / row_blocks));
    p.units = static_cast<int>(ceil_div(p.units, per_quad)) * per_quad;
    p.unit_blocks = (hidden + p.units - 1) / p.units;
    p.rows = (batch + row_blocks - 1) / row_blocks;
    p.row_blocks = (batch + p.rows - 1) / p.rows;
    p.quads = p.units / per_quad;
    if (p.quads > kThreads) continue;
    p.row_groups = std::min((p.rows + 3) / 4, kThreads / p.quads);
    p.slices = kThreads / (p.quads * p.row_groups);
    const int widest = kTileNumbers / p.chunk() - 4;
    p.tile = std::min(p.padded_depth(), widest / 4 * 4);
    if (p.bytes() <= properties().shared_per_block) return p;
  }
  return {};
}

// The same for tensor cores.
MmaShare mma_share_of(const RecurrentShape& s, Index depth, int per_unit, bool aligned) {
  if (properties().compute_capability < 80) return {};
  if (s.steps < 2 || s.batch == 0 || s.batch > kMostRows) return {};
  const int hidden = static_cast<int>(s.hidden), batch = static_cast<int>(s.batch);
  int row_blocks = 1;
  while (2 * kRowsAtOnce * row_blocks <= batch) row_blocks *= 2;
  for (row_blocks = std::min(row_blocks, properties().multiprocessors); row_blocks > 0; row_blocks /= 2) {
    MmaShare p{};
    p.depth = static_cast<int>(depth);
    p.parts = (p.depth + kPart - 1) / kPart;
    p.aligned = aligned && depth % 8 == 0;
    p.rows = static_cast<int>(ceil_div(ceil_div(batch, row_blocks), kRowsAtOnce)) * kRowsAtOnce;
    p.row_blocks = (batch + p.rows - 1) / p.rows;
    p.units = static_cast<int>(ceil_div(hidden, properties().multiprocessors / p.row_blocks));
    p.unit_blocks = (hidden + p.units - 1) / p.units;
    p.columns = per_unit * p.units;
    p.tiles = (p.columns + kTileColumns - 1) / kTileColumns;
    p.slices = 1;
    while (p.slices < kWarps && 2 * p.slices <= p.parts) p.slices *= 2;
    p.groups = kWarps / p.slices;
    if (p.bytes() <= properties().shared_per_block) return p;
  }
  return {};
}

template <class Body>
void with_gates(Cell cell, Body&& body) {
  switch (cell) {
    case Cell::lstm: return body.template operator()<4>();
    case Cell::gru: return body.template operator()<3>();
    default: return body.template operator()<1>();
  }
}

// ---- one launch for all steps, where it fits ----

template <int G>
bool persistent_forward(const RecurrentShape& s, const RecurrentForward<float>& a, const float* inputs) {
  const Share share = share_of(s, s.hidden, G == 1 ? 4 : 1, is_aligned(a.h0) && is_aligned(a.hs));
  const Grid grid{static_cast<unsigned>(share.blocks()), kThreads, share.bytes(), true};
  if (!fits_at_once(recurrent_forward_kernel<G>, grid)) return false;
  launch("recurrent_forward_kernel", recurrent_forward_kernel<G>, grid, s, a, inputs, share);
  return true;
}
template <int G>
bool persistent_backward(const RecurrentShape& s, const RecurrentBackward<float>& a, const Carried<float>& to) {
  const Share share = share_of(s, G * s.hidden, 4, true);
  const Grid grid{static_cast<unsigned>(share.blocks()), kThreads, share.bytes(), true};
  if (!fits_at_once(recurrent_backward_kernel<G>, grid)) return false;
  launch("recurrent_backward_kernel", recurrent_backward_kernel<G>, grid, s, a, to, share);
  return true;
}

template <int G, class T>
bool persistent_forward(const RecurrentShape& s, const RecurrentForward<T>& a, const float* inputs) {
  const MmaShare share = mma_share_of(s, s.hidden, G, is_aligned(a.h0) && is_aligned(a.hs));
  const Grid grid{static_cast<unsigned>(share.blocks()), kThreads, share.bytes(), true};
  if (!fits_at_once(recurrent_mma_forward_kernel<G, T>, grid)) return false;
  launch("recurrent_mma_forward_kernel", recurrent_mma_forward_kernel<G, T>, grid, s, a, inputs, share);
  return true;
}
template <int G, class T>
bool persistent_backward(const RecurrentShape& s, const RecurrentBackward<T>& a, const Carried<T>& to) {
  const MmaShare share = mma_share_of(s, G * s.hidden, 1, true);
  const Grid grid{static_cast<unsigned>(share.blocks()), kThreads, share.bytes(), true};
  if (!fits_at_once(recurrent_mma_backward_kernel<G, T>, grid)) return false;
  launch("recurrent_mma_backward_kernel", recurrent_mma_backward_kernel<G, T>, grid, s, a, to, share);
  return true;
}

// h before each of the steps [t, t + count), (count, N, H).
template <class T>
void write_states(const RecurrentShape& s, const States<T>& states, Index t, Index count, T* out) {
  const States<Stored<T>> from{stored(states.h0), stored(states.hs), states.lengths, states.reverse};
  launch("recurrent_before_kernel", recurrent_before_kernel<Stored<T>>, strided_grid(count * s.batch * s.hidden), s,
         from, t, count, stored(out));
}

// ---- products of stored arrays ----

// An array as gemm and column_sum read it: as float32.
template <class T>
class InFloat {
 public:
  InFloat(const T* x, Index count) : copy_(count) { convert(count, x, copy_.data()); }
  const float* data() { return copy_.data(); }

 private:
  Buffer<float> copy_;
};
template <>
class InFloat<float> {
 public:
  InFloat(const float* x, Index) : x_(x) {}
  const float* data() { return x_; }

 private:
  const float* x_;
};

// body(out) for an array of float32; one of 16 bits is rounded from it.
template <class T, class Body>
void write_rounded(T* out, Index count, Body&& body) {
  if constexpr (is_half<T>) {
    Buffer<float> wide(count);
    body(wide.data());
    convert(count, wide.data(), out);
  } else {
    body(out);
  }
}

// to = from, or zeros.
template <class T>
void widen_or_zero(float* to, const T* from, Index n) {
  if (from == nullptr) fill_words(to, 0, n);
  else if constexpr (is_half<T>) convert(n, from, to);
  else copy_on_device(to, from, static_cast<std::size_t>(n) * sizeof(T));
}

// ---- forward, backward ----

template <int G, class T>
void forward(const RecurrentShape& s, const RecurrentForward<T>& a) {
  const Index H = s.hidden, size = s.batch * H, rows = s.steps * s.batch;
  // Float32 stands where the gates will (RNN: where h will).
  Buffer<float> wide_inputs(is_half<T> ? rows * G * H : 0);
  float* inputs = wide_inputs.data();
  if constexpr (!is_half<T>) inputs = G == 1 ? a.hs : a.gates;
  {
    InFloat<T> x(a.x, rows * s.inputs), weight(a.weight_x, s.inputs * G * H), bias(a.bias, G * H);
    gemm(rows, G * H, s.inputs, {x.data(), s.inputs}, {weight.data(), G * H}, inputs, G * H, bias.data());
  }
  if (persistent_forward<G>(s, a, inputs)) return;
  Buffer<float> products(size * G);
  Buffer<T> state(a.reverse && a.lengths != nullptr ? size : 0);
  InFloat<T> weight(a.weight_h, H * G * H);
  for (Index step = 0; step < s.steps; ++step) {
    const Index t = a.reverse ? s.steps - 1 - step : step;
    const T* h_before = step == 0 ? a.h0 : a.hs + (a.reverse ? t + 1 : t - 1) * size;
    if (state.data() != nullptr) {  // rows begin at different steps
      write_states(s, states_of(a), t, 1, state.data());
      h_before = state.data();
    }
    InFloat<T> h(h_before, size);
    gemm(s.batch, G * H, H, {h.data(), H}, {weight.data(), G * H}, products.data(), G * H);
    launch("recurrent_step_forward_kernel", recurrent_step_forward_kernel<G, T>, strided_grid(size), s, a, t, inputs,
           h_before, products.data());
  }
}

template <int G, class T>
void backward(const RecurrentShape& s, const RecurrentBackward<T>& a) {
  const Index H = s.hidden, size = s.batch * H, rows = s.steps * s.batch;
  Buffer<T> dz_x(rows * G * H), dz_h_of_gru(G == 3 ? rows * G * H : 0), before(rows * H);
  Buffer<float> direct(size), wide_dc(G == 4 && (is_half<T> || a.dc0 == nullptr) ? size : 0);
  float* dc = wide_dc.data();
  if constexpr (!is_half<T>) dc = a.dc0 == nullptr ? dc : a.dc0;
  const Carried<T> to{dz_x.data(), G == 3 ? dz_h_of_gru.data() : dz_x.data(), direct.data(), dc, before.data()};
  widen_or_zero(to.dh, a.dh_last, size);
  if (G == 4) widen_or_zero(to.dc, a.dc_last, size);
  write_states(s, states_of(a), 0, s.steps, before.data());

  if (!persistent_backward<G>(s, a, to)) {
    Buffer<float> products(size);
    InFloat<T> weight(a.weight_h, H * G * H);
    for (Index step = s.steps - 1; step >= 0; --step) {
      const Index t = a.reverse ? s.steps - 1 - step : step;
      launch("recurrent_step_backward_kernel", recurrent_step_backward_kernel<G, T>, strided_grid(size), s, a, to, t,
             step == s.steps - 1 ? nullptr : products.data());
      if (step == 0 && a.dh0 == nullptr) break;
      InFloat<T> dz(to.dz_h + t * size * G, size * G);
      gemm(s.batch, H, G * H, {dz.data(), G * H}, {weight.data(), G * H, true}, products.data(), H);
    }
    if (a.dh0 != nullptr) {
      launch("recurrent_first_kernel", recurrent_first_kernel<T>, strided_grid(size), size, products.data(), to.dh,
             a.dh0);
    }
  }
  if constexpr (is_half<T>) {
    if (a.dc0 != nullptr) convert(size, to.dc, a.dc0);
  }

  InFloat<T> dz(to.dz_x, rows * G * H);
  if (a.dweight_x != nullptr) {
    Buffer<T> living(a.lengths != nullptr ? rows * s.inputs : 0);
    if (a.lengths != nullptr) {
      launch("recurrent_living_kernel", recurrent_living_kernel<Stored<T>>, strided_grid(rows * s.inputs), s, a.lengths,
             stored(a.x), stored(living.data()));
    }
    InFloat<T> x(a.lengths != nullptr ? living.data() : a.x, rows * s.inputs);
    write_rounded(a.dweight_x, s.inputs * G * H, [&](float* dweight) {
      gemm(s.inputs, G * H, rows, {x.data(), s.inputs, true}, {dz.data(), G * H}, dweight, G * H);
    });
  }
  if (a.dweight_h != nullptr) {
    InFloat<T> h(to.before, rows * H), dz_h(to.dz_h, rows * G * H);
    write_rounded(a.dweight_h, H * G * H, [&](float* dweight) {
      gemm(H, G * H, rows, {h.data(), H, true}, {dz_h.data(), G * H}, dweight, G * H);
    });
  }
  if (a.dbias != nullptr) {
    write_rounded(a.dbias, G * H, [&](float* dbias) { column_sum(rows, G * H, dz.data(), G * H, dbias); });
  }
  if (a.dx != nullptr) {
    InFloat<T> weight(a.weight_x, s.inputs * G * H);
    write_rounded(a.dx, rows * s.inputs, [&](float* dx) {
      gemm(rows, s.inputs, G * H, {dz.data(), G * H}, {weight.data(), G * H, true}, dx, s.inputs);
    });
  }
}

std::span<const Index> lengths_of(const RecurrentShape& s, const Index* lengths) {
  return {lengths, lengths == nullptr ? 0 : static_cast<std::size_t>(s.batch)};
}

}  // namespace

template <class T>
void recurrent_forward(const RecurrentShape& s, const RecurrentForward<T>& arrays) {
  Lengths lengths(lengths_of(s, arrays.lengths));
  RecurrentForward<T> a = arrays;
  a.lengths = lengths.data();
  with_gates(s.cell, [&]<int G> { forward<G>(s, a); });
}
template void recurrent_forward(const RecurrentShape&, const RecurrentForward<float>&);
template void recurrent_forward(const RecurrentShape&, const RecurrentForward<float16>&);
template void recurrent_forward(const RecurrentShape&, const RecurrentForward<bfloat16>&);

template <class T>
void recurrent_backward(const RecurrentShape& s, const RecurrentBackward<T>& arrays) {
  Lengths lengths(lengths_of(s, arrays.lengths));
  RecurrentBackward<T> a = arrays;
  a.lengths = lengths.data();
  with_gates(s.cell, [&]<int G> { backward<G>(s, a); });
}
template void recurrent_backward(const RecurrentShape&, const RecurrentBackward<float>&);
template void recurrent_backward(const RecurrentShape&, const RecurrentBackward<float16>&);
template void recurrent_backward(const RecurrentShape&, const RecurrentBackward<bfloat16>&);

}  // namespace lec7::cuda
