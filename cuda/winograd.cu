// Winograd's minimal filtering F(4 x 4, 3 x 3): 36 multiplications where direct sums take 144, with an error of some
// 2e-6 of the norm (Lavin, Gray, Fast Algorithms for Convolutional Neural Networks, 2016, appendix A). With
// d a 6 x 6 patch of x, g a filter and z the 4 x 4 cells of y under the patch:
//
//   y   = A' [sum_c (G g G') * (B' d B)] A                     * is elementwise
//   dg  = G' [sum_tiles (B' d B) * (A dz A')] G
//
// So each pass is: two scatters that turn tiles into 36 matrices, 36 matrix products in one launch (gemm.cu), and a
// gather back. The products are 72 tiles channels filters FLOPs, bound by the FMA units; scatters and gathers are bound
// by memory, 2.25 to 4 numbers for one of x or y. Images are taken in turns that fit into kNumbers of scratch.
#include "winograd.h"

#include <algorithm>

#include "arrays.h"
#include "gemm.h"
#include "tile.h"

namespace lec7::cuda {
namespace {

constexpr int kOut = 4, kIn = 6, kPoints = kIn * kIn;
constexpr Index kNumbers = Index{1} << 26;  // of a scratch matrix: 256 MiB
constexpr Index kLeastChannels = 16;        // for which the products outweigh the scatters
constexpr double kLeastUse = 0.5;           // of the cells of tiles

// ---- The matrices, one dimension of a transform: rows x columns ----
//
// The points are 0, +-1 / sqrt(2), +-sqrt(2) and infinity, which have half the error of 0, +-1, +-2.

constexpr float kP = 0.70710678f, kQ = 1.41421356f;

struct InputMatrix {  // B'
  static constexpr int kRows = kIn, kColumns = kIn;
  __device__ static constexpr float at(int r, int c) {
    constexpr float m[kRows][kColumns] = {{1, 0, -2.5f, 0, 1, 0},    {0, -kQ, -2, kP, 1, 0},    {0, kQ, -2, -kP, 1, 0},
                                          {0, -kP, -0.5f, kQ, 1, 0}, {0, kP, -0.5f, -kQ, 1, 0}, {0, 1, 0, -2.5f, 0, 1}};
    return m[r][c];
  }
};
struct FilterMatrix {  // G
  static constexpr int kRows = kIn, kColumns = 3;
  __device__ static constexpr float at(int r, int c) {
    constexpr float a = 1.0f / 3, b = 1.0f / 6;
    constexpr float m[kRows][kColumns] = {{1, 0, 0},      {-2 * a, -2 * a * kP, -a}, {-2 * a, 2 * a * kP, -a},
                                          {b, b * kQ, a}, {b, -b * kQ, a},           {0, 0, 1}};
    return m[r][c];
  }
};
struct OutputMatrix {  // A'
  static constexpr int kRows = kOut, kColumns = kIn;
  __device__ static constexpr float at(int r, int c) {
    constexpr float m[kRows][kColumns] = {{1, 1, 1, 1, 1, 0},
                                          {0, kP, -kP, kQ, -kQ, 0},
                                          {0, 0.5f, 0.5f, 2, 2, 0},
                                          {0, kP / 2, -kP / 2, 2 * kQ, -2 * kQ, 1}};
    return m[r][c];
  }
};
template <class M>
struct Transposed {
  static constexpr int kRows = M::kColumns, kColumns = M::kRows;
  __device__ static constexpr float at(int r, int c) { return M::at(c, r); }
};

// out = M in M'; the zeros of M cost nothing.
template <class M>
__device__ void transform(const float (&in)[M::kColumns][M::kColumns], float (&out)[M::kRows][M::kRows]) {
  float half[M::kRows][M::kColumns];
#pragma unroll
  for (int r = 0; r < M::kRows; ++r) {
#pragma unroll
    for (int c = 0; c < M::kColumns; ++c) {
      half[r][c] = 0;
#pragma unroll
      for (int k = 0; k < M::kColumns; ++k) {
        if (M::at(r, k) != 0) half[r][c] += M::at(r, k) * in[k][c];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < M::kRows; ++r) {
#pragma unroll
    for (int c = 0; c < M::kRows; ++c) {
      out[r][c] = 0;
#pragma unroll
      for (int k = 0; k < M::kColumns; ++k) {
        if (M::at(c, k) != 0) out[r][c] += half[r][k] * M::at(c, k);
      }
    }
  }
}

// ---- Tiles of an image ----

// Images (n, height, width, channels), cut into tiles: tile (h, w) begins at cell (4 h - top, 4 w - left).
struct Tiled {
  int height, width, channels, top, left;
  int down, across;  // tiles of an image
};

// A tile's place, and the thread's channel.
struct Place {
  Index row;  // the tile's, of all images
  int channel;
  Index image;  // its first cell
  int h, w;

  __device__ Place(const Tiled& t, Index i) {
    row = i / t.channels;
    channel = static_cast<int>(i - row * t.channels);
    const int each = t.down * t.across;
    const Index n = row / each;
    const int tile = static_cast<int>(row - n * each);
    image = n * t.height * t.width;
    h = tile / t.across * kOut - t.top, w = tile % t.across * kOut - t.left;
  }
  __device__ bool inside(const Tiled& t, int r, int c) const {
    return static_cast<unsigned>(h + r) < static_cast<unsigned>(t.height) &&
           static_cast<unsigned>(w + c) < static_cast<unsigned>(t.width);
  }
  __device__ Index at(const Tiled& t, int r, int c) const {
    return (image + static_cast<Index>(h + r) * t.width + w + c) * t.channels + channel;
  }
};

// to (36, rows, channels) = the transforms of the tiles of x.
template <class M>
__global__ void __launch_bounds__(kThreads, 2) winograd_scatter_kernel(Tiled t, Index rows, const float* x, float* to) {
  const Index n = rows * t.channels;
  LEC7_STRIDED(i, n) {
    const Place place(t, i);
    float in[M::kColumns][M::kColumns], out[kIn][kIn];
#pragma unroll
    for (int r = 0; r < M::kColumns; ++r) {
#pragma unroll
      for (int c = 0; c < M::kColumns; ++c) in[r][c] = place.inside(t, r, c) ? __ldg(x + place.at(t, r, c)) : 0.0f;
    }
    transform<M>(in, out);
#pragma unroll
    for (int p = 0; p < kPoints; ++p) to[p * n + i] = out[p / kIn][p % kIn];
  }
}

// y = finish(the transforms of from (36, rows, channels)).
__global__ void __launch_bounds__(kThreads, 2)
    winograd_gather_kernel(Tiled t, Index rows, const float* from, Finish<float> finish, float* y) {
  const Index n = rows * t.channels;
  LEC7_STRIDED(i, n) {
    const Place place(t, i);
    float in[kIn][kIn], out[kOut][kOut];
#pragma unroll
    for (int p = 0; p < kPoints; ++p) in[p / kIn][p % kIn] = from[p * n + i];
    transform<OutputMatrix>(in, out);
#pragma unroll
    for (int r = 0; r < kOut; ++r) {
#pragma unroll
      for (int c = 0; c < kOut; ++c) {
        if (place.inside(t, r, c)) y[place.at(t, r, c)] = finish(out[r][c], place.channel);
      }
    }
  }
}

// to (36, n) = the transforms of filters (3, 3, n), turned around where `turn`.
__global__ void __launch_bounds__(kThreads, 2)
    winograd_filter_kernel(Index n, bool turn, const float* weight, float* to) {
  LEC7_STRIDED(i, n) {
    float in[3][3], out[kIn][kIn];
#pragma unroll
    for (int t = 0; t < 9; ++t) in[t / 3][t % 3] = weight[(turn ? 8 - t : t) * n + i];
    transform<FilterMatrix>(in, out);
#pragma unroll
    for (int p = 0; p < kPoints; ++p) to[p * n + i] = out[p / kIn][p % kIn];
  }
}

// dweight (3, 3, n) = the transforms of from (36, n), or plus those.
__global__ void __launch_bounds__(kThreads, 2)
    winograd_filter_gradient_kernel(Index n, bool turn, bool plus, const float* from, float* dweight) {
  LEC7_STRIDED(i, n) {
    float in[kIn][kIn], out[3][3];
#pragma unroll
    for (int p = 0; p < kPoints; ++p) in[p / kIn][p % kIn] = from[p * n + i];
    transform<Transposed<FilterMatrix>>(in, out);
#pragma unroll
    for (int t = 0; t < 9; ++t) {
      float* const at = dweight + (turn ? 8 - t : t) * n + i;
      *at = plus ? *at + out[t / 3][t % 3] : out[t / 3][t % 3];
    }
  }
}

// ---- The passes ----

struct Sizes {
  Index images;  // of all; depth is one of their axes
  int in_h, in_w, channels, out_h, out_w, filters, top, left;

  explicit Sizes(const ConvShape& s)
      : images(s.batch * s.windows[0].out),
        in_h(static_cast<int>(s.windows[1].in)),
        in_w(static_cast<int>(s.windows[2].in)),
        channels(static_cast<int>(s.channels)),
        out_h(static_cast<int>(s.windows[1].out)),
        out_w(static_cast<int>(s.windows[2].out)),
        filters(static_cast<int>(s.filters)),
        top(static_cast<int>(s.windows[1].pad_before)),
        left(static_cast<int>(s.windows[2].pad_before)) {}
  Index down() const { return ceil_div(out_h, kOut); }
  Index across() const { return ceil_div(out_w, kOut); }
  Index weight_size() const { return Index{channels} * filters; }
  Tiled x() const { return {in_h, in_w, channels, top, left, static_cast<int>(down()), static_cast<int>(across())}; }
  Tiled y() const { return {out_h, out_w, filters, 0, 0, static_cast<int>(down()), static_cast<int>(across())}; }
};

// body(first image, tiles) on turns of images.
template <class Body>
void for_turns(const Sizes& s, Body&& body) {
  const Index tiles = s.down() * s.across();
  const Index turn = std::max<Index>(1, kNumbers / (kPoints * tiles * std::max(s.channels, s.filters)));
  for (Index n = 0; n < s.images; n += turn) {
    const Index images = std::min(turn, s.images - n);
    body(n, images * tiles);
  }
}

template <class M>
void scatter(const Tiled& t, Index rows, const float* x, float* to) {
  launch("winograd_scatter_kernel", winograd_scatter_kernel<M>, strided_grid(rows * t.channels), t, rows, x, to);
}

// y = the convolution of x with filters (3, 3, channels, filters), or (3, 3, filters, channels) where `transposed`.
void convolve(const Sizes& s, const float* x, const float* weight, bool turn, bool transposed,
              const Finish<float>& finish, float* y) {
  const Index size = s.weight_size();
  Buffer<float> filters(kPoints * size);
  launch("winograd_filter_kernel", winograd_filter_kernel, strided_grid(size), size, turn, weight, filters.data());
  for_turns(s, [&](Index n, Index tiles) {
    Buffer<float> patches(kPoints * tiles * s.channels), products(kPoints * tiles * s.filters);
    scatter<InputMatrix>(s.x(), tiles, x + n * s.in_h * s.in_w * s.channels, patches.data());
    gemm(tiles, s.filters, s.channels, {patches.data(), s.channels},
         {filters.data(), transposed ? s.channels : s.filters, transposed}, products.data(), s.filters, nullptr,
         Activation::none, {kPoints, tiles * s.channels, size});
    launch("winograd_gather_kernel", winograd_gather_kernel, strided_grid(tiles * s.filters), s.y(), tiles,
           products.data(), finish, y + n * s.out_h * s.out_w * s.filters);
  });
}

}  // namespace

bool winograd_pays(const ConvShape& s) {
  const bool tensor_cores = allow_tf32() && properties().compute_capability >= 80;
  if (conv_algorithm() != ConvAlgorithm::fast || tensor_cores || s.groups != 1) return false;
  if (s.channels < kLeastChannels || s.filters < kLeastChannels) return false;
  const auto& [d, h, w] = s.windows;
  if (d.kernel != 1 || d.stride != 1 || d.in != d.out || d.pad_before != 0) return false;
  double use = 1;
  for (const Window& a : {h, w}) {
    if (a.kernel != 3 || a.stride != 1 || a.dilation != 1) return false;
    if (std::max(a.in, a.out) > INT32_MAX / 2 || a.pad_before > 1024) return false;
    use *= static_cast<double>(a.out) / static_cast<double>(ceil_div(a.out, kOut) * kOut);
  }
  return use >= kLeastUse;
}

void winograd_forward(const ConvShape& s, const float* x, const float* weight, const float* bias, float* y) {
  convolve(Sizes(s), x, weight, s.flip, false, {bias, s.activation}, y);
}

// The convolution of dz with the filters turned around, and channels and filters in each other's roles.
void winograd_input_gradient(const ConvShape& s, const float* dz, const float* weight, const float* bias, float* dx) {
  Sizes sizes(s);
  std::swap(sizes.in_h, sizes.out_h);
  std::swap(sizes.in_w, sizes.out_w);
  std::swap(sizes.channels, sizes.filters);
  sizes.top = 2 - sizes.top, sizes.left = 2 - sizes.left;
  convolve(sizes, dz, weight, !s.flip, true, {bias, Activation::none}, dx);
}

void winograd_weight_gradient(const ConvShape& shape, const float* dz, const float* x, float* dweight) {
  const Sizes s(shape);
  const Index size = s.weight_size();
  Buffer<float> products(kPoints * size);
  if (s.images == 0) return fill_words(dweight, 0, 9 * size);
  for_turns(s, [&](Index n, Index tiles) {
    Buffer<float> patches(kPoints * tiles * s.channels), outputs(kPoints * tiles * s.filters);
    scatter<InputMatrix>(s.x(), tiles, x + n * s.in_h * s.in_w * s.channels, patches.data());
    scatter<Transposed<OutputMatrix>>(s.y(), tiles, dz + n * s.out_h * s.out_w * s.filters, outputs.data());
    gemm(s.channels, s.filters, tiles, {patches.data(), s.channels, true}, {outputs.data(), s.filters}, products.data(),
         s.filters, nullptr, Activation::none, {kPoints, tiles * s.channels, tiles * s.filters});
    launch("winograd_filter_gradient_kernel", winograd_filter_gradient_kernel, strided_grid(size), size, shape.flip,
           n > 0, products.data(), dweight);
  });
}

}  // namespace lec7::cuda
