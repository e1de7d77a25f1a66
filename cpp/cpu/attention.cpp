// Attention in blocks of queries and keys with an online softmax.
//
//   strip     a tile's rows of queries x one block of keys: scores, softmax and the product with v stay in L1
//   packed    keys are transposed into panels once a task, so that scores come from register tiles
//   few rows  up to kDotRows queries (a decoder's step) take dot products with the keys where they stand
//   causal    blocks above the diagonal are skipped, and blocks on it are cut to what the strip sees
//   backward  one pass over blocks of keys recomputes p and gives dq, dk and dv; few heads are cut into chunks of keys,
//             whose parts of dq are added in order
#include "lec7/attention.h"

#include <algorithm>
#include <cmath>

#include "gemm.h"
#include "scratch.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kQueryBlock = 192;  // forward: queries that pass over a block of keys while it is in L2
constexpr Index kKeyBlock = 512;    // a strip of scores (6 x 512, 12 KiB) stays in L1
constexpr Index kBackwardQueries = 96;
constexpr Index kBackwardKeys = 128;
constexpr Index kDotRows = 4;           // queries up to which transposing the keys does not pay
constexpr Index kManyHeads = 16;        // from here on, heads alone are tasks enough
constexpr Index kTaskQueries = 384;     // queries a forward task where heads are few
constexpr Index kSerialWork = 1 << 18;  // multiplications under which a second thread does not pay

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

template <class T>
constexpr Index whole_vectors(Index n) {
  return ceil_div(n, W<T>) * W<T>;
}

template <class T>
constexpr T kMinusInfinity = -std::numeric_limits<T>::infinity();

// out (rows x width, zeros past n) = factor * x (rows x n).
template <class T>
void copy_padded(Index rows, Index n, const T* x, T factor, T* out, Index width) {
  for (Index row = 0; row < rows; ++row, x += n, out += width) {
    for_lanes<T>(n, [&](Index j, auto lanes) { store(out + j, load_lanes(x + j, lanes) * factor); });
  }
}

// Vectors that a strip's rows meet in dot products: transposed into panels, or as they stand.
template <class T>
struct Vectors {
  const T* rows;
  Index count, size;
  const T* panels;  // null: not packed

  static Index packed_size(Index count, Index size) { return whole_vectors<T>(count) * size; }

  static Vectors pack(const T* rows, Index count, Index size, T* panels) {
    for (Index panel = 0; panel * kPanel<T> < count; ++panel) {
      pack_panel<T>({rows, size, true}, count, 0, size, panel, panels + panel * kPanel<T> * size);
    }
    return {rows, count, size, panels};
  }
};

// out[r][j] = a[r] . x[begin + j] for j < count, and whatever up to the next whole vector; `begin` starts a panel.
template <class T, int MR>
LEC7_INLINE void dot_products(const T* a, Index lda, const Vectors<T>& x, Index begin, Index count, T* out,
                              Index ld_out) {
  if (x.panels != nullptr) {
    for (Index j = 0; j < count; j += kPanel<T>) {
      const T* const panel = x.panels + (begin + j) * x.size;
      const Index ld = whole_vectors<T>(std::min(kPanel<T>, x.count - begin - j));
      with_vectors<T>(std::min(kPanel<T>, count - j), [&]<int NV> {
        Tile<T, MR, NV> tile;
        tile.zero();
        tile.template multiply<Order::row_major>(x.size, a, lda, panel, ld);
        tile.store_to(out + j, ld_out);
      });
    }
    return;
  }
  for (Index j = 0; j < count; j += W<T>) {
    const T* const rows = x.rows + (begin + j) * x.size;
    const Index last = std::min<Index>(W<T>, count - j) - 1;
    for (int r = 0; r < MR; ++r) {
      Vec<T> sum[W<T>] = {};
      for_lanes<T>(x.size, [&](Index e, auto lanes) {
        const Vec<T> ar = load_lanes(a + r * lda + e, lanes);
        LEC7_UNROLL
        for (int l = 0; l < W<T>; ++l) sum[l] += ar * load_lanes(rows + std::min<Index>(l, last) * x.size + e, lanes);
      });
      transpose<T>(sum);
      LEC7_UNROLL
      for (int half = W<T> / 2; half > 0; half /= 2) {
        LEC7_UNROLL
        for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
      }
      store(out + r * ld_out + j, sum[0]);
    }
  }
}

