// Winograd's minimal filtering F(M x M, K x K) (Lavin, Gray 2015; Winograd 1980): M x M outputs of a K x K filter are
// polynomial products, and A = M + K - 1 points an axis determine them. With x and the filters evaluated at A x A
// points, a tile takes A^2 products a channel and filter in place of (M K)^2:
//
//   y = V_M^T [(G w G^T) * (B^T x B)] V_M,   dw = G^T [(V_M dy V_M^T) * (B^T x B)] G
//
// V_L evaluates L coefficients at the points, G = N^-1 V_K with the N of Lagrange's interpolation, B^T x is the
// transpose of interpolation. The products of all tiles, channels and filters at one point are a matrix product.
//
//   method     points                         products an output   relative error on N(0, 1): y, dx; dweight
//   F(2, 3)    0, +-1, inf                    4 in place of 9      4e-7; 3e-7
//   F(4, 3)    0, +-1/sqrt2, +-sqrt2, inf     2.25 in place of 9   2e-6; 2e-6
//   F(3, 4)    the same                       4 in place of 16     2e-6; 2e-6
//   F(4, 5)    0, +-1, +-1/2, +-2, inf        4 in place of 25     6e-6; 5e-6
//
// The points are those with the least error among symmetric ones (0, +-1, +-2, inf doubles it for F(4, 3)). F(6, 3)
// has three times the error of F(4, 3) and is not faster here: what it saves in products it takes in transforms.
#include "winograd.h"

#include <algorithm>
#include <limits>

#include "activation.h"
#include "scratch.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

using T = float;
constexpr std::integral_constant<Index, W<T>> kWhole;

// ---- The transforms of one axis ----

// The points are 0, +-p for each p of these, and infinity (the last coefficient).
template <int P>
struct Points;
template <>
struct Points<1> {
  static constexpr double p[1] = {1};
};
template <>
struct Points<2> {
  static constexpr double p[2] = {0.70710678118654752, 1.41421356237309505};
};
template <>
struct Points<3> {
  static constexpr double p[3] = {1, 0.5, 2};
};

constexpr double power(double x, int n) { return n == 0 ? 1 : x * power(x, n - 1); }

// F(A - K + 1, K) with A = 2 P + 2 points. A point +-p is a pair: what is even in p is computed once for both.
template <int P, int K>
struct Filtering {
  static constexpr int A = 2 * P + 2, M = A - K + 1, points = A * A;
  static constexpr const double (&p)[P] = Points<P>::p;

  // Coefficients of prod (z - p_q^2) over all q but `left_out`.
  struct Polynomial {
    double c[P + 1]{};
  };
  static constexpr Polynomial polynomial(int left_out) {
    Polynomial f;
    f.c[0] = 1;
    int degree = 0;
    for (int q = 0; q < P; ++q) {
      if (q == left_out) continue;
      ++degree;
      for (int k = degree; k >= 0; --k) f.c[k] = (k > 0 ? f.c[k - 1] : 0) - p[q] * p[q] * f.c[k];
    }
    return f;
  }

  // 1 / N: the product of the differences to the other points.
  static constexpr T scale(int point) {
    if (point == A - 1) return 1;
    double n = 1;
    if (point == 0) {
      for (int q = 0; q < P; ++q) n *= -p[q] * p[q];
    } else {
      const int i = (point - 1) / 2;
      n = 2 * p[i] * p[i];
      for (int q = 0; q < P; ++q) n *= q == i ? 1 : p[i] * p[i] - p[q] * p[q];
    }
    return static_cast<T>(1 / n);
  }

  // B^T d
  static LEC7_INLINE void transform_input(const Vec<T> (&d)[A], Vec<T> (&v)[A]) {
    constexpr Polynomial all = polynomial(-1);
    Vec<T> zero = d[2 * P], infinity = d[2 * P + 1];
    LEC7_UNROLL
    for (int k = 0; k < P; ++k) {
      zero += static_cast<T>(all.c[k]) * d[2 * k];
      infinity += static_cast<T>(all.c[k]) * d[2 * k + 1];
    }
    v[0] = zero;
    v[A - 1] = infinity;
    LEC7_UNROLL
    for (int i = 0; i < P; ++i) {
      const Polynomial others = polynomial(i);
      Vec<T> even = d[2 * P], odd = d[2 * P - 1];
      LEC7_UNROLL
      for (int k = 0; k < P - 1; ++k) {
        even += static_cast<T>(others.c[k]) * d[2 * k + 2];
        odd += static_cast<T>(others.c[k]) * d[2 * k + 1];
      }
      v[1 + 2 * i] = even + static_cast<T>(p[i]) * odd;
      v[2 + 2 * i] = even - static_cast<T>(p[i]) * odd;
    }
  }

