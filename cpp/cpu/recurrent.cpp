// Recurrent sequences in one call.
//
//   input projection   x Wx + b of all steps as one matrix product, written where the gates will stand; or, where Wx
//   and
//                      Wh fit L2 together, in the tile of the recurrence
//   recurrence         a tile holds all gates of W hidden units for up to 6 rows (LSTM: 6 x [i f o g]), so that the
//                      nonlinearities follow the product in registers; Wh is packed once, in that order
//   threads            rows of the batch do not depend on each other: each thread takes its rows through all steps and
//                      never waits. Where Wh is too big for one L2, or rows are few, threads share the units instead
//                      and wait for each other at each step
//   backward           the same walk back writes dz of all steps; dWx, dWh, dx and db are then one product or sum each
#include "lec7/recurrent.h"

#include <algorithm>

#include "activation.h"
#include "gemm.h"
#include "lec7/memory.h"
#include "lec7/parallel.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kSerialWork = 1 << 16;    // multiplications of one step under which a second thread does not pay
constexpr Index kSharedWeight = 1 << 18;  // numbers of Wh (1 MiB in float32) up to which each thread reads it all
constexpr Index kUnpackedRows = 6;        // few rows for few steps read Wh where it is: packing would not pay
constexpr Index kUnpackedSteps = 8;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kCellRows = 6;
#else
constexpr int kCellRows = 2;  // 2 x 4 accumulators and 4 vectors of Wh in 16 registers
#endif

// Units of a tile: W for cells of several gates; the RNN's one gate takes several vectors, to have enough sums going.
template <Cell cell>
inline constexpr int kGates = cell == Cell::lstm  ? 4
                              : cell == Cell::gru ? 3
                                                  : 1;
template <Cell cell>
inline constexpr int kUnitVectors = kGates<cell> == 1 ? kTileVectors : 1;
template <Cell cell>
inline constexpr int kVectors = kGates<cell> * kUnitVectors<cell>;
template <class T, Cell cell>
inline constexpr Index kUnits = kUnitVectors<cell> * W<T>;

template <class Body>
void with_cell(Cell cell, Body&& body) {
  switch (cell) {
    case Cell::rnn_tanh: return body.template operator()<Cell::rnn_tanh>();
    case Cell::rnn_relu: return body.template operator()<Cell::rnn_relu>();
    case Cell::lstm: return body.template operator()<Cell::lstm>();
    case Cell::gru: return body.template operator()<Cell::gru>();
  }
}

// The time steps in the order of the recurrence, and where each row begins and ends in it.
struct Walk {
  Index steps;
  const Index* lengths;
  bool reverse;

  Index time(Index step) const { return reverse ? steps - 1 - step : step; }
  Index length(Index n) const { return lengths == nullptr ? steps : lengths[n]; }
  bool lives(Index t, Index n) const { return t < length(n); }
  Index first(Index n) const { return reverse ? length(n) - 1 : 0; }
  Index last(Index n) const { return reverse ? 0 : length(n) - 1; }
  Index before(Index t) const { return reverse ? t + 1 : t - 1; }
};

// What one thread does of every step: rows [row, row_end) of the batch, tiles [tile, tile_end) of the units.
struct Share {
  Index row, row_end, tile, tile_end;
};

struct Split {
  Index threads;
  bool by_rows;

  Split(const RecurrentShape& s) {
    by_rows = s.hidden * s.gates() <= kSharedWeight && s.batch >= 2;
    threads = s.batch * s.hidden * s.gates() < kSerialWork ? 1 : by_rows ? s.batch : kParallel;
  }
  Share share(const Team& team, Index rows, Index tiles) const {
    const auto part = [&](Index n, int i) { return n * i / team.threads; };
    if (by_rows) return {part(rows, team.thread), part(rows, team.thread + 1), 0, tiles};
    return {0, rows, part(tiles, team.thread), part(tiles, team.thread + 1)};
  }
  void wait(const Team& team) const {
    if (!by_rows) team.barrier();
  }
};

