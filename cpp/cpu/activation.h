// The activations on one vector, for the kernels that fuse them.
#pragma once

#include "lec7/activation.h"
#include "simd.h"

namespace lec7::cpu::LEC7_ISA {

template <class T, Activation activation>
LEC7_INLINE Vec<T> activate(Vec<T> x) {
  if constexpr (activation == Activation::relu) return max<T>(Vec<T>{}, x);
  else if constexpr (activation == Activation::sigmoid) return sigmoid<T>(x);
  else if constexpr (activation == Activation::tanh) return tanh<T>(x);
  else return x;
}

// dy * activation'(y)
template <class T, Activation activation>
LEC7_INLINE Vec<T> activate_backward(Vec<T> dy, Vec<T> y) {
  if constexpr (activation == Activation::relu) return y > 0 ? dy : Vec<T>{};
  else if constexpr (activation == Activation::sigmoid) return dy * (y * (T{1} - y));
  else if constexpr (activation == Activation::tanh) return dy * (T{1} - y * y);
  else return dy;
}

// Calls body<activation>() with the run-time value as a constant.
template <class Body>
LEC7_INLINE void with_activation(Activation activation, Body&& body) {
  switch (activation) {
    case Activation::none: return body.template operator()<Activation::none>();
    case Activation::relu: return body.template operator()<Activation::relu>();
    case Activation::sigmoid: return body.template operator()<Activation::sigmoid>();
    case Activation::tanh: return body.template operator()<Activation::tanh>();
  }
}

// In place on rows of n numbers, ld apart: for a block of a product that is still in the cache.
template <class T>
void activate_rows(Activation activation, Index rows, Index n, T* y, Index ld);

}  // namespace lec7::cpu::LEC7_ISA
