// The direct convolution, of any geometry: what conv.cpp asks of direct.cpp.
#pragma once

#include "lec7/activation.h"
#include "patches.h"

namespace lec7::cpu::LEC7_ISA {

// y = activation(convolution of x + bias)
template <class T>
void convolve_direct(const Convolution& c, const T* x, const Filters<T>& filters, const T* bias, Activation activation,
                     T* y);

// dweight of the convolution c of x, with the taps turned around under `flip`.
template <class T>
void direct_weight_gradient(const Convolution& c, bool flip, const T* dy, const T* x, T* dweight);

}  // namespace lec7::cpu::LEC7_ISA
