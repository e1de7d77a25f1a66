// Elementwise, bound by memory: 12 bytes an element in backward, 8 in forward.
#include "lec7/activation.h"

#include "activation.h"
#include "elementwise.h"

namespace lec7::cuda {
namespace {

struct ActivationForward {
  Activation activation;
  const float* x;
  float* y;

  template <int width>
  __device__ void operator()(Index i) const {
    Floats<width> v = load<width>(x + i);
    for (float& number : v.at) number = activate(activation, number);
    store(y + i, v);
  }
};

struct ActivationBackward {
  Activation activation;
  const float *dy, *y;
  float* dx;

  template <int width>
  __device__ void operator()(Index i) const {
    Floats<width> v = load<width>(dy + i);
    const Floats<width> at = load<width>(y + i);
    for (int k = 0; k < width; ++k) v.at[k] *= activation_slope(activation, at.at[k]);
    store(dx + i, v);
  }
};

}  // namespace

template <>
void activation_forward(Activation activation, Index n, const float* x, float* y) {
  elementwise("activation_forward_kernel", n, {x, y}, ActivationForward{activation, x, y});
}

template <>
void activation_backward(Activation activation, Index n, const float* dy, const float* y, float* dx) {
  elementwise("activation_backward_kernel", n, {dy, y, dx}, ActivationBackward{activation, dy, y, dx});
}

}  // namespace lec7::cuda
