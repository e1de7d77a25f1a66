// The matrix product. What each step of it is worth is in bench/README.md.
//
//   tile      6 x 4 vectors in registers, B from packed panels                  (tile.h)
//   k blocks  a panel of B is kKBlock x 64 numbers and streams from L2
//   few rows  m <= 256: a task packs one panel of B at a time, and prefetches the next one during the products
//   many rows B is packed once by all threads; a task is a block of rows times a group of panels
//   skinny    m <= 12 reads each number of B once or twice: it is not packed; one row streams whole rows of B
//   dot       few rows and B transposed: the sums run along the vectors
#include "gemm.h"

#include <algorithm>

#include "activation.h"
#include "lec7/memory.h"
#include "lec7/parallel.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kSkinnyRows = 12;
constexpr Index kDotRows = 4;
constexpr Index kFewRows = 256;
constexpr Index kFewBlock = 192;          // rows of a block of B there: 24 KiB, in L1
constexpr Index kRowBlock = 120;        // rows of A a task: 120 x 384 numbers (180 KiB) stay in L2
constexpr Index kTasks = 24;            // tasks that a large product is cut into at least, where its sizes allow
constexpr Index kSerialWork = 1 << 18;  // multiplications under which a second thread does not pay

template <class T>
Vec<T> bias_or_zero(const T* bias, Index column, Index lanes) {
  return bias == nullptr ? Vec<T>{} : load_first(bias + column, lanes);
}

// A block of C that no product reaches (k = 0).
template <class T>
void fill_bias(Index m, Index n, T* c, Index ldc, const T* bias) {
  for (Index i = 0; i < m; ++i) {
    for (Index j = 0; j < n; ++j) c[i * ldc + j] = bias == nullptr ? T{0} : bias[j];
  }
}

// One row: y = bias + x B, streaming four rows of B at a time; y stays in L1.
template <class T>
void multiply_row(Index n, Index k, const T* x, Index x_stride, const T* b, Index ldb, T* y, const T* bias) {
  for_lanes<T>(n, [&](Index j, auto lanes) { store_lanes(y + j, bias_or_zero(bias, j, lanes), lanes); });
  constexpr int R = 4;
  Index row = 0;
  for (; row + R <= k; row += R) {
    T s[R];
    LEC7_UNROLL
    for (int r = 0; r < R; ++r) s[r] = x[(row + r) * x_stride];
    const T* const p = b + row * ldb;
    for_lanes<T>(n, [&](Index j, auto lanes) {
      Vec<T> even = load_lanes(y + j, lanes), odd{};
      LEC7_UNROLL
      for (int r = 0; r < R; r += 2) {
        even += s[r] * load_lanes(p + r * ldb + j, lanes);
        odd += s[r + 1] * load_lanes(p + (r + 1) * ldb + j, lanes);
      }
      store_lanes(y + j, even + odd, lanes);
    });
  }
  for (; row < k; ++row) {
    const T s = x[row * x_stride];
    for_lanes<T>(n, [&](Index j, auto lanes) {
      store_lanes(y + j, load_lanes(y + j, lanes) + s * load_lanes(b + row * ldb + j, lanes), lanes);
    });
  }
}

template <class T>
void gemm_skinny(Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index ldc, const T* bias,
                 Activation activation, Index threads) {
  // One row wants long streams, several rows want the tile's columns.
  const Index columns = m == 1 ? 1024 : kPanel<T>;
  const Index tasks = (n + columns - 1) / columns;
  parallel_region(std::min(threads, tasks), [&](const Team& team) {
    team.for_each(tasks, [&](Index task) {
      const Index j = task * columns;
      const Index width = std::min(columns, n - j);
      const T* const bias_j = bias == nullptr ? nullptr : bias + j;
      if (m == 1) {
        multiply_row(width, k, a.data, a.transposed ? a.ld : 1, b.data + j, b.ld, c + j, bias_j);
      } else {
        with_vectors<T>(width, [&]<int NV> {
          for_row_tiles(m, [&]<int MR>(Index i) LEC7_LAMBDA_INLINE {
            Tile<T, MR, NV> tile;
            if (bias != nullptr) tile.load_columns(bias_j, 0, width);
            else tile.zero();
            if (a.transposed) {
              tile.template multiply_unpacked<Order::transposed>(k, a.data + i, a.ld, b.data + j, b.ld, width);
            } else {
              tile.template multiply_unpacked<Order::row_major>(k, a.data + i * a.ld, a.ld, b.data + j, b.ld, width);
            }
            tile.store_columns(c + i * ldc + j, ldc, width);
          });
        });
      }
      activate_rows(activation, m, width, c + j, ldc);
    });
  });
}