  // V_L c: the values at the points of the polynomial with coefficients c.
  template <int L>
  static LEC7_INLINE void evaluate(const Vec<T> (&c)[L], Vec<T> (&v)[A]) {
    v[0] = c[0];
    v[A - 1] = c[L - 1];
    LEC7_UNROLL
    for (int i = 0; i < P; ++i) {
      Vec<T> even = c[0], odd = static_cast<T>(p[i]) * c[1];
      LEC7_UNROLL
      for (int j = 2; j < L; ++j) (j % 2 == 0 ? even : odd) += static_cast<T>(power(p[i], j)) * c[j];
      v[1 + 2 * i] = even + odd;
      v[2 + 2 * i] = even - odd;
    }
  }

  // V_L^T v
  template <int L>
  static LEC7_INLINE void evaluate_transposed(const Vec<T> (&v)[A], Vec<T> (&c)[L]) {
    Vec<T> sum[P], difference[P];
    LEC7_UNROLL
    for (int i = 0; i < P; ++i) {
      sum[i] = v[1 + 2 * i] + v[2 + 2 * i];
      difference[i] = v[1 + 2 * i] - v[2 + 2 * i];
    }
    LEC7_UNROLL
    for (int j = 0; j < L; ++j) {
      c[j] = j == 0 ? v[0] : j == L - 1 ? v[A - 1] : Vec<T>{};
      LEC7_UNROLL
      for (int i = 0; i < P; ++i) c[j] += static_cast<T>(power(p[i], j)) * (j % 2 == 0 ? sum[i] : difference[i]);
    }
  }

  static LEC7_INLINE void scale_points(Vec<T> (&v)[A]) {
    LEC7_UNROLL
    for (int i = 0; i < A - 1; ++i) v[i] *= scale(i);
  }
};

// Vectors in a square: (i, j) is at p + i * row + j * column.
template <class Pointer>
struct Square {
  Pointer p;
  Index row, column;
};

// The next place, which GCC does not compute from the first: it would keep all 36 of them, in memory.
template <class Pointer>
LEC7_INLINE void advance(Pointer& p, Index step) {
  p += step;
  asm("" : "+r"(p));
}

// Applies the transform of one axis, In numbers to Out, to both axes of In x In vectors; finish(v) is what is stored.
// It goes by rows of results that have terms in common, so that all stays in registers: points 0 and infinity, then
// each pair +-p; coefficients at even places, then those at odd ones. A group only loads again what another one did.
template <int In, int Out, class Transform, class Finish, class N>
LEC7_INLINE void transform_square(Square<const T*> from, const Transform& transform, const Finish& finish, N lanes,
                                  Square<T*> to) {
  constexpr bool to_points = Out % 2 == 0 && Out >= In;
  const auto rows = [&]<int first, int step, int count>() LEC7_LAMBDA_INLINE {
    Vec<T> half[count][In];
    const T* p = from.p;
    LEC7_UNROLL
    for (int j = 0; j < In; ++j) {
      Vec<T> d[In], v[Out];
      LEC7_UNROLL
      for (int i = 0; i < In; ++i) d[i] = load(p + i * from.row);
      advance(p, from.column);
      transform(d, v);
      LEC7_UNROLL
      for (int r = 0; r < count; ++r) half[r][j] = v[first + r * step];
    }
    T* line = to.p + first * to.row;
    LEC7_UNROLL
    for (int r = 0; r < count; ++r) {
      Vec<T> v[Out];
      transform(half[r], v);
      T* q = line;
      LEC7_UNROLL
      for (int j = 0; j < Out; ++j) {
        store_lanes(q, finish(v[j]), lanes);
        advance(q, to.column);
      }
      advance(line, step * to.row);
    }
  };
  if constexpr (to_points) {
    rows.template operator()<0, Out - 1, 2>();
    rows.template operator()<1, 1, 2>();
    if constexpr (Out > 4) rows.template operator()<3, 1, 2>();
    if constexpr (Out > 6) rows.template operator()<5, 1, 2>();
  } else {
    rows.template operator()<0, 2, (Out + 1) / 2>();
    rows.template operator()<1, 2, Out / 2>();
  }
}

constexpr auto as_it_is = [](Vec<T> v) LEC7_LAMBDA_INLINE { return v; };

// ---- Tiles ----

// The outputs of a convolution in tiles of M x M; the depth is a part of the batch.
struct Tiling {
  Index images, rows, columns;

  Tiling(const Convolution& c, int m)
      : images(c.batch * c.windows[0].out),
        rows(ceil_div(c.windows[1].out, m)),
        columns(ceil_div(c.windows[2].out, m)) {}
  Index count() const { return images * rows * columns; }
};

struct TileAt {
  Index image, row, column;
  TileAt(const Tiling& t, Index i)
      : image(i / (t.rows * t.columns)), row(i / t.columns % t.rows), column(i % t.columns) {}
};