template <class T, int MR, int NV>
LEC7_INLINE void load_tile(Tile<T, MR, NV>& tile, const T* c, Index ld, Index width) {
  if (width == NV * W<T>) tile.load_from(c, ld);
  else tile.load_columns(c, ld, width);
}

template <class T, int MR, int NV>
LEC7_INLINE void store_tile(const Tile<T, MR, NV>& tile, T* c, Index ld, Index width) {
  if (width == NV * W<T>) tile.store_to(c, ld);
  else tile.store_columns(c, ld, width);
}

template <class T, int MR, int NV>
LEC7_INLINE void scale_rows(Tile<T, MR, NV>& tile, const T (&factors)[MR]) {
  LEC7_UNROLL
  for (int i = 0; i < MR; ++i) {
    LEC7_UNROLL
    for (int j = 0; j < NV; ++j) tile.c[i][j] *= factors[i];
  }
}

// c (MR x n, ldc apart) += a (MR x k, or transposed) * b (k rows of whole vectors, ldb apart).
template <class T, int MR, Order order>
LEC7_INLINE void add_product(Index n, Index k, const T* a, Index lda, const T* b, Index ldb, T* c, Index ldc) {
  for (Index j = 0; j < n; j += kPanel<T>) {
    const Index width = std::min(kPanel<T>, n - j);
    with_vectors<T>(width, [&]<int NV> {
      Tile<T, MR, NV> tile;
      load_tile(tile, c + j, ldc, width);
      tile.template multiply<order>(k, a, lda, b + j, ldb);
      store_tile(tile, c + j, ldc, width);
    });
  }
}

// One head of one batch entry: what its queries may see.
template <class T>
struct Head {
  const AttentionShape& s;
  const AttentionParams<T>& params;
  Index index;  // n * heads + head

  Index visible(Index i) const { return visible_keys(s, params, index / s.heads, i); }

  // Row i of scores for the keys k0 .. k0 + width (whole vectors): adds the mask, puts -inf where a key is hidden.
  void mask(Index i, Index k0, Index width, T* row) const {
    const AttentionMask<T>& m = params.mask;
    const Index seen = std::clamp<Index>(visible(i) - k0, 0, width);
    if (m.keep != nullptr || m.add != nullptr) {
      const Index at = index / s.heads * m.stride[0] + index % s.heads * m.stride[1] + i * m.stride[2];
      const Index step = m.stride[3];
      if (m.keep != nullptr) {
        const bool* const keep = m.keep + at + k0 * step;
        for (Index j = 0; j < seen; ++j) row[j] = keep[j * step] ? row[j] : kMinusInfinity<T>;
      } else if (step == 0) {
        const Vec<T> add = broadcast(m.add[at]);
        for_lanes<T>(seen, [&](Index j, auto) { store(row + j, load(row + j) + add); });
      } else {
        const T* const add = m.add + at + k0;
        for_lanes<T>(seen, [&](Index j, auto lanes) { store(row + j, load(row + j) + load_lanes(add + j, lanes)); });
      }
    }
    for (Index j = seen; j < width; ++j) row[j] = kMinusInfinity<T>;
  }
};

template <class T, int... I>
LEC7_INLINE Vec<T> swap_lanes(Vec<T> v, int distance, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  switch (distance) {
    case 8: return __builtin_shufflevector(v, v, ((I ^ 8) % n)...);
    case 4: return __builtin_shufflevector(v, v, ((I ^ 4) % n)...);
    case 2: return __builtin_shufflevector(v, v, ((I ^ 2) % n)...);
    default: return __builtin_shufflevector(v, v, ((I ^ 1) % n)...);
  }
}

// Combines all lanes in log2 W steps, without a way through memory: a row of scores is short.
template <class T, class Combine>
LEC7_INLINE T fold_lanes(Vec<T> v, Combine combine) {
  LEC7_UNROLL
  for (int distance = W<T> / 2; distance > 0; distance /= 2) {
    v = combine(v, swap_lanes<T>(v, distance, std::make_integer_sequence<int, W<T>>{}));
  }
  return v[0];
}

// NaN may be lost here: the sum of the exponentials keeps it.
template <class T>
T row_max(const T* row, Index width) {
  Vec<T> even = load(row), odd = even;
  Index j = W<T>;
  for (; j + 2 * W<T> <= width; j += 2 * W<T>) {
    even = max<T>(even, load(row + j));
    odd = max<T>(odd, load(row + j + W<T>));
  }
  if (j < width) even = max<T>(even, load(row + j));
  return fold_lanes<T>(max<T>(even, odd), [](Vec<T> a, Vec<T> b) { return max<T>(a, b); });
}

