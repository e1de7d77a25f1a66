// Recurrent sequences. x Wx + b of all steps is one matrix product, and so are the gradients of the weights, of x and
// the bias; what is left is the recurrence, in one of two ways:
//
//   persistent  one launch for the whole sequence. A block owns some hidden units, with all their gates, for some rows
//               of the batch, and keeps its columns of Wh (backward: its rows) in shared memory from the first step to
//               the last; all blocks meet once a step, where they exchange h (backward: dz) through L2. A step is
//               2 N H G H FLOPs, and each block reads h of its rows, 4 H bytes a row (dz: 4 G H). Few rows take the
//               time of the barrier and of one way through L2. For float16 and bfloat16: recurrent_mma.cu, with half of
//               these bytes, twice the units in the same shared memory, and tensor cores
//   steps       where Wh does not fit, where rows are many, for a single step, or for 16 bits without tensor cores: a
//               matrix product and an elementwise kernel for each, bound by the reading of Wh, 4 G H H bytes (2 G H H),
//               or by arithmetic
//
// The order of sums is the same from run to run. It depends on the sizes and, in the persistent kernels, on the number
// of the GPU's multiprocessors.
//
// Backward hands dh on in two parts: through Wh, a product with dz, and directly (the GRU's z). Rows that are not alive
// at a step have dz = 0 and keep the direct part, so that a row's last step finds dh_last there, and dh0 is what is
// left at the end, whatever the lengths are.
#include "recurrent.h"

#include <algorithm>

#include "arrays.h"
#include "async_copy.h"
#include "gemm.h"
#include "lengths.h"

