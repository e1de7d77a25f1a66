// Joining and adding branches: copies, bound by memory: 8 bytes a number to copy, 12 to add.
//
// concat is one launch for up to kParts arrays: a thread takes the next numbers of a row of y, so that y is accessed
// from front to back and each array is, too, and finds their array among a few offsets in the kernel's parameters.
#include "lec7/merge.h"

#include "elementwise.h"

namespace lec7::cuda {
namespace {

constexpr int kParts = 8;

// Columns [first, first + columns) of y (rows, width) and the arrays that they belong to. Element is const in forward.
template <class Element>
struct Parts {
  Element* data[kParts];
  Index end[kParts];  // column behind each array's last, from `first`
  int count;
  Index rows, first, columns, width;
};

template <int width, bool forward, class Element, class Whole>
__global__ void __launch_bounds__(kThreads) concat_kernel(Parts<Element> parts, Whole* y) {
  const Index vectors = parts.columns / width;
  LEC7_STRIDED(i, parts.rows * vectors) {
    const Index row = i / vectors, column = (i - row * vectors) * width;
    Element* part = parts.data[0];
    Index begin = 0, end = parts.end[0];
#pragma unroll
    for (int k = 1; k < kParts; ++k) {
      if (k < parts.count && column >= end) {
        begin = end;
        end = parts.end[k];
        part = parts.data[k];
      }
    }
    part += row * (end - begin) + column - begin;
    Whole* const whole = y + row * parts.width + parts.first + column;
    if constexpr (forward) store(whole, load<width>(part));
    else store(part, load<width>(whole));
  }
}

template <bool forward, class Element, class Whole>
void for_parts(const char* name, const ConcatShape& s, Element* const* arrays, Whole* y) {
  const auto count = static_cast<Index>(s.channels.size());
  Parts<Element> parts{};
  parts.rows = s.rows;
  parts.width = s.width();
  for (Index begin = 0; begin < count; begin += parts.count) {
    parts.count = static_cast<int>(std::min<Index>(kParts, count - begin));
    parts.columns = 0;
    bool fours = in_fours({y}) && parts.width % 4 == 0 && parts.first % 4 == 0;
    for (int k = 0; k < parts.count; ++k) {
      const Index channels = s.channels[static_cast<std::size_t>(begin + k)];
      parts.data[k] = arrays[begin + k];
      parts.columns += channels;
      parts.end[k] = parts.columns;
      fours = fours && channels % 4 == 0 && in_fours({parts.data[k]});
    }
    const Index n = parts.rows * parts.columns;
    if (fours) launch(name, concat_kernel<4, forward, Element, Whole>, strided_grid(n / 4), parts, y);
    else launch(name, concat_kernel<1, forward, Element, Whole>, strided_grid(n), parts, y);
    parts.first += parts.columns;
  }
}

struct AddTo {
  float* y;
  const float* x;
  template <int width>
  __device__ void operator()(Index i) const {
    Floats<width> sum = load<width>(y + i);
    const Floats<width> v = load<width>(x + i);
#pragma unroll
    for (int j = 0; j < width; ++j) sum.at[j] += v.at[j];
    store(y + i, sum);
  }
};

}  // namespace

template <>
void concat_forward(const ConcatShape& s, const float* const* arrays, float* y) {
  for_parts<true>("concat_forward_kernel", s, arrays, y);
}

template <>
void concat_backward(const ConcatShape& s, const float* dy, float* const* gradients) {
  for_parts<false>("concat_backward_kernel", s, gradients, dy);
}

template <>
void add(Index n, float* y, const float* x) {
  elementwise("add_kernel", n, {y, x}, AddTo{y, x});
}

}  // namespace lec7::cuda
