// Convolution of stride 1 by Winograd's minimal filtering: what conv.cpp asks of winograd.cpp.
#pragma once

#include "lec7/conv.h"
#include "patches.h"

namespace lec7::cpu::LEC7_ISA {

// F(outputs, taps) an axis; none: the direct convolution.
enum class Winograd { none, f23, f43, f34, f45 };

// The rule: the method that is allowed (lec7::conv_algorithm) and expected to take the least time, for y or dx, or for
// the gradient of the filters.
Winograd winograd_method(const Convolution& c, bool gradient = false);

// y = activation(convolution of x + bias)
void winograd_convolve(Winograd method, const Convolution& c, const float* x, const Filters<float>& filters,
                       const float* bias, Activation activation, float* y);

// dweight of the convolution c of x, with the taps turned around under `flip`.
void winograd_weight_gradient(Winograd method, const Convolution& c, bool flip, const float* dy, const float* x,
                              float* dweight);

}  // namespace lec7::cpu::LEC7_ISA