// row = exp(row - shift); returns the sum.
template <class T>
T exp_row(T* row, Index width, T shift) {
  Vec<T> even{}, odd{};
  Index j = 0;
  for (; j + 2 * W<T> <= width; j += 2 * W<T>) {
    const Vec<T> a = exp<T>(load(row + j) - shift), b = exp<T>(load(row + j + W<T>) - shift);
    store(row + j, a);
    store(row + j + W<T>, b);
    even += a;
    odd += b;
  }
  if (j < width) {
    const Vec<T> a = exp<T>(load(row + j) - shift);
    store(row + j, a);
    even += a;
  }
  return fold_lanes<T>(even + odd, [](Vec<T> a, Vec<T> b) { return a + b; });
}

template <class T>
struct Forward {
  static constexpr Index kScores = kKeyBlock + W<T>;  // rows of scores are not a power of two apart

  Head<T> head;
  Vectors<T> keys;
  const T* v;  // rows of whole vectors, ldv apart
  Index ldv;
  T* y;
  T* lse;
  T* weights;  // may be null
  // For a block of queries: scaled q, the scores of one strip, the running maximum and sum of each row.
  T *q, *scores, *top, *sum;

  // Rows r .. r + MR of the block of queries at i0 meet the block of keys at k0.
  template <int MR>
  LEC7_INLINE void strip(Index i0, Index r, Index k0) const {
    const AttentionShape& s = head.s;
    const Index visible = head.visible(i0 + r + MR - 1);
    if (visible <= k0) return;
    const bool first = k0 == 0, last = visible <= k0 + kKeyBlock;
    const Index count = std::min(kKeyBlock, visible - k0), width = whole_vectors<T>(count);
    const Index ldq = whole_vectors<T>(s.d);
    dot_products<T, MR>(q + r * ldq, ldq, keys, k0, count, scores, kScores);

    T decay[MR], norm[MR];
    for (int i = 0; i < MR; ++i) {
      T* const row = scores + i * kScores;
      head.mask(i0 + r + i, k0, width, row);
      if (weights != nullptr) std::copy_n(row, count, weights + (i0 + r + i) * s.keys + k0);
      const T before = first ? kMinusInfinity<T> : top[r + i];
      const T most = std::max(before, row_max(row, width));
      const T shift = most == kMinusInfinity<T> ? T{0} : most;  // -inf - -inf would be NaN
      const T now = exp_row(row, width, shift);
      decay[i] = first ? T{0} : std::exp(before - shift);
      top[r + i] = most;
      sum[r + i] = first ? now : sum[r + i] * decay[i] + now;
      norm[i] = T{1} / sum[r + i];
    }

    T* const out = y + (i0 + r) * s.dv;
    for (Index j = 0; j < s.dv; j += kPanel<T>) {
      const Index columns = std::min(kPanel<T>, s.dv - j);
      with_vectors<T>(columns, [&]<int NV> {
        Tile<T, MR, NV> tile;
        if (first) {
          tile.zero();
        } else {
          load_tile(tile, out + j, s.dv, columns);
          scale_rows(tile, decay);
        }
        tile.template multiply<Order::row_major>(count, scores, kScores, v + k0 * ldv + j, ldv);
        if (last) scale_rows(tile, norm);
        store_tile(tile, out + j, s.dv, columns);
      });
    }
  }

  // lse, and weights from scores; a query that saw no key gets zeros.
  void finish(Index i, T most, T total) const {
    const AttentionShape& s = head.s;
    const bool blind = head.visible(i) == 0 || total == 0;
    lse[i] = blind ? kMinusInfinity<T> : most + std::log(total);
    if (blind) std::fill_n(y + i * s.dv, s.dv, T{0});
    if (weights == nullptr) return;
    T* const row = weights + i * s.keys;
    const Index seen = blind ? 0 : head.visible(i);
    for_lanes<T>(
        seen, [&](Index j, auto lanes) { store_lanes(row + j, exp<T>(load_lanes(row + j, lanes) - lse[i]), lanes); });
    std::fill(row + seen, row + s.keys, T{0});
  }

