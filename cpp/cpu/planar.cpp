// Convolutions that give few channels, as the first layers of small networks and the gradients of images do: vectors of
// channels would be mostly empty, so vectors run along the lines of the output, one for each channel. What goes in is
// split into planes, a band of lines at a time, which stays in L1 or L2; an FMA then takes a vector of a plane,
// wherever a tap stands in it, times one weight. What comes out is joined in registers.
//
//   y        a tile is F channels of several vectors of positions: taps * C * F * V FMAs for taps * C * (F + V) loads
//   dweight  a tile is some taps of all F channels: x and dy are multiplied along the lines, and a lane adds up its own
#include "planar.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "activation.h"
#include "scratch.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kBandNumbers = 1 << 13;  // of what goes in and comes out, in a band
constexpr Index kTogether = 4;           // images in a band at least, where they are small
constexpr Index kMostNumbers = 1 << 18;  // of x in a band that stays in L2
constexpr Index kGradientTasks = 16;     // split the bands into chunks until there are as many
constexpr int kRegisters = kVectorBytes == 64 ? 32 : 16;

template <class T>
inline constexpr int kMostChannels = W<T> / 2;

// Calls body<F>() with the run-time number of channels, up to kMostChannels.
template <class T, class Body>
void with_channels(Index channels, Body&& body) {
  const auto try_next = [&]<int F>(auto&& next) {
    if (channels == F) return body.template operator()<F>();
    if constexpr (F < kMostChannels<T>) next.template operator()<F + 1>(next);
  };
  try_next.template operator()<1>(try_next);
}

// ---- F channels side by side, to and from a vector of each ----

// Lane l of result j comes from lane `lane` of source `source`: of both ways the same, but for these.
template <int F, int width>
struct Joining {
  static constexpr int source(int j, int l) { return (j * width + l) % F; }
  static constexpr int lane(int j, int l) { return (j * width + l) / F; }
};
template <int F, int width>
struct Splitting {
  static constexpr int source(int j, int l) { return (l * F + j) / width; }
  static constexpr int lane(int j, int l) { return (l * F + j) % width; }
};

// Result j of F sources: pairs of them are shuffled, and those put together.
template <class T, class Way, int F, int j, int p = 0, int... l>
LEC7_INLINE Vec<T> regroup(const Vec<T> (&from)[F], Vec<T> before, std::integer_sequence<int, l...> lanes) {
  if constexpr (p >= F) {
    return before;
  } else {
    constexpr int q = p + 1 < F ? p + 1 : p;
    const Vec<T> pair = __builtin_shufflevector(from[p], from[q],
                                                (Way::source(j, l) == p   ? Way::lane(j, l)
                                                 : Way::source(j, l) == q ? W<T> + Way::lane(j, l)
                                                                          : -1)...);
    const Vec<T> both = p == 0
                            ? pair
                            : __builtin_shufflevector(
                                  before, pair, (Way::source(j, l) == p || Way::source(j, l) == q ? W<T> + l : l)...);
    return regroup<T, Way, F, j, p + 2>(from, both, lanes);
  }
}

template <class T, class Way, int F, int... j>
LEC7_INLINE void regroup_all(const Vec<T> (&from)[F], Vec<T> (&to)[F], std::integer_sequence<int, j...>) {
  ((to[j] = regroup<T, Way, F, j>(from, Vec<T>{}, std::make_integer_sequence<int, W<T>>{})), ...);
}

