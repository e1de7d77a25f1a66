// Copies in another order. Both are bound by memory: 8 and 4 bytes an element.
#include "arrays.h"

#include "kernel.h"

namespace lec7::cuda {
namespace {

struct Strides {
  int rank;
  Index size[Shape::kMaxRank];    // of y
  Index stride[Shape::kMaxRank];  // in x, along y's axes
};

// Writes go to neighbouring addresses; reads do where the last axis stays the last.
__global__ void __launch_bounds__(kThreads) transpose_kernel(Strides strides, Index n, const int* x, int* y) {
  LEC7_STRIDED(i, n) {
    Index rest = i, from = 0;
    for (int axis = strides.rank - 1; axis >= 0; --axis) {
      from += rest % strides.size[axis] * strides.stride[axis];
      rest /= strides.size[axis];
    }
    y[i] = x[from];
  }
}

__global__ void __launch_bounds__(kThreads) fill_words_kernel(int* to, int bits, Index words) {
  LEC7_STRIDED(i, words) to[i] = bits;
}

}  // namespace

void transpose(const Shape& x_shape, std::span<const int> axes, const void* x, void* y) {
  Strides strides{x_shape.rank(), {}, {}};
  for (int axis = 0; axis < strides.rank; ++axis) {
    const int from = axes[static_cast<std::size_t>(axis)];
    strides.size[axis] = x_shape[from];
    strides.stride[axis] = x_shape.size(from + 1, strides.rank);
  }
  const Index n = x_shape.size();
  launch("transpose_kernel", transpose_kernel, strided_grid(n), strides, n, static_cast<const int*>(x),
         static_cast<int*>(y));
}

void fill_words(void* to, int bits, Index words) {
  launch("fill_words_kernel", fill_words_kernel, strided_grid(words), static_cast<int*>(to), bits, words);
}

}  // namespace lec7::cuda
