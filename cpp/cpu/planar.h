// Convolutions that give few channels: what conv.cpp asks of planar.cpp.
#pragma once

#include "lec7/activation.h"
#include "patches.h"

namespace lec7::cpu::LEC7_ISA {

// Whether vectors along the lines of the output, one for each of its channels, are fuller than those of its channels.
template <class T>
bool planar_pays(const Convolution& c);

// y = activation(convolution of x + bias)
template <class T>
void convolve_planar(const Convolution& c, const T* x, const Filters<T>& filters, const T* bias, Activation activation,
                     T* y);

// dweight of the convolution c of x, with the taps turned around under `flip`.
template <class T>
void planar_weight_gradient(const Convolution& c, bool flip, const T* dy, const T* x, T* dweight);

}  // namespace lec7::cpu::LEC7_ISA
