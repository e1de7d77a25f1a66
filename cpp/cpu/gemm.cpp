// The matrix product. What each step of it is worth is in bench/README.md.
//
//   tile      6 x 4 vectors in registers, B from packed panels                  (tile.h)
//   k blocks  a panel of B is kKBlock x 64 numbers and streams from L2
//   few rows  m <= 255: a task takes a strip of panels of B and packs its next rows during the products
//   many rows B is packed once; threads divide the columns, or tasks of a block of rows times a group of panels
//   skinny    m <= 12 (6 where B is big) reads each number of B once or twice and does not pack it; one row streams B
//   gradient  x^T dz of a sequence: many rows, summed block by block into a C that stays in L2
//   dot       few rows and B transposed: the sums run along the vectors
#include "gemm.h"

#include <algorithm>

#include "activation.h"
#include "lec7/memory.h"
#include "lec7/parallel.h"
#include "scratch.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kSkinnyRows = 6;           // rows that one tile holds: B is read once
constexpr Index kSkinnySmallRows = 12;     // twice, where B is small enough to come from a cache the second time
constexpr Index kSkinnyNumbers = 1 << 21;  // numbers of such a B
constexpr Index kDotRows = 4;
constexpr Index kFewRows = 255;
constexpr Index kOneStripRows = 95;        // where all columns are one strip, which one thread takes
constexpr Index kStripBlock = 160;         // rows of a block of B there
constexpr Index kPackRows = 16;            // rows of B that a task packs
constexpr Index kRowBlock = 120;           // rows of A a task: 120 x 512 numbers (240 KiB) stay in L2
constexpr Index kOwnPanelRows = 8;         // rows of A for each column of C, up to which threads divide the columns
constexpr Index kTasks = 24;               // tasks that a large product is cut into at least, where its sizes allow
constexpr Index kGradientTasks = 4;        // tasks of a weight gradient at least
constexpr Index kCachedNumbers = 1 << 18;  // numbers of an operand (1 MiB in float32) that stays in L2
constexpr Index kStreamRows = 24;          // rows whose products take as long as the next panel from memory
constexpr Index kGradientColumns = 255;    // columns of x up to which its gradient is kept in L2
constexpr Index kGradientBlock = 192;      // rows of such a block at least
constexpr Index kSerialWork = 1 << 18;     // multiplications under which a second thread does not pay

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
      for (int r = 0; r < R; ++r) __builtin_prefetch(p + (r + R) * ldb + j, 0, 3);
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
    team.for_share(tasks, [&](Index task) {
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
    team.for_share(tasks, [&](Index task) {
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

// Pieces of a matrix that are wanted soon: piece u is the panel's width of row u / across, at column u % across panels.
// One prefetch each where they are dense: the hardware brings the lines after it to L2 by itself, and software
// prefetches of all of them would fill the line buffers that the tile's own loads need (a block of Winograd's products
// with filters from L3: 72 % of peak, 70 % with a prefetch of every line, 86 % with every fourth).
template <class T>
struct Upcoming {
  const T* data = nullptr;
  Index ld = 0, across = 1;
  Index first = 0, last = 0;
  bool dense = false;  // pieces follow each other

  LEC7_INLINE void prefetch(Index piece) const {
    const T* const p = data + piece / across * ld + piece % across * kPanel<T>;
    __builtin_prefetch(p, 0, 2);
    if (dense) return;
    LEC7_UNROLL
    for (int v = 1; v < kTileVectors; ++v) __builtin_prefetch(p + v * W<T>, 0, 2);
  }
};

// C = or += A (m x rows of this block) times one panel, whose rows stand ldb apart. before_tile(row, rows of the tile)
// runs before each tile and returns what to prefetch while it computes.
template <class T, Order order, class BeforeTile>
LEC7_INLINE void multiply_panel(Index m, const T* a, Index lda, Index rows, const T* panel, Index ldb, Index width,
                                T* c, Index ldc, const T* bias, bool accumulate, BeforeTile&& before_tile) {
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
      const Index pieces = upcoming.last - upcoming.first;
      Index step = 0;
      for (Index piece = 0; piece < pieces; ++piece) {
        upcoming.prefetch(upcoming.first + piece);
        const Index to = rows * (piece + 1) / pieces;
        tile.template multiply<order>(to - step, ai + step * (order == Order::row_major ? 1 : lda), lda,
                                      panel + step * ldb, ldb);
        step = to;
      }
      tile.template multiply<order>(rows - step, ai + step * (order == Order::row_major ? 1 : lda), lda,
                                    panel + step * ldb, ldb);
      // What the tile starts from is added at the end: loading it first would hold up the first products.
      if (accumulate) tile.add_columns(ci, ldc, width);
      else if (bias != nullptr) tile.add_columns(bias, 0, width);
      if (whole) tile.store_to(ci, ldc);
      else tile.store_columns(ci, ldc, width);
    });
  });
}