Index lanes_of(Index hidden, Index unit, Index width) { return std::clamp<Index>(hidden - unit, 0, width); }

// `rows` rows of a weight (rows, G H) into tiles of `depth` rows: for each tile of units, rows of
// [gate 0 units | gate 1 units | ...], padded with zeros.
template <class T, Cell cell>
void pack_recurrent(const RecurrentShape& s, Index rows, Index depth, const T* weight, T* packed) {
  constexpr int NV = kVectors<cell>;
  const Index tiles = (s.hidden + kUnits<T, cell> - 1) / kUnits<T, cell>;
  parallel_region(rows * s.gates() < (1 << 16) ? 1 : tiles, [&](const Team& team) {
    team.for_each(tiles, [&](Index tile) {
      T* out = packed + tile * depth * NV * W<T>;
      for (Index k = 0; k < rows; ++k, out += NV * W<T>) {
        LEC7_UNROLL
        for (int v = 0; v < NV; ++v) {
          const Index gate = v / kUnitVectors<cell>;
          const Index unit = std::min(tile * kUnits<T, cell> + v % kUnitVectors<cell> * W<T>, s.hidden);
          const Index lanes = lanes_of(s.hidden, unit, W<T>);
          const T* const from = weight + k * s.gates() + gate * s.hidden + unit;
          store(out + v * W<T>, lanes == W<T> ? load(from) : load_first(from, lanes));
        }
      }
    });
  });
}

