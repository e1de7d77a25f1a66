// Elementwise activations. Backward takes the output y: relu' = [y > 0], sigmoid' = y (1 - y), tanh' = 1 - y^2.
#pragma once

#include "lec7/array.h"
#include "lec7/isa.h"

namespace lec7 {

enum class Activation { none, relu, sigmoid, tanh };

// "relu", "sigmoid" or "tanh"; throws std::invalid_argument that names the op.
Activation parse_activation(std::string_view op, std::string_view text);

}  // namespace lec7

LEC7_KERNELS(
    // y = activation(x), elementwise; y may be x.
    template <class T> void activation_forward(Activation activation, Index n, const T* x, T* y);

    // dx = dy * activation'(y); dx may be dy.
    template <class T> void activation_backward(Activation activation, Index n, const T* dy, const T* y, T* dx);)