// C = A (row-major or transposed) times one packed panel, the order chosen at run time.
template <class T, class BeforeTile>
void multiply_panel_ordered(Index m, const T* a, Index lda, Order order, Index rows, const T* panel, Index width, T* c,
                            Index ldc, const T* bias, bool accumulate, BeforeTile&& before_tile) {
  const Index ldb = PackedB<T>::padded_columns(width);
  if (order == Order::row_major) {
    multiply_panel<T, Order::row_major>(m, a, lda, rows, panel, ldb, width, c, ldc, bias, accumulate, before_tile);
  } else {
    multiply_panel<T, Order::transposed>(m, a, lda, rows, panel, ldb, width, c, ldc, bias, accumulate, before_tile);
  }
}

template <class T>
Order order_of(Operand<T> a) {
  return a.transposed ? Order::transposed : Order::row_major;
}

// The number at (row, k) of A.
template <class T>
const T* at(Operand<T> a, Index row, Index k) {
  return a.data + (a.transposed ? k * a.ld + row : row * a.ld + k);
}

// Whether lines of A that stand in the cache together would share too few of its sets.
template <class T>
bool collides(Operand<T> a) {
  return a.ld * static_cast<Index>(sizeof(T)) % (a.transposed ? 1 << 10 : 1 << 14) == 0;
}

// Packs pieces [from, to) of a block of `rows` rows of B from k0: piece u is row u / across of panel first + u %
// across.
template <class T>
void pack_pieces(Operand<T> b, Index n, Index k0, Index rows, Index first, Index across, Index from, Index to,
                 T* packed) {
  Index row = from / across, panel = from % across;
  for (Index piece = from; piece < to; ++piece) {
    const Index j = (first + panel) * kPanel<T>;
    T* const out = packed + panel * kPanel<T> * rows;
    if (n - j >= kPanel<T>) {
      const T* const p = b.data + (k0 + row) * b.ld + j;
      LEC7_UNROLL
      for (int v = 0; v < kTileVectors; ++v) store(out + row * kPanel<T> + v * W<T>, load(p + v * W<T>));
    } else {
      pack_panel(b, n, k0 + row, 1, first + panel, out + row * PackedB<T>::padded_columns(n - j));
    }
    if (++panel == across) panel = 0, ++row;
  }
}

// sum = or += the rows of a panel, of which whole vectors are there.
template <class T>
void add_rows(Index rows, Index width, const T* panel, Index ld, T* sum, bool accumulate) {
  with_vectors<T>(width, [&]<int NV> {
    Vec<T> s[NV] = {};
    for (Index row = 0; row < rows; ++row) {
      LEC7_UNROLL
      for (int v = 0; v < NV; ++v) s[v] += load(panel + row * ld + v * W<T>);
    }
    for (int v = 0; v < NV; ++v) {
      const Index lanes = std::min<Index>(W<T>, width - v * W<T>);
      if (accumulate) s[v] += load_first(sum + v * W<T>, lanes);
      store_first(sum + v * W<T>, s[v], lanes);
    }
  });
}

