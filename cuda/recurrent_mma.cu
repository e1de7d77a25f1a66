// All steps of a recurrent sequence of float16 or bfloat16 in one launch (recurrent.cu), the products on tensor cores.
//
// The product is transposed: columns of Wh (backward: rows) are the rows of what a warp multiplies with one
// instruction, 16 of them, and 8 rows of the batch its columns, so that even one row of the batch wastes nothing that
// counts: a block reads its weights from shared memory once for 8 or 16 rows. They lie there as a lane needs them, 16
// bytes a fragment, half of what float32 takes. The warps share the depth, and a lane loads its numbers of h (dz) from
// L2 straight into the registers that it multiplies, 16 bytes of a row at a time where rows begin at such; so there is
// no barrier until the warps' sums are added, in their order, by the threads that have the gates. x Wx + b comes by
// asynchronous copies meanwhile.
//
// Of a step's 2 N H G H FLOPs a block's part takes less time than the reading of its weights from shared memory, 2
// bytes a weight for each 16 rows, and with few rows less than the barrier and L2's latency. From sm_80 on; on older
// chips recurrent.cu goes step by step.
#include <algorithm>

#include "async_copy.h"
#include "mma.h"
#include "recurrent.h"

namespace lec7::cuda {
namespace {

// A block has `units` units, `columns` numbers for each row of the batch, and takes its rows 8 or 16 at a time. A warp
// multiplies every `groups`th tile of 16 columns over every `slices`th part of the depth, kPart numbers.
constexpr int kTileRows = 8, kTileColumns = 16, kPart = 32, kWarps = kThreads / 32;
constexpr int kRowTiles = 2;     // at most, that are multiplied with a weight once it was read
constexpr int kTilesAtOnce = 8;  // of sums in a warp's registers, 4 each
#if defined(__CUDA_ARCH__)
constexpr bool kTensorCores = __CUDA_ARCH__ >= 800;  // without, the kernels are never launched, and empty
#else
constexpr bool kTensorCores = true;
#endif

struct MmaShare {
  int depth, parts;
  int units, unit_blocks, rows, row_blocks;
  int row_tiles, columns, tiles, slices, groups;
  bool aligned;  // rows of h begin at 16 bytes

  constexpr int blocks() const { return unit_blocks * row_blocks; }
  constexpr int chunk() const { return row_tiles * kTileRows; }      // rows at a time
  constexpr int stride() const { return kTileColumns * tiles + 4; }  // of sums: lanes write to different banks
  constexpr int fragments() const { return tiles * parts * 2; }
  // The weights; the sums of each slice; what stands before them.
  constexpr std::size_t bytes() const {
    return static_cast<std::size_t>(fragments()) * 32 * sizeof(uint4) +
           static_cast<std::size_t>((slices + 1) * chunk() * stride()) * sizeof(float);
  }
};

// Eight numbers one by one, with zeros from `end` on. A call: the code of few sizes is not to be in each place.
template <class T>
[[gnu::noinline]] __device__ uint4 gather(const T* row, int end) {
  unsigned pairs[4] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const unsigned bits = i < end ? row[i].bits : 0;
    pairs[i / 2] |= bits << i % 2 * 16;
  }
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

template <class T>
struct MmaBlock {
  const MmaShare& share;
  Index unit, row;  // the first ones
  int units, rows;
  uint4* weights;  // (tiles, parts, 2, lanes): fragments of mma
  float* sums;     // (slices, chunk, stride)
  float* inputs;   // (chunk, stride)

  __device__ MmaBlock(const MmaShare& p, const RecurrentShape& s, uint4* shared)
      : share(p),
        unit(static_cast<Index>(blockIdx.x % p.unit_blocks) * p.units),
        row(static_cast<Index>(blockIdx.x / p.unit_blocks) * p.rows),
        units(static_cast<int>(s.hidden - unit < p.units ? s.hidden - unit : p.units)),
        rows(static_cast<int>(s.batch - row < p.rows ? s.batch - row : p.rows)),
        weights(shared),
        sums(reinterpret_cast<float*>(shared + p.fragments() * 32)),
        inputs(sums + p.slices * p.chunk() * p.stride()) {}

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
    if (k >= end) return make_uint4(0, 0, 0, 0);
    return share.aligned ? *reinterpret_cast<const uint4*>(row + k) : gather(row + k, end - k);
  }

