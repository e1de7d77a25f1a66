// The activations that kernels fuse into their results.
#pragma once

#include <cuda_runtime.h>

#include "lec7/activation.h"

namespace lec7::cuda {

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ inline float activate(Activation activation, float z) {
  switch (activation) {
    case Activation::relu: return z > 0 ? z : (z != z ? z : 0.0f);
    case Activation::sigmoid: return sigmoid(z);
    case Activation::tanh: return tanhf(z);
    default: return z;
  }
}

// activation'(z) from y = activation(z).
__device__ inline float activation_slope(Activation activation, float y) {
  switch (activation) {
    case Activation::relu: return y > 0 ? 1.0f : 0.0f;
    case Activation::sigmoid: return y * (1 - y);
    case Activation::tanh: return 1 - y * y;
    default: return 1.0f;
  }
}

}  // namespace lec7::cuda
