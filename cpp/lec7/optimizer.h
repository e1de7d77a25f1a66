// Updates of parameters in place, one pass over memory; with g = grad_scale * grads + weight_decay * params:
//
//   sgd      buffer = momentum * buffer + g;  params -= lr * (nesterov ? g + momentum * buffer : buffer)
//   rmsprop  square_average = decay * square_average + (1 - decay) * g^2;  params -= lr * g / (sqrt(square_average) +
//   eps) adam     mean = beta1 * mean + (1 - beta1) * g;  variance = beta2 * variance + (1 - beta2) * g^2
//            params -= lr * mean / (1 - beta1^step) / (sqrt(variance / (1 - beta2^step)) + eps)
//            decoupled (AdamW): g = grad_scale * grads, and first params *= 1 - lr * weight_decay
#pragma once

#include "lec7/array.h"
#include "lec7/isa.h"
#include "lec7/number.h"

namespace lec7 {

struct Sgd {
  Number<double> lr;
  double momentum;
  bool nesterov;
  double weight_decay;
  Number<double> grad_scale;
};

struct RmsProp {
  Number<double> lr;
  double decay, eps, weight_decay;
  Number<double> grad_scale;
};

struct Adam {
  Number<double> lr;
  Number<Index> step;  // 1 at the first update
  double beta1, beta2, eps, weight_decay;
  bool decoupled;
  Number<double> grad_scale;
};

// Refuse numbers for which the formula has no meaning, as far as the host knows them.
void check(const Sgd& sgd, bool has_buffer);
void check(const RmsProp& rmsprop);
void check(const Adam& adam);

// All arrays have the shape of params, the first of them; returns the number of elements.
Index update_shape(std::string_view op, std::span<const Named> arrays);

}  // namespace lec7

LEC7_KERNELS(
    // momentum_buffer may be null: no momentum.
    template <class T> void sgd_update(const Sgd& sgd, Index n, T* params, const T* grads, T* momentum_buffer);
    template <class T>
    void rmsprop_update(const RmsProp& rmsprop, Index n, T* params, const T* grads, T* square_average);
    template <class T> void adam_update(const Adam& adam, Index n, T* params, const T* grads, T* mean, T* variance);

    // norm = sqrt(sum of x^2), summed in float64.
    template <class T> void global_norm(Index n, const T* x, double* norm);
    template <class T> void scale(Index n, T* x, double factor);)