  // Rows of the batch, row_of(r) for r < count, times the weights: read by product() after a barrier.
  template <class RowOf>
  __device__ void multiply(int count, RowOf&& row_of) const {
    const MmaShare& p = share;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int slice = warp % p.slices, group = warp / p.slices, g = lane / 4, t = lane % 4;
    const int row_tiles = count > kTileRows ? kRowTiles : 1;
    const T* rows[kRowTiles];
    int left[kRowTiles];
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
      const bool there = n * kTileRows + g < count;
      rows[n] = there ? row_of(n * kTileRows + g) + 8 * t : nullptr;
      left[n] = there ? p.depth - 8 * t : 0;
    }
#pragma unroll 1
    for (int tile = group; tile < p.tiles; tile += kTilesAtOnce * p.groups) {
      float sum[kRowTiles][kTilesAtOnce][4] = {};
      constexpr int kAhead = 4;
#pragma unroll 1
      for (int first = slice; first < p.parts; first += kAhead * p.slices) {
        uint4 x[kRowTiles][kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
#pragma unroll
          for (int n = 0; n < kRowTiles; ++n) x[n][i] = load(rows[n], (first + i * p.slices) * kPart, left[n]);
        }
        const int end = first + kAhead * p.slices < p.parts ? first + kAhead * p.slices : p.parts;
#pragma unroll 1
        for (int part = first; part < end; part += p.slices) {
#pragma unroll
          for (int m = 0; m < kTilesAtOnce; ++m) {
            const int now = tile + m * p.groups;
            if (now >= p.tiles) break;
            const uint4* const w = weights + (now * p.parts + part) * 2 * 32 + lane;
            const uint4 first_half = w[0], second_half = w[32];
#pragma unroll
            for (int n = 0; n < kRowTiles; ++n) {
              if (n >= row_tiles) break;
              multiply_part(sum[n][m], first_half, x[n][0].x, x[n][0].y);
              multiply_part(sum[n][m], second_half, x[n][0].z, x[n][0].w);
            }
          }
#pragma unroll
          for (int i = 1; i < kAhead; ++i) {
#pragma unroll
            for (int n = 0; n < kRowTiles; ++n) x[n][i - 1] = x[n][i];
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        if (n >= row_tiles) break;
#pragma unroll
        for (int m = 0; m < kTilesAtOnce; ++m) {
          const int now = tile + m * p.groups;
          if (now >= p.tiles) break;
          const int row = slice * p.chunk() + n * kTileRows + 2 * t;
          float* const to = sums + row * p.stride() + now * kTileColumns + g;
          to[0] = sum[n][m][0], to[p.stride()] = sum[n][m][1];
          to[8] = sum[n][m][2], to[p.stride() + 8] = sum[n][m][3];
        }
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
      from += share.chunk() * share.stride();
#pragma unroll
      for (int i = 0; i < n; ++i) result[i] += from[i * share.units];
    }
  }

  // For each few rows: body(first row, how many).
  template <class Body>
  __device__ void for_chunks(Body&& body) const {
#pragma unroll 1
    for (int r = 0; r < rows; r += share.chunk()) body(row + r, rows - r < share.chunk() ? rows - r : share.chunk());
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
    recurrent_mma_forward_kernel(RecurrentShape s, RecurrentForward<T> a, const float* x_products, MmaShare share) {
  if (!kTensorCores) return;
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
                    x_products + ((t * s.batch + n + r) * G + gate) * H + block.unit + j);
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
  if (!kTensorCores) return;
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

// A share whose weights stay in shared memory, or one with no blocks. Rows are split as far as the weights allow: each
// block multiplies all that it has with its weights in each step.
MmaShare mma_share_of(const RecurrentShape& s, Index depth, int per_unit, bool aligned) {
  if (properties().compute_capability < 80) return {};
  if (s.steps < 2 || s.batch == 0 || s.batch > kMostRows) return {};
  const int hidden = static_cast<int>(s.hidden), batch = static_cast<int>(s.batch);
  int row_blocks = 1;
  while (2 * kTileRows * row_blocks <= batch) row_blocks *= 2;
  for (row_blocks = std::min(row_blocks, properties().multiprocessors); row_blocks > 0; row_blocks /= 2) {
    MmaShare p{};
    p.depth = static_cast<int>(depth);
    p.parts = (p.depth + kPart - 1) / kPart;
    p.aligned = aligned && depth % 8 == 0;
    p.rows = static_cast<int>(ceil_div(ceil_div(batch, row_blocks), kTileRows)) * kTileRows;
    p.row_blocks = (batch + p.rows - 1) / p.rows;
    p.units = static_cast<int>(ceil_div(hidden, properties().multiprocessors / p.row_blocks));
    p.unit_blocks = (hidden + p.units - 1) / p.units;
    p.columns = per_unit * p.units;
    p.tiles = (p.columns + kTileColumns - 1) / kTileColumns;
    p.slices = 1;
    while (p.slices < kWarps && 2 * p.slices <= p.parts) p.slices *= 2;
    p.groups = kWarps / p.slices;
    for (p.row_tiles = p.rows > kTileRows ? kRowTiles : 1; p.row_tiles > 0; --p.row_tiles) {
      if (p.bytes() <= properties().shared_per_block) return p;
    }
  }
  return {};
}

}  // namespace

template <int G, class T>
bool mma_forward(const RecurrentShape& s, const RecurrentForward<T>& a, const float* x_products) {
  const MmaShare share = mma_share_of(s, s.hidden, G, is_aligned(a.h0) && is_aligned(a.hs));
  const Grid grid{static_cast<unsigned>(share.blocks()), kThreads, share.bytes(), true};
  if (!fits_at_once(recurrent_mma_forward_kernel<G, T>, grid)) return false;
  launch("recurrent_mma_forward_kernel", recurrent_mma_forward_kernel<G, T>, grid, s, a, x_products, share);
  return true;
}
template <int G, class T>
bool mma_backward(const RecurrentShape& s, const RecurrentBackward<T>& a, const Carried<T>& to) {
  const MmaShare share = mma_share_of(s, G * s.hidden, 1, true);
  const Grid grid{static_cast<unsigned>(share.blocks()), kThreads, share.bytes(), true};
  if (!fits_at_once(recurrent_mma_backward_kernel<G, T>, grid)) return false;
  launch("recurrent_mma_backward_kernel", recurrent_mma_backward_kernel<G, T>, grid, s, a, to, share);
  return true;
}

template bool mma_forward<1>(const RecurrentShape&, const RecurrentForward<float16>&, const float*);
template bool mma_forward<3>(const RecurrentShape&, const RecurrentForward<float16>&, const float*);
template bool mma_forward<4>(const RecurrentShape&, const RecurrentForward<float16>&, const float*);
template bool mma_forward<1>(const RecurrentShape&, const RecurrentForward<bfloat16>&, const float*);
template bool mma_forward<3>(const RecurrentShape&, const RecurrentForward<bfloat16>&, const float*);
template bool mma_forward<4>(const RecurrentShape&, const RecurrentForward<bfloat16>&, const float*);
template bool mma_backward<1>(const RecurrentShape&, const RecurrentBackward<float16>&, const Carried<float16>&);
template bool mma_backward<3>(const RecurrentShape&, const RecurrentBackward<float16>&, const Carried<float16>&);
template bool mma_backward<4>(const RecurrentShape&, const RecurrentBackward<float16>&, const Carried<float16>&);
template bool mma_backward<1>(const RecurrentShape&, const RecurrentBackward<bfloat16>&, const Carried<bfloat16>&);
template bool mma_backward<3>(const RecurrentShape&, const RecurrentBackward<bfloat16>&, const Carried<bfloat16>&);
template bool mma_backward<4>(const RecurrentShape&, const RecurrentBackward<bfloat16>&, const Carried<bfloat16>&);

}  // namespace lec7::cuda