template <class T>
void gemm_few_rows(Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index ldc, const T* bias,
                   Activation activation, Index threads) {
  const Index panels = PackedB<T>::panels(n);
  const Index across = std::clamp<Index>(panels / 8, 1, 8);
  const Index strips = (panels + across - 1) / across;
  const Index blocks = (k + kStripBlock - 1) / kStripBlock;
  const Index block = (k + blocks - 1) / blocks;
  const Index block_size = block * across * kPanel<T>, ld_sum = across * kPanel<T> + W<T>;
  const Index scratch = 2 * block_size + m * ld_sum;
  threads = std::min(threads, strips);
  Scratch<T> buffer(threads, scratch);
  parallel_region(threads, [&](const Team& team) {
    T* current = buffer[team.thread];
    T* next = current + block_size;
    T* const sum = next + block_size;
    team.for_each(strips, [&](Index strip) {
      const Index first = strip * across, count = std::min(across, panels - first);
      const Index j0 = first * kPanel<T>;
      for (Index panel = 0; panel < count; ++panel) {
        pack_panel(b, n, 0, block, first + panel, current + panel * kPanel<T> * block);
      }
      for (Index k0 = 0; k0 < k; k0 += block) {
        const Index rows = std::min(block, k - k0);
        const Index next_k0 = k0 + rows;
        const Index next_rows = std::min(block, k - next_k0);
        for (Index panel = 0; panel < count; ++panel) {
          const Index j = panel * kPanel<T>;
          // Before each tile, its share of the next block of B is packed and the share after it prefetched, so that B
          // comes from memory while the tiles compute.
          const auto pack_share = [&](Index i, Index tile_rows) -> Upcoming<T> {
            if (next_rows == 0) return {};
            if (b.transposed) {
              if (i == 0) pack_panel(b, n, next_k0, next_rows, first + panel, next + j * next_rows);
              return {};
            }
            const Index pieces = next_rows * count;
            const Index from = pieces * (panel * m + i) / (count * m);
            const Index to = pieces * (panel * m + i + tile_rows) / (count * m);
            pack_pieces(b, n, next_k0, next_rows, first, count, from, to, next);
            return {b.data + next_k0 * b.ld + j0, b.ld, count, to, std::min(pieces, 2 * to - from)};
          };
          multiply_panel_ordered(m, at(a, 0, k0), a.ld, order_of(a), rows, current + j * rows,
                                 std::min(kPanel<T>, n - j0 - j), sum + j, ld_sum,
                                 bias == nullptr ? nullptr : bias + j0 + j, k0 > 0, pack_share);
        }
        std::swap(current, next);
      }
      const Index width = std::min(count * kPanel<T>, n - j0);
      activate_rows(activation, m, width, sum, ld_sum);
      for (Index i = 0; i < m; ++i) {
        for_lanes<T>(width, [&](Index v, auto lanes) {
          store_lanes(c + i * ldc + j0 + v, load_lanes(sum + i * ld_sum + v, lanes), lanes);
        });
      }
    });
  });
}