// Row i of A times rows j .. j + NR of the stored (transposed) B.
template <class T, int NR>
LEC7_INLINE void dot(Index k, const T* a, const T* b, Index ldb, T* y, const T* bias) {
  Vec<T> sum[NR];
  LEC7_UNROLL
  for (int j = 0; j < NR; ++j) sum[j] = Vec<T>{};
  for_lanes<T>(k, [&](Index i, auto lanes) {
    const Vec<T> x = load_lanes(a + i, lanes);
    LEC7_UNROLL
    for (int j = 0; j < NR; ++j) sum[j] += x * load_lanes(b + j * ldb + i, lanes);
  });
  LEC7_UNROLL
  for (int j = 0; j < NR; ++j) y[j] = reduce_sum<T>(sum[j]) + (bias == nullptr ? T{0} : bias[j]);
}

template <class T>
void gemm_dot(Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index ldc, const T* bias,
              Activation activation, Index threads) {
  constexpr Index columns = 64;
  constexpr int NR = 8;
  const Index tasks = (n + columns - 1) / columns;
  parallel_region(std::min(threads, tasks), [&](const Team& team) {
    team.for_each(tasks, [&](Index task) {
      const Index begin = task * columns, end = std::min(begin + columns, n);
      for (Index i = 0; i < m; ++i) {
        const T* const row = a.data + i * a.ld;
        T* const y = c + i * ldc;
        Index j = begin;
        for (; j + NR <= end; j += NR) {
          dot<T, NR>(k, row, b.data + j * b.ld, b.ld, y + j, bias == nullptr ? nullptr : bias + j);
        }
        for (; j < end; ++j) dot<T, 1>(k, row, b.data + j * b.ld, b.ld, y + j, bias == nullptr ? nullptr : bias + j);
      }
      activate_rows(activation, m, end - begin, c + begin, ldc);
    });
  });
}

// Rows of a matrix that are wanted soon: a panel's width of each.
template <class T>
struct Upcoming {
  const T* data = nullptr;
  Index ld = 0;
  Index rows = 0;
};

// C = or += A (m x rows of this block) times one packed panel. before_tile(row, rows of the tile) runs before each tile
// and returns what to prefetch while it computes.
template <class T, Order order, class BeforeTile>
LEC7_INLINE void multiply_panel(Index m, const T* a, Index lda, Index rows, const T* panel, Index width, T* c,
                                Index ldc, const T* bias, bool accumulate, BeforeTile&& before_tile) {
  with_vectors<T>(width, [&]<int NV> {
    const bool whole = width == NV * W<T>;
    for_row_tiles(m, [&]<int MR>(Index i) LEC7_LAMBDA_INLINE {
      Tile<T, MR, NV> tile;
      T* const ci = c + i * ldc;
      const Upcoming<T> upcoming = before_tile(i, MR);
      tile.prefetch(ci, ldc);
      tile.zero();
      // Prefetches are spread over the tile: in one burst they would fill the line buffers and stop the loads.
      const T* const ai = order == Order::row_major ? a + i * lda : a + i;
      Index step = 0;
      for (Index row = 0; row < upcoming.rows; ++row) {
        LEC7_UNROLL
        for (int v = 0; v < kTileVectors; ++v) __builtin_prefetch(upcoming.data + row * upcoming.ld + v * W<T>, 0, 2);
        const Index to = rows * (row + 1) / upcoming.rows;
        tile.template multiply<order>(to - step, ai + step * (order == Order::row_major ? 1 : lda), lda,
                                      panel + step * NV * W<T>, NV * W<T>);
        step = to;
      }
      tile.template multiply<order>(rows - step, ai + step * (order == Order::row_major ? 1 : lda), lda,
                                    panel + step * NV * W<T>, NV * W<T>);
      // What the tile starts from is added at the end: loading it first would hold up the first products.
      if (accumulate) tile.add_columns(ci, ldc, width);
      else if (bias != nullptr) tile.add_columns(bias, 0, width);
      if (whole) tile.store_to(ci, ldc);
      else tile.store_columns(ci, ldc, width);
    });
  });
}