// Up to W positions of F channels each.
template <class T, int F>
LEC7_INLINE void load_split(const T* x, Index positions, Vec<T> (&channel)[F]) {
  Vec<T> from[F];
  LEC7_UNROLL
  for (int j = 0; j < F; ++j) {
    from[j] = load_first(x + j * W<T>, std::clamp<Index>(positions * F - j * W<T>, 0, W<T>));
  }
  regroup_all<T, Splitting<F, W<T>>>(from, channel, std::make_integer_sequence<int, F>{});
}
template <class T, int F>
LEC7_INLINE void store_joined(const Vec<T> (&channel)[F], Index positions, T* y) {
  Vec<T> to[F];
  regroup_all<T, Joining<F, W<T>>>(channel, to, std::make_integer_sequence<int, F>{});
  LEC7_UNROLL
  for (int j = 0; j < F; ++j) {
    store_first(y + j * W<T>, to[j], std::clamp<Index>(positions * F - j * W<T>, 0, W<T>));
  }
}

// `positions` of `channels` numbers each, to planes `apart` from each other.
template <class T>
void split_run(Index channels, Index positions, const T* x, T* plane, Index apart) {
  if (channels == 1) return copy_run(positions, x, plane);
  if (channels <= kMostChannels<T>) {
    return with_channels<T>(channels, [&]<int F> {
      for_lanes<T>(positions, [&](Index i, auto lanes) {
        Vec<T> channel[F];
        load_split(x + i * F, lanes, channel);
        LEC7_UNROLL
        for (int f = 0; f < F; ++f) store_lanes(plane + f * apart + i, channel[f], lanes);
      });
    });
  }
  for_lanes<T>(positions, [&](Index i, auto lanes) {
    for_lanes<T>(channels, [&](Index c, auto some) {
      Vec<T> rows[W<T>] = {};
      for (Index j = 0; j < lanes; ++j) rows[j] = load_lanes(x + (i + j) * channels + c, some);
      transpose<T>(rows);
      for (Index j = 0; j < some; ++j) store_lanes(plane + (c + j) * apart + i, rows[j], lanes);
    });
  });
}

// ---- Bands of lines ----

constexpr int kMostTaps = 8;  // of a tile of the gradient

// Neighbouring positions of y, from `position` on, whose windows begin at x in the planes of the first channel and meet
// it with these rows of taps.
struct Vector {
  Index x, position, count;
  Range taps;
};

// Some lines of an image, or some images, with the planes of x that their windows reach.
struct Bands {
  const Convolution& c;
  Index images, lines;   // of y in a band; lines are all of an image where there are several
  Index x_lines, pitch;  // of x under a band's lines of an image

  explicit Bands(const Convolution& c) : c(c) {
    const auto& [wd, wh, ww] = c.windows;
    pitch = ww.out - 1 + ww.extent();
    const Index line_numbers = pitch * c.channels + ww.out * c.filters;
    // Lines above and below are split again for the next band.
    const Index least = 4 * (wh.extent() - 1) / wh.stride + 1;
    lines = std::clamp<Index>(std::max(kBandNumbers / line_numbers, least), 1, wh.out);
    // Where much of the taps lies outside, a tile that takes the same line of several images leaves those out.
    const Index image_numbers = line_numbers * wh.out;
    const bool edges = 5 * (wh.extent() - 1) >= wh.out && image_numbers <= kBandNumbers;
    const Index some = edges ? kTogether : 1;
    images = lines < wh.out ? 1 : std::min(std::max(kBandNumbers / image_numbers, some), count_images());
    x_lines = (lines - 1) * wh.stride + wh.extent();
  }
  Index count_images() const { return c.batch * c.windows[0].out; }
  Index parts() const { return ceil_div(c.windows[1].out, lines); }  // of an image
  Index count() const { return ceil_div(count_images(), images) * parts(); }
  Index most_vectors(int width) const { return images * lines * ceil_div(c.windows[2].out, width); }

