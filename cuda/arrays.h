// What arrays need besides the ops.
#pragma once

#include <span>

#include "lec7/array.h"

namespace lec7::cuda {

// y = x with its axes in another order: axis i of y is axis axes[i] of x. Elements of 4 bytes.
void transpose(const Shape& x_shape, std::span<const int> axes, const void* x, void* y);

// `words` times the same 4 bytes.
void fill_words(void* to, int bits, Index words);

}  // namespace lec7::cuda
