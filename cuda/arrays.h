// What arrays need besides the ops.
#pragma once

#include <span>

#include "lec7/array.h"
#include "lec7/half.h"

namespace lec7::cuda {

// y = x with its axes in another order: axis i of y is axis axes[i] of x. Elements of 4 bytes.
void transpose(const Shape& x_shape, std::span<const int> axes, const void* x, void* y);

// y = x, each number rounded to To. Float, float16 or bfloat16, and not the same.
template <class From, class To>
void convert(Index n, const From* x, To* y);

// `words` times the same 4 bytes.
void fill_words(void* to, int bits, Index words);

}  // namespace lec7::cuda