  Index plane_size() const { return x_lines * pitch; }
  Index image_size() const { return c.channels * plane_size(); }
  // A vector at the end of a line reads on behind it.
  template <class T>
  Index planes_size() const {
    return images * image_size() + W<T>;
  }
  template <class T>
  void split(Index band, const T* x, T* planes) const {
    const auto& [wd, wh, ww] = c.windows;
    const Index first = band / parts() * images, origin = wh.origin(band % parts() * lines);
    const Index begin = std::clamp<Index>(ww.pad_before, 0, pitch);
    const Index end = std::clamp<Index>(ww.pad_before + ww.in, begin, pitch);
    const Index last = std::min(first + images, count_images());
    for (Index image = first; image < last; ++image, planes += image_size()) {
      for (Index i = 0; i < x_lines; ++i) {
        T* const to = planes + i * pitch;
        const Index h = origin + i;
        const bool inside = h >= 0 && h < wh.in;
        if (!inside || begin > 0 || end < pitch) {
          for (Index channel = 0; channel < c.channels; ++channel) {
            T* const line = to + channel * plane_size();
            zero_run(inside ? begin : pitch, line);
            if (inside) zero_run(pitch - end, line + end);
          }
        }
        if (!inside) continue;
        const T* const from = x + ((image * wh.in + h) * ww.in + begin - ww.pad_before) * c.channels;
        split_run(c.channels, end - begin, from, to + begin, plane_size());
      }
    }
    zero_run(W<T>, planes);
  }

  // The vectors of a band, `width` positions and fewer; their number. Line by line, so that neighbours share taps.
  Index list_vectors(Index band, int width, Vector* vectors) const {
    const auto& [wd, wh, ww] = c.windows;
    const Index first = band / parts() * images, line = band % parts() * lines;
    const Index last = std::min(first + images, count_images()), some = std::min(lines, wh.out - line);
    Vector* next = vectors;
    for (Index i = 0; i < some; ++i) {
      const Range met = wh.taps(line + i);  // of a line that meets none, they begin anywhere
      const Range taps{std::min(met.begin, wh.kernel), std::min(met.end, wh.kernel)};
      for (Index image = first; image < last; ++image) {
        for (Index w = 0; w < ww.out; w += width) {
          *next++ = {(image - first) * image_size() + i * wh.stride * pitch + w,
                     (image * wh.out + line + i) * ww.out + w, std::min<Index>(width, ww.out - w), taps};
        }
      }
    }
    return next - vectors;
  }
  // Where the numbers of a patch stand in the planes, from its first; kMostTaps times the last in the end.
  void find_offsets(Index* offset) const {
    const auto& [wd, wh, ww] = c.windows;
    for (Index kh = 0; kh < wh.kernel; ++kh) {
      for (Index kw = 0; kw < ww.kernel; ++kw) {
        for (Index channel = 0; channel < c.channels; ++channel) {
          *offset++ = channel * plane_size() + kh * wh.dilation * pitch + kw * ww.dilation;
        }
      }
    }
    for (Index i = 0; i < kMostTaps; ++i, ++offset) offset[0] = offset[-1];
  }
};

template <int F>
inline constexpr int kVectors = std::clamp((kRegisters - 2) / (F + 1), 1, 8);  // F V sums, V of x, one weight
template <int F>
inline constexpr int kTaps = std::clamp((kRegisters - 2) / F - 1, 1, kMostTaps);  // F K sums, F of dy, one of x

// V vectors of positions; `line`: the numbers of a patch in a row of taps.
template <class T, int F, int V>
LEC7_INLINE void convolve_tile(Index line, const Index* offset, const T* planes, const Vector* at, const T* weights,
                               const T* bias, T* y) {
  Range taps = at[0].taps;  // that one of the vectors needs: what is outside x is zero
  LEC7_UNROLL
  for (int v = 1; v < V; ++v) taps = {std::min(taps.begin, at[v].taps.begin), std::max(taps.end, at[v].taps.end)};
  const T* x[V];
  LEC7_UNROLL
  for (int v = 0; v < V; ++v) x[v] = planes + at[v].x;
  Vec<T> sum[V][F];
  LEC7_UNROLL
  for (int v = 0; v < V; ++v) {
    LEC7_UNROLL
    for (int f = 0; f < F; ++f) sum[v][f] = bias == nullptr ? Vec<T>{} : broadcast(bias[f]);
  }
  weights += taps.begin * line * F;
  for (Index k = taps.begin * line; k < taps.end * line; ++k, weights += F) {
    Vec<T> cell[V];
    LEC7_UNROLL
    for (int v = 0; v < V; ++v) cell[v] = load(x[v] + offset[k]);
    LEC7_UNROLL
    for (int f = 0; f < F; ++f) {
      const Vec<T> weight = broadcast(weights[f]);
      LEC7_UNROLL
      for (int v = 0; v < V; ++v) sum[v][f] += weight * cell[v];
    }
  }
  LEC7_UNROLL
  for (int v = 0; v < V; ++v) store_joined(sum[v], at[v].count, y + at[v].position * F);
}