template <class T>
void gemm_many_rows(Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index ldc, const T* bias,
                    Activation activation, Index threads) {
  const Index panels = PackedB<T>::panels(n);
  const Index row_blocks = (m + kRowBlock - 1) / kRowBlock;
  const Index row_block = ((m + row_blocks - 1) / row_blocks + kTileRows - 1) / kTileRows * kTileRows;
  memory::Buffer<T> packed(PackedB<T>::size(k, n));
  const auto multiply = [&](Index row, Index first, Index last) {
    const Index rows = std::min(row_block, m - row), j = first * kPanel<T>;
    if (rows <= 0) return;
    multiply_packed(rows, at(a, row, 0), a.ld, order_of(a), {packed.data(), k, n}, first, last, c + row * ldc, ldc,
                    bias, false);
    activate_rows(activation, rows, std::min(last * kPanel<T>, n) - j, c + row * ldc + j, ldc);
  };
  // Where each thread can have as many panels, it packs its own: lines that another core has just written come slowly,
  // and there is nothing to wait for. But then each reads all of A, which must not be long.
  const Index own = std::min<Index>(threads, num_threads());
  if (panels % own == 0 && m <= kOwnPanelRows * n) {
    parallel_region(own, [&](const Team& team) {
      const Index first = panels * team.thread / team.threads, last = panels * (team.thread + 1) / team.threads;
      for (Index k0 = 0; k0 < k; k0 += PackedB<T>::block_rows(k)) {
        const Index rows = std::min(PackedB<T>::block_rows(k), k - k0), across = last - first;
        T* const to = packed.data() + k0 * PackedB<T>::padded_columns(n) + first * kPanel<T> * rows;
        if (b.transposed) {
          for (Index i = 0; i < across; ++i) pack_panel(b, n, k0, rows, first + i, to + i * kPanel<T> * rows);
        } else {
          pack_pieces(b, n, k0, rows, first, across, 0, rows * across, to);
        }
      }
      for (Index row = 0; row < m; row += row_block) multiply(row, first, last);
    });
    return;
  }
  const Index wanted_groups = std::min(panels, (kTasks + row_blocks - 1) / row_blocks);
  const Index group = (panels + wanted_groups - 1) / wanted_groups;
  const Index groups = (panels + group - 1) / group;
  pack_b(b, k, n, packed.data());
  parallel_region(threads, [&](const Team& team) {
    team.for_each(row_blocks * groups, [&](Index task) {
      const Index first = task % groups * group;
      multiply(task / groups * row_block, first, std::min(first + group, panels));
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
  const auto at_block = [&](Index k0) { return packed + k0 * PackedB<T>::padded_columns(n); };
  // Row-major B is read by whole rows, which the hardware prefetches; a transposed one by panels, for the same reason.
  const Index chunks = b.transposed ? panels : (block + kPackRows - 1) / kPackRows;
  parallel_region(k * n < (1 << 16) ? 1 : blocks * chunks, [&](const Team& team) {
    team.for_each(blocks * chunks, [&](Index task) {
      const Index k0 = task / chunks * block, chunk = task % chunks;
      const Index rows = std::min(block, k - k0);
      if (b.transposed) {
        pack_panel(b, n, k0, rows, chunk, at_block(k0) + chunk * kPanel<T> * rows);
      } else {
        const Index from = std::min(rows, chunk * kPackRows), to = std::min(rows, from + kPackRows);
        pack_pieces(b, n, k0, rows, 0, panels, from * panels, to * panels, at_block(k0));
      }
    });
  });
}

template <class T>
void multiply_packed(Index m, const T* a, Index lda, Order order, PackedB<T> b, Index first, Index last, T* c,
                     Index ldc, const T* bias, bool accumulate, Ahead<T> ahead) {
  if (b.k == 0 && !accumulate) {
    fill_bias(m, std::min(last * kPanel<T>, b.n) - first * kPanel<T>, c + first * kPanel<T>, ldc,
              bias == nullptr ? nullptr : bias + first * kPanel<T>);
    return;
  }
  const Index block = b.k == 0 ? 1 : PackedB<T>::block_rows(b.k);
  const bool streams = m >= kStreamRows && b.k * b.n > kCachedNumbers;
  for (Index k0 = 0; k0 < b.k; k0 += block) {
    const Index rows = std::min(block, b.k - k0);
    for (Index panel = first; panel < last; ++panel) {
      const Index j = panel * kPanel<T>;
      const Index width = std::min(kPanel<T>, b.n - j);
      const T* const data = b.data + k0 * PackedB<T>::padded_columns(b.n) + panel * kPanel<T> * rows;
      const T* const bias_j = bias == nullptr ? nullptr : bias + j;
      const T* const ak = a + (order == Order::row_major ? k0 : k0 * lda);
      // The panel after this one comes from memory while the tiles compute: reading it cold would stop them.
      const Index next_rows = panel + 1 < last ? rows : std::min(block, b.k - k0 - rows);
      const T* const next =
          panel + 1 < last ? data + kPanel<T> * rows
                           : b.data + (k0 + rows) * PackedB<T>::padded_columns(b.n) + first * kPanel<T> * next_rows;
      const auto prefetch_share = [&](Index i, Index tile_rows) -> Upcoming<T> {
        if (streams) return {next, kPanel<T>, 1, next_rows * i / m, next_rows * (i + tile_rows) / m};
        const Index pieces = k0 + rows < b.k ? 0 : ahead.numbers / kPanel<T>, done = (panel - first) * m + i;
        const Index of = (last - first) * m;
        return {ahead.data, kPanel<T>, 1, pieces * done / of, pieces * (done + tile_rows) / of, true};
      };
      multiply_panel_ordered(m, ak, lda, order, rows, data, width, c + j, ldc, bias_j, accumulate || k0 > 0,
                             prefetch_share);
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
  } else if (!b.transposed && m <= (k * n <= kSkinnyNumbers ? kSkinnySmallRows : kSkinnyRows)) {
    gemm_skinny(m, n, k, a, b, c, ldc, bias, activation, threads);
  } else if (b.transposed && !a.transposed && m <= kDotRows) {
    gemm_dot(m, n, k, a, b, c, ldc, bias, activation, threads);
  } else {
    // A is read once for each panel of B, in place, unless its rows collide: then from a copy with another stride.
    const bool copied = collides(a) && n > 4 * kPanel<T>;
    const Index lines = a.transposed ? k : m, length = a.transposed ? m : k, ld_copy = length + W<T>;
    memory::Buffer<T> copy(copied ? lines * ld_copy : 0);
    if (copied) {
      parallel_ranges(lines, 16, [&](Index begin, Index end) {
        for (Index line = begin; line < end; ++line) {
          std::copy_n(a.data + line * a.ld, length, copy.data() + line * ld_copy);
        }
      });
      a = {copy.data(), ld_copy, a.transposed};
    }
    const bool few = m <= (n <= kPanel<T> ? kOneStripRows : kFewRows);
    (few ? gemm_few_rows<T> : gemm_many_rows<T>)(m, n, k, a, b, c, ldc, bias, activation, threads);
  }
}

// Blocks of rows outside, panels of dz inside: the block of x stays in L2 for all panels, and the sums, which are few,
// come and go. A panel is read where it is: packing it would cost 7 % and save nothing.
template <class T>
void gemm_gradient(Index rows, Index columns, Index n, const T* x, const T* dz, Index ld, T* dweight, T* dbias) {
  if (rows == 0) {
    if (dweight != nullptr) std::fill_n(dweight, columns * n, T{0});
    if (dbias != nullptr) std::fill_n(dbias, n, T{0});
    return;
  }
  // The gradients of a wide x do not stay in L2 beside it.
  const bool wide = columns > kGradientColumns;
  if (wide && dweight != nullptr) gemm<T>(columns, n, rows, {x, columns, true}, {dz, ld}, dweight, n);
  const Index m = wide || dweight == nullptr ? 0 : columns;
  const Index panels = PackedB<T>::panels(n);
  // Few panels: several tasks share one, each with its part of the weight's rows.
  const Index parts = (kGradientTasks + panels - 1) / panels, tasks = panels * parts;
  const Index most_rows = std::clamp<Index>(kCachedNumbers / std::max<Index>(m, 1), kGradientBlock, kKBlock);
  const Index blocks = (rows + most_rows - 1) / most_rows, block = (rows + blocks - 1) / blocks;
  const bool streams = rows * (n + m) > kCachedNumbers;
  parallel_region(rows * n * m < kSerialWork ? 1 : tasks, [&](const Team& team) {
    const Index begin = tasks * team.thread / team.threads, end = tasks * (team.thread + 1) / team.threads;
    for (Index k0 = 0; k0 < rows; k0 += block) {
      const Index depth = std::min(block, rows - k0), next_depth = std::min(block, rows - k0 - depth);
      for (Index task = begin; task < end; ++task) {
        const Index part = task % parts, j = task / parts * kPanel<T>, width = std::min(kPanel<T>, n - j);
        const T* const panel = dz + k0 * ld + j;
        if (part == 0 && dbias != nullptr) add_rows(depth, width, panel, ld, dbias + j, k0 > 0);
        if (m == 0) continue;
        // What comes from memory meanwhile: the next panel, then this task's share of the next block of x.
        const bool last = task + 1 == end;
        const T* const next_panel = dz + (last ? k0 + depth : k0) * ld + (last ? begin : task + 1) / parts * kPanel<T>;
        const Index of_panel = last ? next_depth : part + 1 == parts ? depth : 0;
        const Index of_x = next_depth * m / kPanel<T> / (end - begin);
        const T* const next_x = x + (k0 + depth) * m + (task - begin) * of_x * kPanel<T>;
        const Index row = m * part / parts, task_rows = m * (part + 1) / parts - row;
        multiply_panel<T, Order::transposed>(task_rows, x + k0 * m + row, m, depth, panel, ld, width,
                                             dweight + row * n + j, n, nullptr, k0 > 0,
                                             [&](Index i, Index tile_rows) -> Upcoming<T> {
                                               if (!streams) return {};
                                               const Index piece = (of_panel + of_x) * i / task_rows;
                                               const Index piece_end = (of_panel + of_x) * (i + tile_rows) / task_rows;
                                               if (piece < of_panel)
                                                 return {next_panel, ld, 1, piece, std::min(piece_end, of_panel)};
                                               return {next_x, kPanel<T>, 1, piece - of_panel, piece_end - of_panel};
                                             });
      }
    }
  });
}

#define LEC7_INSTANTIATE(T)                                                                                         \
  template void gemm(Index, Index, Index, Operand<T>, Operand<T>, T*, Index, const T*, Activation);                 \
  template void pack_panel(Operand<T>, Index, Index, Index, Index, T*);                                             \
  template void pack_b(Operand<T>, Index, Index, T*);                                                               \
  template void gemm_gradient(Index, Index, Index, const T*, const T*, Index, T*, T*);                              \
  template void multiply_packed(Index, const T*, Index, Order, PackedB<T>, Index, Index, T*, Index, const T*, bool, \
                                Ahead<T>);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
