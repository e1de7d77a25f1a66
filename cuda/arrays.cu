// Copies in another order or type. All are bound by memory: 8 (transpose), 6 or 4 (convert), 4 bytes an element.
#include "arrays.h"

#include "half.h"
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

// Four at a time where both arrays lie on boundaries of four numbers.
template <int width, class From, class To>
__global__ void __launch_bounds__(kThreads) convert_kernel(Index n, const From* x, To* y) {
  struct alignas(width * sizeof(From)) Read {
    From at[width];
  };
  struct alignas(width * sizeof(To)) Written {
    To at[width];
  };
  LEC7_STRIDED(i, n / width) {
    const Read from = reinterpret_cast<const Read*>(x)[i];
    Written to;
#pragma unroll
    for (int j = 0; j < width; ++j) to.at[j] = from_float<To>(to_float(from.at[j]));
    reinterpret_cast<Written*>(y)[i] = to;
  }
  if constexpr (width > 1) {
    const Index i = n / width * width + static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) y[i] = from_float<To>(to_float(x[i]));
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

template <class From, class To>
void convert(Index n, const From* x, To* y) {
  const auto on_boundary = [](const auto* p) { return reinterpret_cast<std::uintptr_t>(p) % (4 * sizeof *p) == 0; };
  if (on_boundary(x) && on_boundary(y)) {
    launch("convert_kernel", convert_kernel<4, From, To>, strided_grid(ceil_div(n, 4)), n, x, y);
  } else {
    launch("convert_kernel", convert_kernel<1, From, To>, strided_grid(n), n, x, y);
  }
}
template void convert(Index, const float*, float16*);
template void convert(Index, const float*, bfloat16*);
template void convert(Index, const float16*, float*);
template void convert(Index, const bfloat16*, float*);
template void convert(Index, const float16*, bfloat16*);
template void convert(Index, const bfloat16*, float16*);

void fill_words(void* to, int bits, Index words) {
  launch("fill_words_kernel", fill_words_kernel, strided_grid(words), static_cast<int*>(to), bits, words);
}

}  // namespace lec7::cuda