// Copies the k0 .. k0 + rows columns of m rows of A (or, transposed, m columns of its rows) next to each other: rows
// a power of two apart would share a few sets of the cache.
template <class T>
void copy_block(Index m, Operand<T> a, Index row, Index k0, Index rows, T* out, Index ld_out) {
  const Index lines = a.transposed ? rows : m;
  const Index length = a.transposed ? m : rows;
  const T* p = a.transposed ? a.data + k0 * a.ld + row : a.data + row * a.ld + k0;
  for (Index i = 0; i < lines; ++i, p += a.ld, out += ld_out) {
    for_lanes<T>(length, [&](Index j, auto lanes) { store_lanes(out + j, load_lanes(p + j, lanes), lanes); });
  }
}

template <class T>
void gemm_few_rows(Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index ldc, const T* bias,
                   Activation activation, Index threads) {
  const Index panels = PackedB<T>::panels(n);
  const Index blocks = (k + kFewBlock - 1) / kFewBlock;
  const Index block = (k + blocks - 1) / blocks;
  const Index scratch = (2 * block + m) * kPanel<T>;
  threads = std::min(threads, panels);
  memory::Buffer<T> buffer(std::min<Index>(threads, num_threads()) * scratch);
  parallel_region(threads, [&](const Team& team) {
    T* current = buffer.data() + team.thread * scratch;
    T* next = current + block * kPanel<T>;
    T* const sum = buffer.data() + team.thread * scratch + 2 * block * kPanel<T>;
    team.for_each(panels, [&](Index panel) {
      const Index j = panel * kPanel<T>;
      const Index width = std::min(kPanel<T>, n - j);
      const T* const bias_j = bias == nullptr ? nullptr : bias + j;
      pack_panel(b, n, 0, std::min(block, k), panel, current);
      for (Index k0 = 0; k0 < k; k0 += block) {
        const Index rows = std::min(block, k - k0);
        const Index next_k0 = k0 + rows;
        const Index next_rows = std::min(block, k - next_k0);
        // Before each tile, its share of the next block of B is packed and the share after it prefetched, so that B
        // comes from memory while the tiles compute.
        const auto pack_share = [&](Index i, Index tile_rows) -> Upcoming<T> {
          if (next_rows == 0) return {};
          if (b.transposed) {
            if (i == 0) pack_panel(b, n, next_k0, next_rows, panel, next);
            return {};
          }
          const Index from = next_rows * i / m, to = next_rows * (i + tile_rows) / m;
          pack_panel(b, n, next_k0 + from, to - from, panel, next + from * PackedB<T>::padded_columns(width));
          return {b.data + (next_k0 + to) * b.ld + j, b.ld, std::min(next_rows - to, to - from)};
        };
        if (a.transposed) {
          multiply_panel<T, Order::transposed>(m, a.data + k0 * a.ld, a.ld, rows, current, width, sum, kPanel<T>, bias_j,
                                               k0 > 0, pack_share);
        } else {
          multiply_panel<T, Order::row_major>(m, a.data + k0, a.ld, rows, current, width, sum, kPanel<T>, bias_j, k0 > 0,
                                              pack_share);
        }
        std::swap(current, next);
      }
      activate_rows(activation, m, width, sum, kPanel<T>);
      for (Index i = 0; i < m; ++i) {
        for_lanes<T>(width, [&](Index v, auto lanes) {
          store_lanes(c + i * ldc + j + v, load_lanes(sum + i * kPanel<T> + v, lanes), lanes);
        });
      }
    });
  });
}