template <class T, Cell cell>
void forward(const RecurrentShape& s, const RecurrentForward<T>& a) {
  constexpr int G = kGates<cell>, NV = kVectors<cell>;
  const Index N = s.batch, H = s.hidden, GH = s.gates();
  const Index tiles = (H + kUnits<T, cell> - 1) / kUnits<T, cell>;
  const Walk walk{s.steps, a.lengths, a.reverse};
  T* const gates = G == 1 ? a.hs : a.gates;  // the RNN's one gate is h itself

  const Split split(s);
  // A single step reads Wh once: its product, which has threads of its own, packs it as it goes.
  const bool single = s.steps == 1;
  const bool packed = !single && (N > kUnpackedRows || s.steps >= kUnpackedSteps);
  // Small weights stay in L2 together: then a tile takes x Wx and h Wh in one go, and the gates are written once. The
  // GRU needs h Wh_n by itself.
  const bool fused = packed && split.by_rows && cell != Cell::gru && (s.inputs + H) * GH <= kSharedWeight;
  const Index depth = fused ? s.inputs + H : H;
  memory::Buffer<T> weight(packed ? tiles * depth * NV * W<T> : 0);
  T* const weight_h = weight.data() + (fused ? s.inputs * NV * W<T> : 0);
  if (packed) pack_recurrent<T, cell>(s, H, depth, a.weight_h, weight_h);
  if (fused) pack_recurrent<T, cell>(s, s.inputs, depth, a.weight_x, weight.data());
  else gemm<T>(s.steps * N, GH, s.inputs, {a.x, s.inputs}, {a.weight_x, GH}, gates, GH, a.bias);

  // Rows that begin in the middle of the walk need a state of their own at that step.
  const bool ragged = a.lengths != nullptr && a.reverse;
  memory::Buffer<T> ragged_h(ragged ? N * H : 0);

  memory::Buffer<T> product(packed ? 0 : N * GH);
  if (single) gemm<T>(N, GH, H, {a.h0, H}, {a.weight_h, GH}, product.data(), GH);

  parallel_region(N > kUnpackedRows || packed ? split.threads : 1, [&](const Team& team) {
    const Share share = split.share(team, N, tiles);
    for (Index step = 0; step < s.steps; ++step) {
      const Index t = walk.time(step);
      const T* h_before = step == 0 ? a.h0 : a.hs + walk.before(t) * N * H;
      if (ragged) {
        if (split.by_rows || team.thread == 0) {
          for (Index n = share.row; n < share.row_end; ++n) {
            const T* const from = t == walk.first(n) ? a.h0 : h_before;
            std::copy_n(from + n * H, H, ragged_h.data() + n * H);
          }
        }
        h_before = ragged_h.data();
        split.wait(team);
      }
      if (!packed && !single) gemm<T>(N, GH, H, {h_before, H}, {a.weight_h, GH}, product.data(), GH);
      for (Index tile_index = share.tile; tile_index < share.tile_end; ++tile_index) {
        const Index unit0 = tile_index * kUnits<T, cell>;
        Index offset[NV], lanes[NV];
        for (int v = 0; v < NV; ++v) {
          const Index unit = std::min(unit0 + v % kUnitVectors<cell> * W<T>, H);
          offset[v] = v / kUnitVectors<cell> * H + unit;
          lanes[v] = lanes_of(H, unit, W<T>);
        }
        const auto rows = [&]<int MR>(Index n) LEC7_LAMBDA_INLINE {
          Tile<T, MR, NV> tile;
          if (packed) {
            const Index at = tile_index * depth * NV * W<T>;
            if (fused) {
              LEC7_UNROLL
              for (int i = 0; i < MR; ++i) {
                LEC7_UNROLL
                for (int v = 0; v < NV; ++v) tile.c[i][v] = load_first(a.bias + offset[v], lanes[v]);
              }
              tile.template multiply<Order::row_major>(s.inputs, a.x + (t * N + n) * s.inputs, s.inputs,
                                                       weight.data() + at, NV * W<T>);
            } else {
              tile.zero();
            }
            tile.template multiply<Order::row_major>(H, h_before + n * H, H, weight_h + at, NV * W<T>);
          } else {
            LEC7_UNROLL
            for (int i = 0; i < MR; ++i) {
              LEC7_UNROLL
              for (int v = 0; v < NV; ++v) {
                tile.c[i][v] = load_first(product.data() + (n + i) * GH + offset[v], lanes[v]);
              }
            }
          }
          LEC7_UNROLL
          for (int i = 0; i < MR; ++i) {
            const Index row = t * N + n + i;
            T* const z = gates + row * GH;
            const bool lives = walk.lives(t, n + i);
            LEC7_UNROLL
            for (int u = 0; u < kUnitVectors<cell>; ++u) {
              const Index unit = offset[u], width = lanes[u];
              T* const h = a.hs + row * H + unit;
              const auto pre = [&](int gate) { return fused ? Vec<T>{} : load_first(z + gate * H + unit, width); };
              const auto keep = [&](int gate, Vec<T> value) { store_first(z + gate * H + unit, value, width); };
              if constexpr (G == 1) {
                constexpr Activation f = cell == Cell::rnn_tanh ? Activation::tanh : Activation::relu;
                const Vec<T> next = activate<T, f>(pre(0) + tile.c[i][u]);
                store_first(h, lives ? next : Vec<T>{}, width);
              } else if constexpr (cell == Cell::lstm) {
                const Vec<T> in = sigmoid<T>(pre(0) + tile.c[i][0]), forget = sigmoid<T>(pre(1) + tile.c[i][1]);
                const Vec<T> out = sigmoid<T>(pre(2) + tile.c[i][2]), g = tanh<T>(pre(3) + tile.c[i][3]);
                const T* const c_before = t == walk.first(n + i) ? a.c0 + (n + i) * H
                                          : step == 0            ? a.c0 + (n + i) * H
                                                                 : a.cells + (walk.before(t) * N + n + i) * H;
                const Vec<T> c = forget * load_first(c_before + unit, width) + rounded(in * g);
                keep(0, in), keep(1, forget), keep(2, out), keep(3, g);
                store_first(a.cells + row * H + unit, c, width);
                store_first(h, lives ? out * tanh<T>(c) : Vec<T>{}, width);
              } else {
                const Vec<T> r = sigmoid<T>(pre(0) + tile.c[i][0]), zz = sigmoid<T>(pre(1) + tile.c[i][1]);
                const Vec<T> candidate = tanh<T>(pre(2) + r * tile.c[i][2]);
                const Vec<T> before = load_first(h_before + (n + i) * H + unit, width);
                keep(0, r), keep(1, zz), keep(2, candidate);
                store_first(a.cells + row * H + unit, tile.c[i][2], width);
                store_first(h, lives ? (T{1} - zz) * candidate + rounded(zz * before) : Vec<T>{}, width);
              }
            }
          }
        };
        Index n = share.row;
        if constexpr (kCellRows == kTileRows) {
          for_row_tiles(share.row_end - n,
                        [&]<int MR>(Index i) LEC7_LAMBDA_INLINE { rows.template operator()<MR>(share.row + i); });
        } else {
          for (; n + kCellRows <= share.row_end; n += kCellRows) rows.template operator()<kCellRows>(n);
          for (; n < share.row_end; ++n) rows.template operator()<1>(n);
        }
      }
      split.wait(team);
    }
  });

  for (Index n = 0; n < N; ++n) {
    const bool lived = walk.length(n) > 0;
    const Index at = (walk.last(n) * N + n) * H;
    if (a.h_last != nullptr) std::copy_n(lived ? a.hs + at : a.h0 + n * H, H, a.h_last + n * H);
    if (cell == Cell::lstm) std::copy_n(lived ? a.cells + at : a.c0 + n * H, H, a.c_last + n * H);
  }
}