// S x S cells of an image of h x w cells, of which rows x columns exist; the others read as zeros.
template <int S>
struct Cells {
  const T* first;  // cell (0, 0), which may be outside
  Index row_step, column_step;
  Range rows, columns;

  Cells(const T* image, Index h, Index w, Index channels, Index top, Index left)
      : first(image + (top * w + left) * channels),
        row_step(w * channels),
        column_step(channels),
        rows{std::clamp<Index>(-top, 0, S), std::clamp<Index>(h - top, 0, S)},
        columns{std::clamp<Index>(-left, 0, S), std::clamp<Index>(w - left, 0, S)} {}

  bool whole() const { return rows.begin == 0 && columns.begin == 0 && rows.end == S && columns.end == S; }

  // Lanes of the cells that exist.
  template <class N>
  LEC7_INLINE void copy_lanes(Index channel, N lanes, Vec<T> (&cells)[S][S]) const {
    const Index begin = columns.begin, end = columns.end, step = column_step;
    for (Index i = rows.begin; i < rows.end; ++i) {
      const T* p = first + i * row_step + begin * step + channel;
      for (Index j = begin; j < end; ++j, p += step) cells[i][j] = load_lanes(p, lanes);
    }
  }
};

// Evaluates S x S cells at the points: channel v of point r goes to out[r * stride + v]. `transform` is that of one
// axis.
template <int A, int S, class Transform>
LEC7_INLINE void transform_cells(const Cells<S>& cells, Index channels, T* out, Index stride,
                                 const Transform& transform) {
  const bool whole = cells.whole();
  Vec<T> copy[S][S];
  if (!whole) zero_run(S * S * W<T>, reinterpret_cast<T*>(copy));
  for_lanes<T>(channels, [&](Index channel, auto lanes) LEC7_LAMBDA_INLINE {
    Square<const T*> from{cells.first + channel, cells.row_step, cells.column_step};
    if (!whole || lanes < W<T>) {
      cells.copy_lanes(channel, lanes, copy);
      from = {reinterpret_cast<const T*>(copy), S * W<T>, W<T>};
    }
    transform_square<S, A>(from, transform, as_it_is, lanes, {out + channel, A * stride, stride});
  });
}

// W x W numbers of a tap, of which `rows` x `columns` exist; the others read as zeros.
void load_square(const T* p, Index ld, bool transposed, Index rows, Index columns, Vec<T> (&square)[W<T>]) {
  const Index lines = transposed ? columns : rows, length = transposed ? rows : columns;
  for (int i = 0; i < W<T>; ++i) {
    square[i] = i >= lines ? Vec<T>{} : length == W<T> ? load(p + i * ld) : load_first(p + i * ld, length);
  }
  if (transposed) transpose<T>(square);
}

// Rows [k0, k0 + rows) of a panel of filters at the points, as multiply_packed reads them.
template <int P, int K>
void transform_filters(const Convolution& c, const Filters<T>& filters, Index group, Index k0, Index rows, Index panel,
                       T* out, Index point_stride) {
  using F = Filtering<P, K>;
  const Index columns = std::min(kPanel<T>, c.out() - panel * kPanel<T>), width = PackedB<T>::padded_columns(columns);
  const Index ld = filters.columns, row_step = filters.transposed ? 1 : ld, column_step = filters.transposed ? ld : 1;
  const T* tap[K * K];
  for (int t = 0; t < K * K; ++t) {
    tap[t] = filters.tap(c, t) + group * (filters.transposed ? c.in() : c.out()) + panel * kPanel<T> * column_step;
  }
  for (Index k = 0; k < rows; k += W<T>) {
    const Index count = std::min<Index>(W<T>, rows - k);
    for (Index v = 0; v < width; v += W<T>) {
      const Index at = (k0 + k) * row_step + v * column_step;
      // The next rows come from memory meanwhile.
      const Index soon = k0 + k + 2 * W<T> <= c.in() ? at + W<T> * row_step : at;
      Vec<T> taps[K * K][W<T>];
      for (int t = 0; t < K * K; ++t) {
        load_square(tap[t] + at, ld, filters.transposed, count, std::min<Index>(W<T>, columns - v), taps[t]);
      }
      for (Index row = 0; row < count; ++row) {
        const Index line = filters.transposed ? std::min(row, columns - v - 1) : row;
        LEC7_UNROLL
        for (int t = 0; t < K * K; ++t) __builtin_prefetch(tap[t] + soon + line * ld, 0, 2);
        T* const to = out + (k + row) * width + v;
        transform_square<K, F::A>({reinterpret_cast<const T*>(&taps[0][row]), K * W<T> * W<T>, W<T> * W<T>},
                                  [](const auto& g, auto& p) LEC7_LAMBDA_INLINE {
                                    F::template evaluate<K>(g, p);
                                    F::scale_points(p);
                                  },
                                  as_it_is, kWhole, {to, F::A * point_stride, point_stride});
      }
    }
  }
}

