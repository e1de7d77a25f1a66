// merge: where the branches of a network meet.
//
//   concat   y[..., c] = the channels of the arrays, one array after the other;  backward takes dy apart again
//   add      y += x in place (a residual connection)
#pragma once

#include <span>
#include <vector>

#include "lec7/array.h"
#include "lec7/isa.h"

namespace lec7 {

struct ConcatShape {
  Index rows;                   // (N, ...) without the channels
  std::vector<Index> channels;  // of each array
  Shape y;

  Index width() const { return y.back(); }
};

// Arrays (N, ..., C_i) that differ in C_i alone.
ConcatShape concat_shape(std::span<const Shape> arrays);
// Takes dy (N, ..., sum of C_i) apart.
ConcatShape concat_backward_shape(const Shape& dy, std::span<const Index> channels);

// Both have the same shape; `overlap`: they share memory but are not the same array.
void check_add(const Shape& y, const Shape& x, bool overlap);

}  // namespace lec7

LEC7_KERNELS(template <class T> void concat_forward(const ConcatShape& shape, const T* const* arrays, T* y);
             template <class T> void concat_backward(const ConcatShape& shape, const T* dy, T* const* gradients);
             template <class T> void add(Index n, T* y, const T* x);)