  void run(Index begin, Index end, const T* q_rows) const {
    const AttentionShape& s = head.s;
    for (Index i0 = begin; i0 < end; i0 += kQueryBlock) {
      const Index queries = std::min(kQueryBlock, end - i0);
      copy_padded(queries, s.d, q_rows + i0 * s.d, head.params.scale, q, whole_vectors<T>(s.d));
      const Index visible = head.visible(i0 + queries - 1);
      for (Index k0 = 0; k0 < visible; k0 += kKeyBlock) {
        for_row_tiles(queries, [&]<int MR>(Index r) { strip<MR>(i0, r, k0); });
      }
      for (Index r = 0; r < queries; ++r) finish(i0 + r, top[r], sum[r]);
    }
  }
};

// The keys of one chunk against the queries that see any of them.
template <class T>
struct Backward {
  static constexpr Index kScores = kBackwardKeys + W<T>;

  Head<T> head;
  Index begin, end;  // the chunk: what follows starts at key `begin`
  Vectors<T> keys, values;
  const T* k;  // scaled rows of whole vectors
  const T* q;  // likewise
  const T* dy;
  const T* dy_padded;  // rows of whole vectors
  const T* shift;      // of each query: lse, or infinity where it sees no key
  const T* dot;        // dy . y
  T *p, *ds;           // a block of queries x a block of keys
  T *dq, *dk, *dv;     // may be null

  // Queries [i0, i0 + queries) against keys [k0, k0 + block).
  void run_block(Index i0, Index queries, Index k0, Index block) const {
    const AttentionShape& s = head.s;
    const Index ldq = whole_vectors<T>(s.d), ldy = whole_vectors<T>(s.dv);
    // Strips end where their last query sees no more keys; the rest of their rows is zero.
    const auto seen = [&](Index last) { return std::min(block, head.visible(i0 + last) - k0); };
    const auto clear_rest = [&](T* row, Index from) {
      for (Index j = whole_vectors<T>(from); j < block; j += W<T>) store(row + j, Vec<T>{});
    };

    for_row_tiles(queries, [&]<int MR>(Index r) {
      const Index count = seen(r + MR - 1);
      dot_products<T, MR>(q + (i0 + r) * ldq, ldq, keys, k0 - begin, count, p + r * kScores, kScores);
      for (int i = 0; i < MR; ++i) {
        T* const row = p + (r + i) * kScores;
        head.mask(i0 + r + i, k0, whole_vectors<T>(count), row);
        const T minus = shift[i0 + r + i];
        for (Index j = 0; j < count; j += W<T>) store(row + j, exp<T>(load(row + j) - minus));
        clear_rest(row, count);
      }
    });
    if (dv != nullptr) add_transposed(p, i0, queries, k0, block, dy_padded, s.dv, ldy, dv);
    if (dq == nullptr && dk == nullptr) return;

    for_row_tiles(queries, [&]<int MR>(Index r) {
      const Index count = seen(r + MR - 1);
      dot_products<T, MR>(dy + (i0 + r) * s.dv, s.dv, values, k0 - begin, count, ds + r * kScores, kScores);
      for (int i = 0; i < MR; ++i) {
        T* const row = ds + (r + i) * kScores;
        const T* const p_row = p + (r + i) * kScores;
        const T minus = dot[i0 + r + i];
        for (Index j = 0; j < count; j += W<T>) store(row + j, load(p_row + j) * (load(row + j) - minus));
        clear_rest(row, count);
      }
    });
    if (dq != nullptr) {
      for_row_tiles(queries, [&]<int MR>(Index r) {
        add_product<T, MR, Order::row_major>(s.d, seen(r + MR - 1), ds + r * kScores, kScores, k + (k0 - begin) * ldq,
                                             ldq, dq + (i0 + r) * s.d, s.d);
      });
    }
    if (dk != nullptr) add_transposed(ds, i0, queries, k0, block, q, s.d, ldq, dk);
  }

  // out[k0 + j] += sum over the queries of this block that see key k0 + j of a[query][j] * b[query].
  void add_transposed(const T* a, Index i0, Index queries, Index k0, Index block, const T* b, Index n, Index ldb,
                      T* out) const {
    for_row_tiles(block, [&]<int MR>(Index j) {
      const Index from = std::clamp<Index>(first_query(k0 + j) - i0, 0, queries);
      add_product<T, MR, Order::transposed>(n, queries - from, a + from * kScores + j, kScores, b + (i0 + from) * ldb,
                                            ldb, out + (k0 + j) * n, n);
    });
  }

