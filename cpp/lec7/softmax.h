// softmax over the last axis, y[k] = exp(x[k]) / sum_j exp(x[j]), its logarithm, and the losses.
//
// Backward:  softmax      dx[k] = y[k] (dy[k] - sum_j dy[j] y[j])
//            log_softmax  dx[k] = dy[k] - exp(y[k]) sum_j dy[j]
//
// softmax_cross_entropy:  loss = sum_k t[k] (lse - x[k]),  lse = log sum_k exp(x[k]),
//                         t[k] = w[k] ((1 - s) [k = label] + s / K),  s = label_smoothing
//                         dx[k] = dy (exp(x[k] - lse) sum_j t[j] - t[k])
// binary_cross_entropy:   loss = max(x, 0) - x t + log(1 + exp(-|x|)),  dx = dy (sigmoid(x) - t)
// mean_squared_error:     loss = (x - t)^2,                             dx = dy 2 (x - t)
#pragma once

#include <optional>

#include "lec7/array.h"
#include "lec7/indices.h"
#include "lec7/isa.h"

namespace lec7 {

struct SoftmaxShape {
  Index rows, classes;
};
SoftmaxShape softmax_shape(std::string_view op, const Shape& x);
SoftmaxShape softmax_backward_shape(std::string_view op, const Shape& dy, const Shape& y);

enum class Reduction { none, sum, mean };
Reduction parse_reduction(std::string_view op, std::string_view text);
// dy has the shape of the loss: () for sum and mean, otherwise that of the terms.
void check_loss_gradient(std::string_view op, Reduction reduction, const Shape& dy, const Shape& terms);

struct CrossEntropy {
  Index rows, classes;
  double label_smoothing;
  std::optional<Index> ignore_index;
  Reduction reduction;
};
// Reads the labels: each is in [0, K) or ignored. class_weight may be null.
CrossEntropy cross_entropy_shape(const Shape& logits, const Shape& labels, const Indices& label_values,
                                 const Shape* class_weight, std::optional<Index> ignore_index, double label_smoothing,
                                 Reduction reduction);

// Both shapes are equal; returns the number of elements.
Index pointwise_loss_shape(std::string_view op, const char* x_name, const Shape& x, const Shape& targets);

}  // namespace lec7

// A mean over nothing is 0, and so is its gradient. With a reduction, loss and dy are one number.
LEC7_KERNELS(template <class T> void softmax_forward(const SoftmaxShape& shape, const T* x, T* y);
             template <class T> void softmax_backward(const SoftmaxShape& shape, const T* dy, const T* y, T* dx);
             template <class T> void log_softmax_forward(const SoftmaxShape& shape, const T* x, T* y);
             template <class T> void log_softmax_backward(const SoftmaxShape& shape, const T* dy, const T* y, T* dx);

             // class_weight may be null (1). lse (rows) is kept for backward.
             template <class T>
             void softmax_cross_entropy_forward(const CrossEntropy& shape, const T* logits, const Indices& labels,
                                                const T* class_weight, T* loss, T* lse);
             template <class T> void softmax_cross_entropy_backward(const CrossEntropy& shape, const T* dy,
                                                                    const T* logits, const Indices& labels,
                                                                    const T* lse, const T* class_weight, T* dlogits);

             template <class T> void binary_cross_entropy_forward(Index n, const T* logits, const T* targets,
                                                                  Reduction reduction, T* loss);
             template <class T> void binary_cross_entropy_backward(Index n, const T* dy, const T* logits,
                                                                   const T* targets, Reduction reduction, T* dlogits);
             template <class T>
             void mean_squared_error_forward(Index n, const T* x, const T* targets, Reduction reduction, T* loss);
             template <class T> void mean_squared_error_backward(Index n, const T* dy, const T* x, const T* targets,
                                                                 Reduction reduction, T* dx);)