// The outputs of one tile from its products at the points: `rows` x `columns` of the M x M exist.
template <int P, int K>
LEC7_INLINE void transform_output(const T* product, Index point_stride, Index rows, Index columns, Index width,
                                  const T* bias, Vec<T> least, T* y, Index row_stride, Index cell_stride) {
  using F = Filtering<P, K>;
  for_lanes<T>(width, [&](Index j, auto lanes) LEC7_LAMBDA_INLINE {
    const Vec<T> start = bias == nullptr ? Vec<T>{} : load_lanes(bias + j, lanes);
    const auto transform = [&](auto some_lanes, Square<T*> to) LEC7_LAMBDA_INLINE {
      transform_square<F::A, F::M>(
          {product + j, F::A * point_stride, point_stride},
          [](const auto& m, auto& v) LEC7_LAMBDA_INLINE { F::template evaluate_transposed<F::M>(m, v); },
          [&](Vec<T> v) LEC7_LAMBDA_INLINE { return max<T>(least, v + start); }, some_lanes, to);
    };
    if (rows == F::M && columns == F::M) {
      transform(lanes, {y + j, row_stride, cell_stride});
    } else {
      Vec<T> outputs[F::M][F::M];
      transform(kWhole, {reinterpret_cast<T*>(outputs), F::M * W<T>, W<T>});
      for (Index i = 0; i < rows; ++i) {
        for (Index o = 0; o < columns; ++o) store_lanes(y + j + i * row_stride + o * cell_stride, outputs[i][o], lanes);
      }
    }
  });
}

// ---- Forward, and the gradient of x ----

constexpr Index kBlockTiles = 36;            // a task: so many at most, and so many numbers
constexpr Index kBlockNumbers = 450 * 1000;  // of x and of the products at the points, which stay in L2
constexpr Index kLeastTiles = 24;            // and at least, where there are so many
constexpr Index kFilterRows = 64;            // of a panel of filters that a task transforms
constexpr Index kFewTiles = 128;             // a task, where the filters are transformed again in each
constexpr Index kOneReadTiles = 64;          // up to so many, another thread's filters cost more than own ones
constexpr Index kManyNumbers = 800 * 1000;   // of transformed filters that are read again and again from far away
constexpr Index kManyChannels = 384;         // that leave too little of L2 for a block of tiles

// One group of a convolution: what both orders of the loops share.
template <int P, int K>
struct Group {
  using F = Filtering<P, K>;
  const Convolution& c;
  Index group;
  const T* x;
  const Filters<T>& filters;
  const T* bias;
  Activation activation;
  T* y;
  Tiling tiling{c, F::M};

  Index width(Index panel) const { return std::min(kPanel<T>, c.out() - panel * kPanel<T>); }

  // Channels [begin, end) of tile i at the points, `stride` apart.
  void transform_input(Index i, Index begin, Index end, T* out, Index stride) const {
    const auto& [wd, wh, ww] = c.windows;
    const TileAt at(tiling, i);
    const T* const image = x + at.image * wh.in * ww.in * c.channels + group * c.in() + begin;
    const Cells<F::A> cells(image, wh.in, ww.in, c.channels, wh.origin(at.row * F::M), ww.origin(at.column * F::M));
    transform_cells<F::A>(cells, end - begin, out, stride,
                          [](const auto& d, auto& v) LEC7_LAMBDA_INLINE { F::transform_input(d, v); });
  }

  // Tiles [first, first + count) of y from their products with a panel of filters.
  void transform_outputs(Index first, Index count, Index panel, const T* products, Index stride) const {
    const auto& [wd, wh, ww] = c.windows;
    const Vec<T> least = broadcast(activation == Activation::relu ? T{0} : -std::numeric_limits<T>::infinity());
    const bool activate_later = activation != Activation::none && activation != Activation::relu;
    const Index j = group * c.out() + panel * kPanel<T>;
    for (Index i = 0; i < count; ++i) {
      const TileAt at(tiling, first + i);
      const Index oh = at.row * F::M, ow = at.column * F::M;
      const Index rows = std::min<Index>(F::M, wh.out - oh), columns = std::min<Index>(F::M, ww.out - ow);
      T* const to = y + ((at.image * wh.out + oh) * ww.out + ow) * c.filters + j;
      transform_output<P, K>(products + i * kPanel<T>, stride, rows, columns, width(panel),
                             bias == nullptr ? nullptr : bias + j, least, to, ww.out * c.filters, c.filters);
      for (Index row = 0; activate_later && row < rows; ++row) {
        activate_rows(activation, columns, width(panel), to + row * ww.out * c.filters, c.filters);
      }
    }
  }
};