  // The first query that sees key j.
  Index first_query(Index j) const {
    return head.params.causal ? std::max<Index>(0, j - (head.s.keys - head.s.queries)) : 0;
  }

  void run() const {
    const AttentionShape& s = head.s;
    if (dq != nullptr) std::fill_n(dq, s.queries * s.d, T{0});
    if (dk != nullptr) std::fill(dk + begin * s.d, dk + end * s.d, T{0});
    if (dv != nullptr) std::fill(dv + begin * s.dv, dv + end * s.dv, T{0});
    const Index visible = s.queries == 0 ? 0 : std::min(end, head.visible(s.queries - 1));
    for (Index k0 = begin; k0 < visible; k0 += kBackwardKeys) {
      for (Index i0 = first_query(k0); i0 < s.queries; i0 += kBackwardQueries) {
        run_block(i0, std::min(kBackwardQueries, s.queries - i0), k0, std::min(kBackwardKeys, visible - k0));
      }
    }
  }
};

template <class T>
Index limit_threads(const AttentionShape& s, Index tasks) {
  return s.rows() * s.keys * (s.d + s.dv) < kSerialWork ? 1 : tasks;
}

}  // namespace

template <class T>
void attention_forward(const AttentionShape& s, const AttentionParams<Accumulator<T>>& params, const T* q, const T* k,
                       const T* v, T* y, Accumulator<T>* lse, T* weights) {
  const Index heads = s.n * s.heads;
  const Index task_queries = heads >= kManyHeads ? s.queries : std::min(s.queries, kTaskQueries);
  const Index blocks = task_queries == 0 ? 0 : ceil_div(s.queries, task_queries);
  const Index tasks = heads * blocks, threads = limit_threads<T>(s, tasks);
  const bool pack = task_queries > kDotRows;
  const Index ldv = whole_vectors<T>(s.dv);
  const bool pad_v = ldv != s.dv;

  Scratch<T> q_block(threads, std::min(kQueryBlock, task_queries) * whole_vectors<T>(s.d));
  Scratch<T> scores(threads, kTileRows * Forward<T>::kScores);
  Scratch<T> top(threads, kQueryBlock), sum(threads, kQueryBlock);
  Scratch<T> panels(threads, pack ? Vectors<T>::packed_size(s.keys, s.d) : 0);
  Scratch<T> v_padded(threads, pad_v ? s.keys * ldv : 0);
  parallel_region(threads, [&](const Team& team) {
    const int t = team.thread;
    team.for_each(tasks, [&](Index task) {
      // The last queries first: with a causal rule they see the most keys.
      const Index index = task / blocks, block = blocks - 1 - task % blocks;
      const Index begin = block * task_queries, end = std::min(begin + task_queries, s.queries);
      const Head<T> head{s, params, index};
      const Index visible = head.visible(end - 1);
      const T* const k_head = k + index * s.keys * s.d;
      const T* const v_head = v + index * s.keys * s.dv;
      if (pad_v) copy_padded(visible, s.dv, v_head, T{1}, v_padded[t], ldv);
      Forward<T>{head,
                 pack ? Vectors<T>::pack(k_head, visible, s.d, panels[t]) : Vectors<T>{k_head, visible, s.d, nullptr},
                 pad_v ? v_padded[t] : v_head,
                 ldv,
                 y + index * s.queries * s.dv,
                 lse + index * s.queries,
                 weights == nullptr ? nullptr : weights + index * s.queries * s.keys,
                 q_block[t],
                 scores[t],
                 top[t],
                 sum[t]}
          .run(begin, end, q + index * s.queries * s.d);
    });
  });
}

