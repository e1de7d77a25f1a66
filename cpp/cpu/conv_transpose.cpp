// Transposed convolution: the passes of the convolution that it transposes, in other roles. Its variants are those of
// conv.cpp, and the bias is a pass of its own over y; but
//
//   tiles  where filters lie side by side (kernel = stride), a row of x times a row of taps is a row of y: products
//          that write y once, bias and all. 2 x 2 with stride 2 takes 0.6 of the time of the four phases of dx
#include "lec7/conv_transpose.h"

#include <algorithm>

#include "column_sum.h"
#include "gemm.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kGrain = 1 << 14;       // numbers a task
constexpr Index kRowBlock = 120;        // cells of x a task: their channels stay in L2
constexpr Index kPanelGroup = 4;        // panels of filters a task
constexpr Index kSerialWork = 1 << 18;  // multiplications under which a second thread does not pay

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

template <class T>
void repeat(Index period, Index n, const T* from, T* to) {
  for (Index i = 0; i < n; ++i) to[i] = from[i % period];
}

// Few filters leave most of a vector empty: then their bias is repeated until it fills whole ones.
template <class T>
void add_bias(Index size, Index filters, const T* bias, T* y) {
  const Index n = filters < 8 * W<T> ? filters * W<T> : filters;
  memory::Buffer<T> repeated(n);
  repeat(filters, n, bias, repeated.data());
  parallel_ranges(ceil_div(size, n), std::max<Index>(1, kGrain / n), [&](Index begin, Index end) {
    for (Index at = begin * n; at < std::min(end * n, size); at += n) {
      for_lanes<T>(std::min(n, size - at), [&](Index j, auto lanes) LEC7_LAMBDA_INLINE {
        store_lanes(y + at + j, load_lanes(y + at + j, lanes) + load_lanes(repeated.data() + j, lanes), lanes);
      });
    }
  });
}

bool is_tiled(const ConvShape& c) {
  for (const Window& w : c.windows) {
    if (w.kernel != w.stride || w.pad_before != 0 || w.in != w.out * w.stride) return false;
  }
  return c.groups == 1 && c.taps() > 1;
}

template <class T>
void forward_tiles(const ConvTransposeShape& s, const T* x, const T* weight, const T* bias, T* y) {
  const auto& [wd, wh, ww] = s.conv.windows;
  const Index cells = ww.out, k = s.conv.filters, n = ww.kernel * s.filters();  // a row: (cells x k) (k x n)
  const Index rows = s.conv.batch * wd.out * wh.out, tap_rows = wd.kernel * wh.kernel;
  const Index packed_size = PackedB<T>::size(k, n), panels = PackedB<T>::panels(n);
  const Index row_block = std::max<Index>(1, kRowBlock / cells), row_blocks = ceil_div(rows, row_block);
  const Index panel_groups = ceil_div(panels, kPanelGroup), tasks = tap_rows * row_blocks * panel_groups;
  memory::Buffer<T> packed(tap_rows * packed_size), repeated(bias == nullptr ? 0 : n);
  if (bias != nullptr) repeat(s.filters(), n, bias, repeated.data());
  for (Index t = 0; t < tap_rows; ++t) pack_b<T>({weight + t * n * k, k, true}, k, n, packed.data() + t * packed_size);
  parallel_region(rows * cells * k * n * tap_rows < kSerialWork ? 1 : tasks, [&](const Team& team) {
    team.for_each(tasks, [&](Index task) {
      const Index t = task % (tap_rows * panel_groups) / panel_groups, group = task % panel_groups;
      const Index begin = task / (tap_rows * panel_groups) * row_block, end = std::min(begin + row_block, rows);
      const PackedB<T> filters{packed.data() + t * packed_size, k, n};
      for (Index panel = group * kPanelGroup; panel < std::min((group + 1) * kPanelGroup, panels); ++panel) {
        for (Index row = begin; row < end; ++row) {
          const Index plane = row / wh.out * wd.kernel + t / wh.kernel;  // of y: images, then depth
          const Index row_of_y = plane * wh.in + row % wh.out * wh.kernel + t % wh.kernel;
          multiply_packed(cells, x + row * cells * k, k, Order::row_major, filters, panel, panel + 1,
                          y + row_of_y * cells * n, n, bias == nullptr ? nullptr : repeated.data(), false);
        }
      }
    });
  });
}

}  // namespace

template <class T>
void conv_transpose_forward(const ConvTransposeShape& s, const T* x, const T* weight, const T* bias, T* y) {
  if (is_tiled(s.conv)) return forward_tiles(s, x, weight, bias, y);
  constexpr T* none = nullptr;
  conv_backward<T>(s.conv, x, none, weight, none, y, none, none);
  if (bias != nullptr) add_bias(s.y.size(), s.filters(), bias, y);
}

template <class T>
void conv_transpose_backward(const ConvTransposeShape& s, const T* dy, const T* x, const T* weight, T* dx, T* dweight,
                             T* dbias) {
  constexpr T* none = nullptr;
  if (dx != nullptr) conv_forward<T>(s.conv, dy, weight, none, dx);
  if (dweight != nullptr) conv_backward<T>(s.conv, x, dy, weight, none, none, dweight, none);
  if (dbias != nullptr) column_sum(s.y.size() / s.filters(), s.filters(), dy, s.filters(), dbias);
}

#define LEC7_INSTANTIATE(T)                                                                          \
  template void conv_transpose_forward(const ConvTransposeShape&, const T*, const T*, const T*, T*); \
  template void conv_transpose_backward(const ConvTransposeShape&, const T*, const T*, const T*, T*, T*, T*);
LEC7_INSTANTIATE(float)
LEC7_INSTANTIATE(double)

}  // namespace lec7::cpu::LEC7_ISA