// Many tiles: the filters are transformed once, and a task takes a block of tiles through all of them.
template <int P, int K>
void convolve_many_tiles(const Group<P, K>& g) {
  using F = Filtering<P, K>;
  const Index k = g.c.in(), panels = PackedB<T>::panels(g.c.out()), tiles = g.tiling.count();
  const Index most = std::clamp<Index>(kBlockNumbers / (F::points * (k + kPanel<T>)), kLeastTiles, kBlockTiles);
  // As many for each thread, of a register tile's rows at least. (No sum depends on the blocks.)
  const Index wanted = ceil_div(ceil_div(tiles, most), num_threads()) * num_threads();
  const Index blocks = std::min(wanted, ceil_div(tiles, kTileRows));
  const Index block = ceil_div(tiles, blocks);
  // Slices of points are not a multiple of 4 KiB apart: they would share the sets of the cache.
  const Index filter_stride = k * kPanel<T> + W<T>, x_stride = block * k + W<T>,
              product_stride = block * kPanel<T> + W<T>;
  memory::Buffer<T> transformed(panels * F::points * filter_stride);
  Scratch<T> scratch(kParallel, F::points * (x_stride + product_stride));
  parallel_region(kParallel, [&](const Team& team) {
    const Index pieces = ceil_div(k, kFilterRows);
    team.for_each(panels * pieces, [&](Index task) {
      const Index panel = task / pieces, k0 = task % pieces * kFilterRows;
      T* const out = transformed.data() + panel * F::points * filter_stride;
      transform_filters<P, K>(g.c, g.filters, g.group, k0, std::min(kFilterRows, k - k0), panel,
                              out + k0 * PackedB<T>::padded_columns(g.width(panel)), filter_stride);
    });
    T* const x_points = scratch[team.thread];
    T* const products = x_points + F::points * x_stride;
    team.for_each(ceil_div(tiles, block), [&](Index task) {
      const Index first = task * block, count = std::min(block, tiles - first);
      for (Index i = 0; i < count; ++i) g.transform_input(first + i, 0, k, x_points + i * k, x_stride);
      for (Index panel = 0; panel < panels; ++panel) {
        for (int r = 0; r < F::points; ++r) {
          const T* const filter = transformed.data() + (panel * F::points + r) * filter_stride;
          multiply_packed(count, x_points + r * x_stride, k, Order::row_major, PackedB<T>{filter, k, g.width(panel)}, 0,
                          1, products + r * product_stride, kPanel<T>, static_cast<const T*>(nullptr), false,
                          {filter + filter_stride, k * g.width(panel)});
        }
        g.transform_outputs(first, count, panel, products, product_stride);
      }
    });
  });
}

// Few tiles for so many filters: x is transformed once, and a task takes a panel of filters, a block of channels at a
// time, through a block of tiles. The transformed filters, four times the size of w, never leave the cache.
template <int P, int K>
void convolve_few_tiles(const Group<P, K>& g) {
  using F = Filtering<P, K>;
  const Index k = g.c.in(), panels = PackedB<T>::panels(g.c.out()), tiles = g.tiling.count();
  const Index block = ceil_div(tiles, ceil_div(tiles, kFewTiles)), blocks = ceil_div(tiles, block);
  const Index chunks = ceil_div(k, kFilterRows), chunk = ceil_div(ceil_div(k, chunks), W<T>) * W<T>;
  const Index x_stride = block * chunk + W<T>, filter_stride = chunk * kPanel<T> + W<T>,
              product_stride = block * kPanel<T> + W<T>;
  memory::Buffer<T> x_points(blocks * chunks * F::points * x_stride);
  Scratch<T> scratch(kParallel, F::points * (filter_stride + product_stride));
  const auto x_at = [&](Index of_block, Index of_chunk) {
    return x_points.data() + (of_block * chunks + of_chunk) * F::points * x_stride;
  };
  parallel_region(kParallel, [&](const Team& team) {
    team.for_each(tiles, [&](Index i) {
      for (Index j = 0; j < chunks; ++j) {
        g.transform_input(i, j * chunk, std::min(j * chunk + chunk, k), x_at(i / block, j) + i % block * chunk,
                          x_stride);
      }
    });
    T* const filter = scratch[team.thread];
    T* const products = filter + F::points * filter_stride;
    team.for_each(blocks * panels, [&](Index task) {
      const Index panel = task / blocks, first = task % blocks * block, count = std::min(block, tiles - first);
      for (Index j = 0; j < chunks; ++j) {
        const Index rows = std::min(chunk, k - j * chunk);
        transform_filters<P, K>(g.c, g.filters, g.group, j * chunk, rows, panel, filter, filter_stride);
        for (int r = 0; r < F::points; ++r) {
          multiply_packed(count, x_at(task % blocks, j) + r * x_stride, chunk, Order::row_major,
                          PackedB<T>{filter + r * filter_stride, rows, g.width(panel)}, 0, 1,
                          products + r * product_stride, kPanel<T>, static_cast<const T*>(nullptr), j > 0,
                          {x_at(task % blocks, j) + (r + 1) * x_stride, count * chunk});
        }
      }
      g.transform_outputs(first, count, panel, products, product_stride);
    });
  });
}