// h before each step, (T, N, H): what Wh was multiplied with.
template <class T>
void previous_states(const RecurrentShape& s, const RecurrentBackward<T>& a, const Walk& walk, T* out) {
  const Index size = s.batch * s.hidden;
  parallel_region(s.steps * size < (1 << 16) ? 1 : s.steps, [&](const Team& team) {
    team.for_each(s.steps, [&](Index step) {
      const Index t = walk.time(step);
      std::copy_n(step == 0 ? a.h0 : a.hs + walk.before(t) * size, size, out + t * size);
    });
  });
  if (a.lengths == nullptr) return;
  for (Index n = 0; n < s.batch; ++n) {
    const Index t = walk.first(n);
    if (t >= 0) std::copy_n(a.h0 + n * s.hidden, s.hidden, out + (t * s.batch + n) * s.hidden);
  }
}

template <class T, Cell cell>
void backward(const RecurrentShape& s, const RecurrentBackward<T>& a) {
  constexpr int G = kGates<cell>;
  const Index N = s.batch, H = s.hidden, GH = s.gates(), rows = s.steps * N;
  const Walk walk{s.steps, a.lengths, a.reverse};

  // dz as Wx sees it, and, where the GRU's differs, as Wh sees it.
  // A line of padding keeps rows that stand in a cache together from sharing its sets.
  const Index ld_dz = PackedB<T>::padded_columns(GH) + W<T>;
  memory::Buffer<T> dz_x(rows * ld_dz), dz_h_storage(cell == Cell::gru ? rows * ld_dz : 0);
  T* const dz_h = cell == Cell::gru ? dz_h_storage.data() : dz_x.data();
  memory::Buffer<T> before(rows * H);
  previous_states(s, a, walk, before.data());

  // What step t sends to the step before it: through Wh (overwritten by each product), and directly (GRU's z, LSTM's
  // c).
  memory::Buffer<T> dh_product(N * H), dh_direct(cell == Cell::gru ? N * H : 0),
      dc_state(cell == Cell::lstm ? N * H : 0);
  std::fill_n(dh_product.data(), N * H, T{0});
  if (cell == Cell::gru) std::fill_n(dh_direct.data(), N * H, T{0});
  if (cell == Cell::lstm) std::fill_n(dc_state.data(), N * H, T{0});

  const Operand<T> weight_h_transposed{a.weight_h, GH, true};
  const bool unpacked = N <= 4 && s.steps < kUnpackedSteps;
  memory::Buffer<T> weight(unpacked ? 0 : PackedB<T>::size(GH, H));
  if (!unpacked) pack_b(weight_h_transposed, GH, H, weight.data());
  const PackedB<T> packed{weight.data(), GH, H};
  const Index panels = PackedB<T>::panels(H);
  const bool need_first = a.dh0 != nullptr || a.dc0 != nullptr;

  const Split split(s);
  // A task of the product is a panel of Wh^T, so units are shared in panels.
  parallel_region(unpacked ? 1 : split.threads, [&](const Team& team) {
    const Share share = split.share(team, N, panels);
    const Index unit = share.tile * kPanel<T>, unit_end = std::min(share.tile_end * kPanel<T>, H);
    for (Index step = s.steps - 1; step >= 0; --step) {
      const Index t = walk.time(step);
      for (Index n = share.row; n < share.row_end; ++n) {
        const Index row = t * N + n;
        T* const dz = dz_x.data() + row * ld_dz;
        T* const dzh = dz_h + row * ld_dz;
        T* const dc_n = dc_state.data() + n * H;
        T* const direct = dh_direct.data() + n * H;
        if (!walk.lives(t, n)) {
          for (int gate = 0; gate < G; ++gate) {
            std::fill(dz + gate * H + unit, dz + gate * H + unit_end, T{0});
            if (cell == Cell::gru) std::fill(dzh + gate * H + unit, dzh + gate * H + unit_end, T{0});
          }
          continue;
        }
        const bool last = t == walk.last(n);
        const T* const gates = a.gates + row * GH;
        const T* const c_before = t == walk.first(n) ? a.c0 + n * H : a.cells + (walk.before(t) * N + n) * H;
        for_lanes<T>(unit_end - unit, [&](Index i, auto lanes) LEC7_LAMBDA_INLINE {
          const Index j = unit + i;
          const auto gate = [&](int g) { return load_lanes(gates + g * H + j, lanes); };
          const auto put = [&](T* out, int g, Vec<T> value) { store_lanes(out + g * H + j, value, lanes); };
          Vec<T> dh = load_lanes(dh_product.data() + n * H + j, lanes);
          if (a.dhs != nullptr) dh += load_lanes(a.dhs + row * H + j, lanes);
          if (last && a.dh_last != nullptr) dh += load_lanes(a.dh_last + n * H + j, lanes);
          if constexpr (G == 1) {
            constexpr Activation f = cell == Cell::rnn_tanh ? Activation::tanh : Activation::relu;
            put(dz, 0, activate_backward<T, f>(dh, load_lanes(a.hs + row * H + j, lanes)));
          } else if constexpr (cell == Cell::lstm) {
            const Vec<T> in = gate(0), forget = gate(1), out = gate(2), g = gate(3);
            const Vec<T> tanh_c = tanh<T>(load_lanes(a.cells + row * H + j, lanes));
            Vec<T> dc = load_lanes(dc_n + j, lanes) + dh * out * (T{1} - tanh_c * tanh_c);
            if (last && a.dc_last != nullptr) dc += load_lanes(a.dc_last + n * H + j, lanes);
            put(dz, 0, dc * g * in * (T{1} - in));
            put(dz, 1, dc * load_lanes(c_before + j, lanes) * forget * (T{1} - forget));
            put(dz, 2, dh * tanh_c * out * (T{1} - out));
            put(dz, 3, dc * in * (T{1} - g * g));
            store_lanes(dc_n + j, dc * forget, lanes);
          } else {
            dh += load_lanes(direct + j, lanes);
            const Vec<T> r = gate(0), z = gate(1), candidate = gate(2);
            const Vec<T> product = load_lanes(a.cells + row * H + j, lanes);
            const Vec<T> dz_n = dh * (T{1} - z) * (T{1} - candidate * candidate);
            const Vec<T> dz_r = dz_n * product * r * (T{1} - r);
            const Vec<T> dz_z = dh * (load_lanes(before.data() + row * H + j, lanes) - candidate) * z * (T{1} - z);
            put(dz, 0, dz_r), put(dz, 1, dz_z), put(dz, 2, dz_n);
            put(dzh, 0, dz_r), put(dzh, 1, dz_z), put(dzh, 2, dz_n * r);
            store_lanes(direct + j, dh * z, lanes);
          }
        });
      }
      split.wait(team);
      if (step > 0 || a.dh0 != nullptr) {
        const T* const dz = dz_h + (t * N + share.row) * ld_dz;
        T* const out = dh_product.data() + share.row * H;
        if (unpacked) {
          gemm<T>(N, H, GH, {dz, ld_dz}, weight_h_transposed, out, H);
        } else {
          multiply_packed<T>(share.row_end - share.row, dz, ld_dz, Order::row_major, packed, share.tile, share.tile_end,
                             out, H, nullptr, false);
        }
      }
      for (Index n = share.row; need_first && n < share.row_end; ++n) {
        if (t != walk.first(n)) continue;
        for (Index j = unit; j < unit_end; ++j) {
          const Index at = n * H + j;
          if (a.dh0 != nullptr) {
            a.dh0[at] = dh_product[at] + (cell == Cell::gru ? dh_direct[at] : T{0});
          }
          if (a.dc0 != nullptr) a.dc0[at] = dc_state[at];
        }
      }
      split.wait(team);
    }
  });

  // A row that never lived hands its state through.
  for (Index n = 0; n < N; ++n) {
    if (walk.length(n) > 0) continue;
    const auto pass = [&](const T* from, T* to) {
      if (to == nullptr) return;
      if (from != nullptr) std::copy_n(from + n * H, H, to + n * H);
      else std::fill_n(to + n * H, H, T{0});
    };
    pass(a.dh_last, a.dh0);
    pass(a.dc_last, a.dc0);
  }

  // What stands in x past a row's end may be anything, NaN too: its dz is 0, but 0 times NaN is not.
  const bool ragged = a.lengths != nullptr && a.dweight_x != nullptr;
  memory::Buffer<T> living(ragged ? rows * s.inputs : 0);
  for (Index row = 0; ragged && row < rows; ++row) {
    T* const to = living.data() + row * s.inputs;
    if (walk.lives(row / N, row % N)) std::copy_n(a.x + row * s.inputs, s.inputs, to);
    else std::fill_n(to, s.inputs, T{0});
  }
  gemm_gradient(rows, s.inputs, GH, ragged ? living.data() : a.x, dz_x.data(), ld_dz, a.dweight_x, a.dbias);
  gemm_gradient<T>(rows, H, GH, before.data(), dz_h, ld_dz, a.dweight_h, nullptr);
  if (a.dx != nullptr) gemm<T>(rows, s.inputs, GH, {dz_x.data(), ld_dz}, {a.weight_x, GH, true}, a.dx, s.inputs);
}

}  // namespace

template <class T>
void recurrent_forward(const RecurrentShape& shape, const RecurrentForward<T>& arrays) {
  with_cell(shape.cell, [&]<Cell cell> { forward<T, cell>(shape, arrays); });
}

template <class T>
void recurrent_backward(const RecurrentShape& shape, const RecurrentBackward<T>& arrays) {
  with_cell(shape.cell, [&]<Cell cell> { backward<T, cell>(shape, arrays); });
}

#define LEC7_INSTANTIATE(T)                                                           \
  template void recurrent_forward(const RecurrentShape&, const RecurrentForward<T>&); \
  template void recurrent_backward(const RecurrentShape&, const RecurrentBackward<T>&);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
