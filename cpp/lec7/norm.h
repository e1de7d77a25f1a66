// normalization: by the neighbouring channels, by the batch's statistics of each channel, by each row's own.
//
// local_response_norm:  y[c] = x[c] d[c]^-beta,  d[c] = k + alpha/size sum_j x[j]^2, j within size/2 of c
//                       dx[c] = dy[c] d[c]^-beta - 2 alpha beta/size x[c] sum_j dy[j] x[j] d[j]^(-beta-1)
// batch_norm:  y = gamma xhat + beta,  xhat = (x - mean) inverse,  inverse = 1 / sqrt(var + eps), for each channel
//              dx = gamma inverse (dy - mean(dy) - xhat mean(dy xhat)) in training, gamma inverse dy with frozen
//              statistics;  dgamma = sum dy xhat,  dbeta = sum dy
// layer_norm:  the same with the statistics of each row;  g = gamma dy
//              dx = inverse (g - mean(g) - xhat mean(g xhat))
#pragma once

#include "lec7/array.h"
#include "lec7/isa.h"

namespace lec7 {

struct NormShape {
  Index rows, channels;
};

struct LocalResponseNorm {
  Index rows, channels, size;
  double alpha, beta, k;
};
LocalResponseNorm local_response_norm_shape(const Shape& x, Index size, double alpha, double beta, double k);
// k is not needed: it is in saved.
LocalResponseNorm local_response_norm_backward_shape(const Shape& dy, const Shape& x, const Shape& saved, Index size,
                                                     double alpha, double beta);

struct BatchNormOptions {
  bool training;
  double momentum, eps;
};
NormShape batch_norm_shape(const Shape& x, const Shape& gamma, const Shape& beta, const Shape& running_mean,
                           const Shape& running_var, const BatchNormOptions& options);
NormShape batch_norm_backward_shape(const Shape& dy, const Shape& x, const Shape& gamma, const Shape& saved,
                                    bool training);

NormShape layer_norm_shape(const Shape& x, const Shape& gamma, const Shape& beta, double eps);
NormShape layer_norm_backward_shape(const Shape& dy, const Shape& x, const Shape& gamma, const Shape& saved);
Shape layer_norm_saved(const Shape& x);  // (2, rows...)

}  // namespace lec7

// saved: the denominators d, or (mean, inverse). dx, dgamma and dbeta may be null: not wanted.
LEC7_KERNELS(template <class T>
             void local_response_norm_forward(const LocalResponseNorm& shape, const T* x, T* y, T* saved);
             template <class T> void local_response_norm_backward(const LocalResponseNorm& shape, const T* dy,
                                                                  const T* x, const T* saved, T* dx);

             // running_mean and running_var change in training only.
             template <class T>
             void batch_norm_forward(const NormShape& shape, const BatchNormOptions& options, const T* x,
                                     const T* gamma, const T* beta, T* running_mean, T* running_var, T* y, T* saved);
             template <class T> void batch_norm_backward(const NormShape& shape, bool training, const T* dy, const T* x,
                                                         const T* gamma, const T* saved, T* dx, T* dgamma, T* dbeta);

             template <class T> void layer_norm_forward(const NormShape& shape, double eps, const T* x, const T* gamma,
                                                        const T* beta, T* y, T* saved);
             template <class T> void layer_norm_backward(const NormShape& shape, const T* dy, const T* x,
                                                         const T* gamma, const T* saved, T* dx, T* dgamma, T* dbeta);)