template <class T>
void attention_backward(const AttentionShape& s, const AttentionParams<Accumulator<T>>& params, const T* dy, const T* q,
                        const T* k, const T* v, const T* y, const Accumulator<T>* lse, T* dq, T* dk, T* dv) {
  const Index heads = s.n * s.heads;
  if (heads == 0) return;
  const Index blocks = std::max<Index>(1, ceil_div(s.keys, kBackwardKeys));
  const Index chunks = heads >= kManyHeads ? 1 : std::min(ceil_div(kManyHeads, heads), ceil_div(blocks, 2));
  const Index chunk_keys = ceil_div(blocks, chunks) * kBackwardKeys;
  const Index tasks = heads * chunks, threads = limit_threads<T>(s, tasks);
  const bool pack = s.queries > kDotRows;
  const Index ldq = whole_vectors<T>(s.d), ldy = whole_vectors<T>(s.dv);
  const bool pad_dy = ldy != s.dv;
  const Index head_q = s.queries * s.d;
  const Index most_keys = std::min(chunk_keys, s.keys);

  memory::Buffer<T> shift(s.rows()), dot(s.rows());
  memory::Buffer<T> parts(dq != nullptr && chunks > 1 ? chunks * heads * head_q : 0);
  Scratch<T> q_scaled(threads, s.queries * ldq), k_scaled(threads, most_keys * ldq);
  Scratch<T> dy_padded(threads, pad_dy ? s.queries * ldy : 0);
  Scratch<T> k_panels(threads, pack ? Vectors<T>::packed_size(most_keys, s.d) : 0);
  Scratch<T> v_panels(threads, pack ? Vectors<T>::packed_size(most_keys, s.dv) : 0);
  Scratch<T> p(threads, kBackwardQueries * Backward<T>::kScores), ds(threads, kBackwardQueries * Backward<T>::kScores);
  parallel_region(threads, [&](const Team& team) {
    const int t = team.thread;
    team.for_each(heads, [&](Index index) {
      for (Index row = index * s.queries; row < (index + 1) * s.queries; ++row) {
        Vec<T> sum{};
        for_lanes<T>(s.dv, [&](Index j, auto lanes) {
          sum += load_lanes(dy + row * s.dv + j, lanes) * load_lanes(y + row * s.dv + j, lanes);
        });
        dot[row] = reduce_sum<T>(sum);
        shift[row] = lse[row] == kMinusInfinity<T> ? -kMinusInfinity<T> : lse[row];
      }
    });
    team.for_each(tasks, [&](Index task) {
      const Index index = task / chunks, chunk = task % chunks;
      const Index begin = std::min(chunk * chunk_keys, s.keys), end = std::min(begin + chunk_keys, s.keys);
      const T* const k_chunk = k + (index * s.keys + begin) * s.d;
      const T* const v_chunk = v + (index * s.keys + begin) * s.dv;
      const T* const dy_head = dy + index * s.queries * s.dv;
      copy_padded(s.queries, s.d, q + index * head_q, params.scale, q_scaled[t], ldq);
      copy_padded(end - begin, s.d, k_chunk, params.scale, k_scaled[t], ldq);
      if (pad_dy) copy_padded(s.queries, s.dv, dy_head, T{1}, dy_padded[t], ldy);
      const auto vectors = [&](const T* rows, Index size, T* panels) {
        return pack ? Vectors<T>::pack(rows, end - begin, size, panels) : Vectors<T>{rows, end - begin, size, nullptr};
      };
      T* const dq_head = dq == nullptr ? nullptr : chunks == 1 ? dq + index * head_q : parts.data() + task * head_q;
      Backward<T>{{s, params, index},
                  begin,
                  end,
                  vectors(k_chunk, s.d, k_panels[t]),
                  vectors(v_chunk, s.dv, v_panels[t]),
                  k_scaled[t],
                  q_scaled[t],
                  dy_head,
                  pad_dy ? dy_padded[t] : dy_head,
                  shift.data() + index * s.queries,
                  dot.data() + index * s.queries,
                  p[t],
                  ds[t],
                  dq_head,
                  dk == nullptr ? nullptr : dk + index * s.keys * s.d,
                  dv == nullptr ? nullptr : dv + index * s.keys * s.dv}
          .run();
    });
    if (dq == nullptr || chunks == 1) return;
    team.for_each(heads, [&](Index index) {
      const T* const part = parts.data() + index * chunks * head_q;
      for_lanes<T>(head_q, [&](Index j, auto lanes) {
        Vec<T> sum = load_lanes(part + j, lanes);
        for (Index chunk = 1; chunk < chunks; ++chunk) sum += load_lanes(part + chunk * head_q + j, lanes);
        store_lanes(dq + index * head_q + j, sum, lanes);
      });
    });
  });
}

#define LEC7_INSTANTIATE(T)                                                                                           \
  template void attention_forward(const AttentionShape&, const AttentionParams<T>&, const T*, const T*, const T*, T*, \
                                  T*, T*);                                                                            \
  template void attention_backward(const AttentionShape&, const AttentionParams<T>&, const T*, const T*, const T*,    \
                                   const T*, const T*, const T*, T*, T*, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