template <int P, int K>
void convolve_groups(const Convolution& c, const T* x, const Filters<T>& filters, const T* bias, Activation activation,
                     T* y) {
  for (Index i = 0; i < c.groups; ++i) {
    const Group<P, K> group{c, i, x, filters, bias, activation, y};
    const Index numbers = Filtering<P, K>::points * c.in() * c.out(), tiles = group.tiling.count();
    const bool far = numbers > kManyNumbers && (tiles <= kFewTiles || c.in() > kManyChannels);
    if (far || tiles < kLeastTiles || (tiles <= kOneReadTiles && c.out() > kPanel<T>)) convolve_few_tiles(group);
    else convolve_many_tiles(group);
  }
}

// ---- The gradient of the filters ----

constexpr Index kGradientTiles = 256;      // that a sum runs over at a time; at most kKBlock
constexpr Index kTileGroup = 4;            // tiles a task
constexpr Index kOnePassTiles = 64;        // up to so many, sums cost more memory than x and dy
constexpr Index kOwnSums = 160 * 1000;     // numbers of sums that a task can have for itself, in L2
constexpr Index kOwnNumbers = 300 * 1000;  // with a block of x and dy beside them
constexpr Index kGradientChunks = 16;      // tasks then, of
constexpr Index kLeastChunk = 128;         // tiles at least

// One group of a gradient: sums (in x out) at each point.
template <int P, int K>
struct Gradient {
  using F = Filtering<P, K>;
  const Convolution& c;
  Index group;
  bool flip;
  const T* dy;
  const T* x;
  Index block;  // tiles of a pass at most
  Tiling tiling{c, F::M};

  Index panels() const { return PackedB<T>::panels(c.out()); }
  // Rows of x stand an odd number of lines apart: its columns are read, and would share sets of the cache.
  Index ld_x() const { return c.in() / (2 * W<T>)*(2 * W<T>)+3 * W<T>; }
  Index ld_sum() const { return PackedB<T>::padded_columns(c.out()); }
  // A point has the x of all tiles, then dy, packed: one piece of memory, which comes while the point before computes.
  Index x_size() const { return block * ld_x(); }
  Index stride() const { return x_size() + PackedB<T>::size(block, c.out()) + W<T>; }
  Index sum_stride() const { return c.in() * ld_sum() + W<T>; }

  // Tile first + i, of a pass of `count`, at the points.
  void transform_tile(Index first, Index i, Index count, T* points) const {
    const auto& [wd, wh, ww] = c.windows;
    const TileAt at(tiling, first + i);
    const Index oh = at.row * F::M, ow = at.column * F::M;
    const T* const image = x + at.image * wh.in * ww.in * c.channels + group * c.in();
    const Cells<F::A> cells(image, wh.in, ww.in, c.channels, wh.origin(oh), ww.origin(ow));
    transform_cells<F::A>(cells, c.in(), points + i * ld_x(), stride(),
                          [](const auto& d, auto& v) LEC7_LAMBDA_INLINE { F::transform_input(d, v); });
    for (Index j = 0; j < c.out(); j += kPanel<T>) {
      const Index width = std::min(kPanel<T>, c.out() - j);
      const T* const outputs = dy + at.image * wh.out * ww.out * c.filters + group * c.out() + j;
      const Cells<F::M> dy_cells(outputs, wh.out, ww.out, c.filters, oh, ow);
      transform_cells<F::A>(dy_cells, width, points + x_size() + j * count + i * PackedB<T>::padded_columns(width),
                            stride(),
                            [](const auto& d, auto& v) LEC7_LAMBDA_INLINE { F::template evaluate<F::M>(d, v); });
    }
  }

  // The sum at point r, from a pass of `count` tiles.
  void add_products(Index r, Index count, const T* points, T* sums, bool accumulate) const {
    const T* const at = points + r * stride();
    multiply_packed(c.in(), at, ld_x(), Order::transposed, PackedB<T>{at + x_size(), count, c.out()}, 0, panels(),
                    sums + r * sum_stride(), ld_sum(), static_cast<const T*>(nullptr), accumulate,
                    {at + stride(), r + 1 < F::points ? stride() : 0});
  }