template <class T>
void gemm_many_rows(Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index ldc, const T* bias,
                    Activation activation, Index threads) {
  const Index panels = PackedB<T>::panels(n);
  const Index block = PackedB<T>::block_rows(k);
  const Index blocks = (k + block - 1) / block;
  const Index row_blocks = (m + kRowBlock - 1) / kRowBlock;
  const Index row_block = ((m + row_blocks - 1) / row_blocks + kTileRows - 1) / kTileRows * kTileRows;
  const Index wanted_groups = std::min(panels, (kTasks + row_blocks - 1) / row_blocks);
  const Index group = (panels + wanted_groups - 1) / wanted_groups;
  const Index groups = (panels + group - 1) / group;
  const Index ld_copy = (a.transposed ? row_block : block) + W<T>;
  const Index copy_size = (a.transposed ? block : row_block) * ld_copy;

  memory::Buffer<T> packed(PackedB<T>::size(k, n));
  // A block of A is read once for each panel, so it should stay in L2; rows a multiple of 16 KiB apart share too few
  // sets for that, and a transposed A has its numbers in the wrong order.
  const bool copied = a.transposed || a.ld * static_cast<Index>(sizeof(T)) % (1 << 14) == 0;
  memory::Buffer<T> copies(copied ? std::min<Index>(threads, num_threads()) * copy_size : 0);
  parallel_region(threads, [&](const Team& team) {
    team.for_each(panels * blocks, [&](Index task) {
      const Index k0 = task / panels * block, panel = task % panels;
      const Index rows = std::min(block, k - k0);
      pack_panel(b, n, k0, rows, panel, packed.data() + k0 * PackedB<T>::padded_columns(n) + panel * kPanel<T> * rows);
    });
    T* const copy = copies.data() + team.thread * copy_size;
    team.for_each(row_blocks * groups, [&](Index task) {
      const Index row = task / groups * row_block;
      const Index m_task = std::min(row_block, m - row);
      if (m_task <= 0) return;
      const Index first = task % groups * group, last = std::min(first + group, panels);
      T* const c_row = c + row * ldc;
      for (Index k0 = 0; k0 < k; k0 += block) {
        const Index rows = std::min(block, k - k0);
        const PackedB<T> part{packed.data() + k0 * PackedB<T>::padded_columns(n), rows, n};
        if (copied) {
          copy_block(m_task, a, row, k0, rows, copy, ld_copy);
          multiply_packed(m_task, copy, ld_copy, a.transposed ? Order::transposed : Order::row_major, part, first, last,
                          c_row, ldc, bias, k0 > 0);
        } else {
          multiply_packed(m_task, a.data + row * a.ld + k0, a.ld, Order::row_major, part, first, last, c_row, ldc, bias,
                          k0 > 0);
        }
      }
      const Index j = first * kPanel<T>;
      activate_rows(activation, m_task, std::min(last * kPanel<T>, n) - j, c_row + j, ldc);
    });
  });
}

}  // namespace

template <class T>
void pack_panel(Operand<T> b, Index n, Index k0, Index rows, Index panel, T* packed) {
  const Index j = panel * kPanel<T>;
  const Index width = std::min(kPanel<T>, n - j);
  const Index padded = PackedB<T>::padded_columns(width);
  if (!b.transposed) {
    const T* p = b.data + k0 * b.ld + j;
    if (width == kPanel<T>) {
      for (Index row = 0; row < rows; ++row, p += b.ld, packed += kPanel<T>) {
        LEC7_UNROLL
        for (int v = 0; v < kTileVectors; ++v) store(packed + v * W<T>, load(p + v * W<T>));
      }
    } else {
      for (Index row = 0; row < rows; ++row, p += b.ld, packed += padded) {
        for (Index v = 0; v < padded; v += W<T>) store(packed + v, load_first(p + v, std::min<Index>(W<T>, width - v)));
      }
    }
    return;
  }
  // W columns of the panel are W rows in memory: transposed in registers, W numbers at a time.
  for (Index v = 0; v < padded; v += W<T>) {
    const Index columns = std::min<Index>(W<T>, width - v);
    const T* const p = b.data + (j + v) * b.ld + k0;
    Index row = 0;
    for (; row < rows; row += W<T>) {
      const Index length = std::min<Index>(W<T>, rows - row);
      Vec<T> square[W<T>];
      LEC7_UNROLL
      for (int i = 0; i < W<T>; ++i) {
        square[i] = i >= columns     ? Vec<T>{}
                    : length == W<T> ? load(p + i * b.ld + row)
                                     : load_first(p + i * b.ld + row, length);
      }
      transpose<T>(square);
      LEC7_UNROLL
      for (int i = 0; i < W<T>; ++i) {
        if (i < length) store(packed + (row + i) * padded + v, square[i]);
      }
    }
  }
}

