// linear: y = activation(x W + b), x (..., I), W (I, O), b (O,); and the plain matrix product.
//
// Backward, with dz = dy * activation'(y):  dx = dz W^T,  dW = x^T dz,  db = sum of the rows of dz.
#pragma once

#include "lec7/activation.h"

namespace lec7 {

struct LinearShape {
  Index rows, in, out;
  Shape y;
};

// bias may be null (none).
LinearShape linear_shape(const Shape& x, const Shape& weight, const Shape* bias);
// Also checks dy, and y where it is given.
LinearShape linear_backward_shape(const Shape& dy, const Shape& x, const Shape& weight, const Shape* y,
                                  Activation activation);

struct MatmulShape {
  Index m, n, k;
};
MatmulShape matmul_shape(const Shape& a, const Shape& b, bool transpose_a, bool transpose_b);

}  // namespace lec7

LEC7_KERNELS(template <class T> void linear_forward(const LinearShape& shape, const T* x, const T* weight,
                                                    const T* bias, Activation activation, T* y);

             // dx, dweight and dbias may be null: not wanted. y is read only where there is an activation.
             template <class T> void linear_backward(const LinearShape& shape, const T* dy, const T* x, const T* weight,
                                                     const T* y, Activation activation, T* dx, T* dweight, T* dbias);

             template <class T>
             void matmul(const MatmulShape& shape, const T* a, bool transpose_a, const T* b, bool transpose_b, T* c);)