  // Filters [j, j + width) of channel `row` of an array (K, K, C, F), from their sums at the points, `stride` apart.
  // Tap t goes to place t, or to place t from the end.
  void transform_sums(Index row, Index j, Index width, const T* sums, Index stride, bool from_end, T* filters) const {
    for_lanes<T>(width, [&](Index v, auto lanes) LEC7_LAMBDA_INLINE {
      T* const first = filters + row * c.filters + group * c.out() + j + v;
      const Index tap = c.in() * c.filters;
      transform_square<F::A, K>(
          {sums + v, F::A * stride, stride},
          [](const auto& p, auto& g) LEC7_LAMBDA_INLINE {
            Vec<T> scaled[F::A];
            LEC7_UNROLL
            for (int i = 0; i < F::A; ++i) scaled[i] = p[i];
            F::scale_points(scaled);
            F::template evaluate_transposed<K>(scaled, g);
          },
          as_it_is, lanes,
          from_end ? Square<T*>{first + (K * K - 1) * tap, -K * tap, -tap} : Square<T*>{first, K * tap, tap});
    });
  }
};

// Small sums: a task takes a chunk of the tiles by itself.
template <int P, int K>
void gradient_by_chunks(Gradient<P, K> g, T* parts, Index chunks, Index chunk) {
  using F = Filtering<P, K>;
  const Index size = F::points * g.stride();
  const Index part_size = K * K * g.c.in() * g.c.filters;
  Scratch<T> scratch(kParallel, size + F::points * g.sum_stride());
  parallel_region(chunks, [&](const Team& team) {
    T* const points = scratch[team.thread];
    T* const sums = points + size;
    team.for_each(chunks, [&](Index task) {
      const Index begin = task * chunk, end = std::min(begin + chunk, g.tiling.count());
      for (Index first = begin; first < end; first += g.block) {
        const Index count = std::min(g.block, end - first);
        for (Index i = 0; i < count; ++i) g.transform_tile(first, i, count, points);
        for (int r = 0; r < F::points; ++r) g.add_products(r, count, points, sums, first > begin);
      }
      for (Index row = 0; row < g.c.in(); ++row) {
        g.transform_sums(row, 0, g.c.out(), sums + row * g.ld_sum(), g.sum_stride(), false, parts + task * part_size);
      }
    });
  });
}

// Large sums: all threads transform a block of tiles, then each adds to the sums at its own points.
template <int P, int K>
void gradient_by_points(Gradient<P, K> g, T* dweight) {
  using F = Filtering<P, K>;
  const Index tiles = g.tiling.count();
  memory::Buffer<T> points(F::points * g.stride()), sums(F::points * g.sum_stride());
  parallel_region(kParallel, [&](const Team& team) {
    for (Index first = 0; first < tiles; first += g.block) {
      const Index count = std::min(g.block, tiles - first);
      team.for_each(ceil_div(count, kTileGroup), [&](Index task) {
        for (Index i = task * kTileGroup; i < std::min((task + 1) * kTileGroup, count); ++i) {
          g.transform_tile(first, i, count, points.data());
        }
      });
      team.for_share(F::points, [&](Index r) { g.add_products(r, count, points.data(), sums.data(), first > 0); });
    }
    team.for_each(g.c.in(), [&](Index row) {
      g.transform_sums(row, 0, g.c.out(), sums.data() + row * g.ld_sum(), g.sum_stride(), g.flip, dweight);
    });
  });
}

// Few tiles, in one pass: a task takes a block of the sums, which stays in the cache, from the products to dweight.
template <int P, int K>
void gradient_in_one_pass(Gradient<P, K> g, T* dweight) {
  using F = Filtering<P, K>;
  const Index tiles = g.tiling.count(), k = g.c.in(), panels = g.panels(), row_blocks = ceil_div(k, kFilterRows);
  const Index stride = kFilterRows * kPanel<T> + W<T>;
  memory::Buffer<T> points(F::points * g.stride());
  Scratch<T> scratch(kParallel, F::points * stride);
  parallel_region(kParallel, [&](const Team& team) {
    team.for_each(tiles, [&](Index i) { g.transform_tile(0, i, tiles, points.data()); });
    T* const sums = scratch[team.thread];
    team.for_each(row_blocks * panels, [&](Index task) {
      const Index panel = task / row_blocks, first = task % row_blocks * kFilterRows;
      const Index rows = std::min(kFilterRows, k - first), j = panel * kPanel<T>;
      const Index width = std::min(kPanel<T>, g.c.out() - j);
      for (int r = 0; r < F::points; ++r) {
        const T* const at = points.data() + r * g.stride();
        multiply_packed(rows, at + first, g.ld_x(), Order::transposed,
                        PackedB<T>{at + g.x_size() + j * tiles, tiles, width}, 0, 1, sums + r * stride, kPanel<T>,
                        static_cast<const T*>(nullptr), false);
      }
      for (Index row = 0; row < rows; ++row) {
        g.transform_sums(first + row, j, width, sums + row * kPanel<T>, stride, g.flip, dweight);
      }
    });
  });
}