namespace lec7::cuda {
namespace {

// ---- step by step ----

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

// h before the first step and after each one.
template <class T>
struct States {
  const T *h0, *hs;
  const Index* lengths;
  bool reverse;
};
template <class Arrays>
auto states_of(const Arrays& a) {
  return States{a.h0, static_cast<decltype(a.h0)>(a.hs), a.lengths, a.reverse};
}

template <int G, class T>
__global__ void __launch_bounds__(kThreads, 1)
    recurrent_step_forward_kernel(RecurrentShape s, RecurrentForward<T> a, Index t, const float* x_products,
                                  const T* h_before, const float* products) {
  const Index H = s.hidden;
#pragma unroll 1
  LEC7_STRIDED(i, s.batch * H) {
    const Index n = i / H, j = i - n * H;
    const float* const x = x_products + (t * s.batch + n) * G * H + j;
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
__global__ void __launch_bounds__(kThreads, 1)
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

constexpr int kTileBytes = 16 << 10;  // of h or dz, in each of two buffers
constexpr int kTileNumbers = kTileBytes / static_cast<int>(sizeof(float));

static_assert(2 * kTileBytes >= kThreads * 4 * 4 * static_cast<int>(sizeof(float)), "a thread has 4 x 4 sums");

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

// ---- one launch for all steps: false, and nothing done, where that does not fit ----

template <int G, class T>
bool persistent_forward(const RecurrentShape& s, const RecurrentForward<T>& a, const float* x_products) {
  if constexpr (is_half<T>) {
    return mma_forward<G>(s, a, x_products);
  } else {
    const Share share = share_of(s, s.hidden, G == 1 ? 4 : 1, is_aligned(a.h0) && is_aligned(a.hs));
    const Grid grid{static_cast<unsigned>(share.blocks()), kThreads, share.bytes(), true};
    if (!fits_at_once(recurrent_forward_kernel<G>, grid)) return false;
    launch("recurrent_forward_kernel", recurrent_forward_kernel<G>, grid, s, a, x_products, share);
    return true;
  }
}
template <int G, class T>
bool persistent_backward(const RecurrentShape& s, const RecurrentBackward<T>& a, const Carried<T>& to) {
  if constexpr (is_half<T>) {
    return mma_backward<G>(s, a, to);
  } else {
    const Share share = share_of(s, G * s.hidden, 4, true);
    const Grid grid{static_cast<unsigned>(share.blocks()), kThreads, share.bytes(), true};
    if (!fits_at_once(recurrent_backward_kernel<G>, grid)) return false;
    launch("recurrent_backward_kernel", recurrent_backward_kernel<G>, grid, s, a, to, share);
    return true;
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

template <class Body>
void with_gates(Cell cell, Body&& body) {
  switch (cell) {
    case Cell::lstm: return body.template operator()<4>();
    case Cell::gru: return body.template operator()<3>();
    default: return body.template operator()<1>();
  }
}

// h before each of the steps [t, t + count), (count, N, H).
template <class T>
void write_states(const RecurrentShape& s, const States<T>& states, Index t, Index count, T* out) {
  const States<Stored<T>> from{stored(states.h0), stored(states.hs), states.lengths, states.reverse};
  launch("recurrent_before_kernel", recurrent_before_kernel<Stored<T>>, strided_grid(count * s.batch * s.hidden), s,
         from, t, count, stored(out));
}

template <int G, class T>
void forward(const RecurrentShape& s, const RecurrentForward<T>& a) {
  const Index H = s.hidden, size = s.batch * H, rows = s.steps * s.batch;
  // Float32 stands where the gates will (RNN: where h will).
  Buffer<float> wide_products(is_half<T> ? rows * G * H : 0);
  float* x_products = wide_products.data();
  if constexpr (!is_half<T>) x_products = G == 1 ? a.hs : a.gates;
  gemm_unrounded<T>(rows, G * H, s.inputs, {a.x, s.inputs}, {a.weight_x, G * H}, x_products, G * H, a.bias);
  if (persistent_forward<G>(s, a, x_products)) return;
  Buffer<float> products(size * G);
  Buffer<T> state(a.reverse && a.lengths != nullptr ? size : 0);
  for (Index step = 0; step < s.steps; ++step) {
    const Index t = a.reverse ? s.steps - 1 - step : step;
    const T* h_before = step == 0 ? a.h0 : a.hs + (a.reverse ? t + 1 : t - 1) * size;
    if (state.data() != nullptr) {  // rows begin at different steps
      write_states(s, states_of(a), t, 1, state.data());
      h_before = state.data();
    }
    gemm_unrounded<T>(s.batch, G * H, H, {h_before, H}, {a.weight_h, G * H}, products.data(), G * H);
    launch("recurrent_step_forward_kernel", recurrent_step_forward_kernel<G, T>, strided_grid(size), s, a, t,
           x_products, h_before, products.data());
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
    for (Index step = s.steps - 1; step >= 0; --step) {
      const Index t = a.reverse ? s.steps - 1 - step : step;
      launch("recurrent_step_backward_kernel", recurrent_step_backward_kernel<G, T>, strided_grid(size), s, a, to, t,
             step == s.steps - 1 ? nullptr : products.data());
      if (step == 0 && a.dh0 == nullptr) break;
      gemm_unrounded<T>(s.batch, H, G * H, {to.dz_h + t * size * G, G * H}, {a.weight_h, G * H, true}, products.data(),
                        H);
    }
    if (a.dh0 != nullptr) {
      launch("recurrent_first_kernel", recurrent_first_kernel<T>, strided_grid(size), size, products.data(), to.dh,
             a.dh0);
    }
  }
  if constexpr (is_half<T>) {
    if (a.dc0 != nullptr) convert(size, to.dc, a.dc0);
  }

  if (a.dweight_x != nullptr) {
    Buffer<T> living(a.lengths != nullptr ? rows * s.inputs : 0);
    if (a.lengths != nullptr) {
      launch("recurrent_living_kernel", recurrent_living_kernel<Stored<T>>, strided_grid(rows * s.inputs), s, a.lengths,
             stored(a.x), stored(living.data()));
    }
    gemm(s.inputs, G * H, rows, {a.lengths != nullptr ? living.data() : a.x, s.inputs, true}, {to.dz_x, G * H},
         a.dweight_x, G * H);
  }
  if (a.dweight_h != nullptr) gemm(H, G * H, rows, {to.before, H, true}, {to.dz_h, G * H}, a.dweight_h, G * H);
  if (a.dbias != nullptr) column_sum(rows, G * H, to.dz_x, G * H, a.dbias);
  if (a.dx != nullptr) gemm(rows, s.inputs, G * H, {to.dz_x, G * H}, {a.weight_x, G * H, true}, a.dx, s.inputs);
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