// Products of dy with K numbers of the patches, added lane by lane to sums (K x F vectors).
template <class T, int F, int K>
LEC7_INLINE void gradient_tile(Index vectors, const Vector* at, const Index* offset, const T* planes, const T* dy,
                               T* sums) {
  Vec<T> sum[K][F];
  LEC7_UNROLL
  for (int k = 0; k < K; ++k) {
    LEC7_UNROLL
    for (int f = 0; f < F; ++f) sum[k][f] = load(sums + (k * F + f) * W<T>);
  }
  const T* x[K];
  LEC7_UNROLL
  for (int k = 0; k < K; ++k) x[k] = planes + offset[k];
  for (Index v = 0; v < vectors; ++v, dy += F * W<T>) {
    const auto add = [&](auto lanes) LEC7_LAMBDA_INLINE {
      Vec<T> g[F];
      LEC7_UNROLL
      for (int f = 0; f < F; ++f) g[f] = load(dy + f * W<T>);
      LEC7_UNROLL
      for (int k = 0; k < K; ++k) {
        const Vec<T> cell = load_lanes(x[k] + at[v].x, lanes);
        LEC7_UNROLL
        for (int f = 0; f < F; ++f) sum[k][f] += cell * g[f];
      }
    };
    if (at[v].count == W<T>) add(std::integral_constant<Index, W<T>>{});
    else add(at[v].count);
  }
  LEC7_UNROLL
  for (int k = 0; k < K; ++k) {
    LEC7_UNROLL
    for (int f = 0; f < F; ++f) store(sums + (k * F + f) * W<T>, sum[k][f]);
  }
}

}  // namespace

template <class T>
bool planar_pays(const Convolution& c) {
  const auto& [wd, wh, ww] = c.windows;
  if (c.groups != 1 || !c.dense() || c.out() > kMostChannels<T> || c.taps() == 1 || ww.stride != 1) return false;
  if (wd.kernel != 1 || wd.stride != 1 || wd.pad_before != 0 || wd.out != wd.in) return false;
  // A half more for the splitting and joining; and lines so long, or taps so far apart, that few fit are not for this.
  if (3 * ceil_div(ww.out, W<T>) * c.out() > 2 * ww.out) return false;
  const Index most = kMostNumbers / c.channels;
  if (wh.extent() > most || ww.out - 1 + ww.extent() > most) return false;
  const Bands bands(c);
  return bands.x_lines * bands.pitch <= most;
}