template <class T>
void pack_b(Operand<T> b, Index k, Index n, T* packed) {
  const Index panels = PackedB<T>::panels(n);
  const Index block = PackedB<T>::block_rows(k);
  const Index blocks = k == 0 ? 0 : (k + block - 1) / block;
  parallel_region(k * n < kSerialWork ? 1 : panels * blocks, [&](const Team& team) {
    team.for_each(panels * blocks, [&](Index task) {
      const Index k0 = task / panels * block, panel = task % panels;
      const Index rows = std::min(block, k - k0);
      pack_panel(b, n, k0, rows, panel, packed + k0 * PackedB<T>::padded_columns(n) + panel * kPanel<T> * rows);
    });
  });
}

template <class T>
void multiply_packed(Index m, const T* a, Index lda, Order order, PackedB<T> b, Index first, Index last, T* c,
                     Index ldc, const T* bias, bool accumulate) {
  const auto nothing = [](Index, Index) { return Upcoming<T>{}; };
  if (b.k == 0 && !accumulate) {
    fill_bias(m, std::min(last * kPanel<T>, b.n) - first * kPanel<T>, c + first * kPanel<T>, ldc,
              bias == nullptr ? nullptr : bias + first * kPanel<T>);
    return;
  }
  const Index block = b.k == 0 ? 1 : PackedB<T>::block_rows(b.k);
  for (Index k0 = 0; k0 < b.k; k0 += block) {
    const Index rows = std::min(block, b.k - k0);
    for (Index panel = first; panel < last; ++panel) {
      const Index j = panel * kPanel<T>;
      const Index width = std::min(kPanel<T>, b.n - j);
      const T* const data = b.data + k0 * PackedB<T>::padded_columns(b.n) + panel * kPanel<T> * rows;
      const T* const bias_j = bias == nullptr ? nullptr : bias + j;
      const bool add = accumulate || k0 > 0;
      if (order == Order::row_major) {
        multiply_panel<T, Order::row_major>(m, a + k0, lda, rows, data, width, c + j, ldc, bias_j, add, nothing);
      } else {
        multiply_panel<T, Order::transposed>(m, a + k0 * lda, lda, rows, data, width, c + j, ldc, bias_j, add, nothing);
      }
    }
  }
}

template <class T>
void gemm(Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index ldc, const T* bias,
          Activation activation) {
  if (m == 0 || n == 0) return;
  const Index threads = m * n * k < kSerialWork ? 1 : kParallel;
  if (k == 0) {
    fill_bias(m, n, c, ldc, bias);
    activate_rows(activation, m, n, c, ldc);
  } else if (!b.transposed && m <= kSkinnyRows) {
    gemm_skinny(m, n, k, a, b, c, ldc, bias, activation, threads);
  } else if (b.transposed && !a.transposed && m <= kDotRows) {
    gemm_dot(m, n, k, a, b, c, ldc, bias, activation, threads);
  } else if (m <= kFewRows) {
    gemm_few_rows(m, n, k, a, b, c, ldc, bias, activation, threads);
  } else {
    gemm_many_rows(m, n, k, a, b, c, ldc, bias, activation, threads);
  }
}

#define LEC7_INSTANTIATE(T)                                                                         \
  template void gemm(Index, Index, Index, Operand<T>, Operand<T>, T*, Index, const T*, Activation); \
  template void pack_panel(Operand<T>, Index, Index, Index, Index, T*);                             \
  template void pack_b(Operand<T>, Index, Index, T*);                                               \
  template void multiply_packed(Index, const T*, Index, Order, PackedB<T>, Index, Index, T*, Index, const T*, bool);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