template <int P, int K>
void gradient_of_groups(const Convolution& c, bool flip, const T* dy, const T* x, T* dweight) {
  using F = Filtering<P, K>;
  const Index tiles = Tiling(c, F::M).count();
  const Index sums = F::points * c.in() * PackedB<T>::padded_columns(c.out());
  const bool own = sums <= kOwnSums;
  const Index chunks = own ? std::clamp<Index>(tiles / kLeastChunk, 1, kGradientChunks) : 1;
  const Index chunk = ceil_div(tiles, chunks);
  const Index fitting = (kOwnNumbers - sums) / (F::points * (c.in() + c.out()));
  const Index passes = ceil_div(chunk, own ? std::clamp<Index>(fitting, 16, kGradientTiles) : kGradientTiles);
  memory::Buffer<T> parts(own ? chunks * K * K * c.in() * c.filters : 0);
  for (Index i = 0; i < c.groups; ++i) {
    const Gradient<P, K> gradient{c, i, flip, dy, x, ceil_div(chunk, passes)};
    if (own) gradient_by_chunks(gradient, parts.data(), ceil_div(tiles, chunk), chunk);
    else if (tiles <= kOnePassTiles) gradient_in_one_pass(gradient, dweight);
    else gradient_by_points(gradient, dweight);
  }
  if (own) add_parts(ceil_div(tiles, chunk), K * K, c.in() * c.filters, flip, parts.data(), dweight);
}

// ---- The methods ----

constexpr Index kLeastChannels = 8;

template <class Body>
void with_method(Winograd method, Body&& body) {
  switch (method) {
    case Winograd::none: return;
    case Winograd::f23: return body.template operator()<1, 3>();
    case Winograd::f43: return body.template operator()<2, 3>();
    case Winograd::f34: return body.template operator()<2, 4>();
    case Winograd::f45: return body.template operator()<3, 5>();
  }
}

// Cycles by vectors of 16 channels or filters, as measured on a core with 2 FMAs a cycle: products run at 85 % of that,
// a transform at the speed at which L2 takes its results, 6 cycles a vector at a point.
template <int P, int K>
double cycles(const Convolution& c, double of_filter) {
  using F = Filtering<P, K>;
  const double k = ceil_div(c.in(), 16), n = ceil_div(c.out(), 16), tiles = Tiling(c, F::M).count();
  return F::points * (tiles * (8 / 0.85 * k * n + 6 * (k + n)) + of_filter * 16 * k * n);
}

double direct_cycles(const Convolution& c) {
  return 8 / 0.75 * c.positions() * ceil_div(c.depth(), 16) * ceil_div(c.out(), 16);
}

}  // namespace

Winograd winograd_method(const Convolution& c, bool gradient) {
  const ConvAlgorithm algorithm = conv_algorithm();
  if (algorithm == ConvAlgorithm::direct) return Winograd::none;
  const auto& [wd, wh, ww] = c.windows;
  if (!c.dense() || wd.kernel != 1 || wd.stride != 1 || wd.pad_before != 0 || wd.out != wd.in) return Winograd::none;
  if (wh.kernel != ww.kernel || std::max({wh.stride, ww.stride, wh.dilation, ww.dilation}) != 1) return Winograd::none;
  if (c.in() < kLeastChannels || c.out() < kLeastChannels) return Winograd::none;

  // Filters from memory take longer than those from L2, which all methods have alike; their gradients go both ways.
  const double of_filter = gradient ? 12 : 10;
  Winograd best = Winograd::none;
  double least = std::numeric_limits<double>::infinity();
  bool pays = false;
  const auto consider = [&](Winograd method) {
    with_method(method, [&]<int P, int K> {
      const double estimate = cycles<P, K>(c, 6);
      if (estimate > least) return;
      best = method, least = estimate;
      pays = cycles<P, K>(c, of_filter) < direct_cycles(c);
    });
  };
  const bool fast = algorithm == ConvAlgorithm::fast;
  if (wh.kernel == 3) consider(Winograd::f23);
  if (wh.kernel == 3 && fast) consider(Winograd::f43);
  if (wh.kernel == 4 && fast) consider(Winograd::f34);
  if (wh.kernel == 5 && fast) consider(Winograd::f45);
  return pays ? best : Winograd::none;
}

void winograd_convolve(Winograd method, const Convolution& c, const float* x, const Filters<float>& filters,
                       const float* bias, Activation activation, float* y) {
  with_method(method, [&]<int P, int K> { convolve_groups<P, K>(c, x, filters, bias, activation, y); });
}

void winograd_weight_gradient(Winograd method, const Convolution& c, bool flip, const float* dy, const float* x,
                              float* dweight) {
  with_method(method, [&]<int P, int K> { gradient_of_groups<P, K>(c, flip, dy, x, dweight); });
}

}  // namespace lec7::cpu::LEC7_ISA