template <class T>
void convolve_planar(const Convolution& c, const T* x, const Filters<T>& filters, const T* bias, Activation activation,
                     T* y) {
  const Bands bands(c);
  const Index depth = c.depth(), n = c.filters, vectors = bands.most_vectors(W<T>);
  memory::Buffer<Index> offsets(depth + kMostTaps);
  bands.find_offsets(offsets.data());
  memory::Buffer<T> weights(depth * n);
  for (Index k = 0; k < depth; ++k) {
    const T* const tap = filters.tap(c, k / c.channels);
    const Index channel = k % c.channels;
    for (Index f = 0; f < n; ++f) {
      weights.data()[k * n + f] = tap[filters.transposed ? f * filters.columns + channel : channel * n + f];
    }
  }
  const Index threads = limit_threads(c.work(), bands.count());
  Scratch<T> plane_data(threads, bands.planes_size<T>());
  Scratch<Vector> vector_lists(threads, vectors);
  with_channels<T>(n, [&]<int F> {
    parallel_region(threads, [&](const Team& team) {
      T* const planes = plane_data[team.thread];
      Vector* const list = vector_lists[team.thread];
      team.for_each(bands.count(), [&](Index band) {
        bands.split(band, x, planes);
        const Index count = bands.list_vectors(band, W<T>, list);
        const auto tile = [&]<int V>(Index v) {
          convolve_tile<T, F, V>(depth / c.windows[1].kernel, offsets.data(), planes, list + v, weights.data(), bias,
                                 y);
        };
        constexpr int V = kVectors<F>;
        // The last tile takes some vectors again.
        for (Index v = 0; count >= V && v < count; v += V) tile.template operator()<V>(std::min(v, count - V));
        for (Index v = 0; count < V && v < count; ++v) tile.template operator()<1>(v);
        const Index first = list[0].position, numbers = (list[count - 1].position + list[count - 1].count - first) * F;
        activate_rows(activation, 1, numbers, y + first * F, numbers);
      });
    });
  });
}

template <class T>
void planar_weight_gradient(const Convolution& c, bool flip, const T* dy, const T* x, T* dweight) {
  const Bands bands(c);
  const Index depth = c.depth(), n = c.filters, vectors = bands.most_vectors(W<T>);
  const Index chunk = ceil_div(bands.count(), std::min(bands.count(), kGradientTasks));
  const Index chunks = ceil_div(bands.count(), chunk);
  memory::Buffer<Index> offsets(depth + kMostTaps);
  bands.find_offsets(offsets.data());
  memory::Buffer<T> parts(chunks * depth * n);
  const Index threads = limit_threads(c.work(), chunks);
  Scratch<T> plane_data(threads, bands.planes_size<T>()), dy_data(threads, vectors * n * W<T>);
  Scratch<T> sum_data(threads, (depth + kMostTaps) * n * W<T>);
  Scratch<Vector> vector_lists(threads, vectors);
  with_channels<T>(n, [&]<int F> {
    parallel_region(threads, [&](const Team& team) {
      T* const planes = plane_data[team.thread];
      T* const dy_planes = dy_data[team.thread];
      T* const sums = sum_data[team.thread];
      Vector* const list = vector_lists[team.thread];
      team.for_each(chunks, [&](Index task) {
        zero_run((depth + kMostTaps) * F * W<T>, sums);
        for (Index band = task * chunk; band < std::min((task + 1) * chunk, bands.count()); ++band) {
          bands.split(band, x, planes);
          const Index count = bands.list_vectors(band, W<T>, list);
          for (Index v = 0; v < count; ++v) {
            Vec<T> channel[F];
            load_split(dy + list[v].position * F, list[v].count, channel);
            LEC7_UNROLL
            for (int f = 0; f < F; ++f) store(dy_planes + (v * F + f) * W<T>, channel[f]);
          }
          for (Index k = 0; k < depth; k += kTaps<F>) {  // some more in the end, which nobody reads
            gradient_tile<T, F, kTaps<F>>(count, list, offsets.data() + k, planes, dy_planes, sums + k * F * W<T>);
          }
        }
        T* const part = parts.data() + task * depth * F;
        for (Index i = 0; i < depth * F; ++i) part[i] = reduce_sum<T>(load(sums + i * W<T>));
      });
    });
  });
  add_parts(chunks, c.taps(), c.channels * n, flip, parts.data(), dweight);
}

#define LEC7_INSTANTIATE(T)                                                                                 \
  template bool planar_pays<T>(const Convolution&);                                                         \
  template void convolve_planar(const Convolution&, const T*, const Filters<T>&, const T*, Activation, T*); \
  template void planar_weight_gradient(const Convolution&, bool, const T*, const T*, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
