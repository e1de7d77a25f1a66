// The passes of conv that conv_transpose takes in other roles, and conv's own variants.
#pragma once

#include "kernel.h"
#include "lec7/conv.h"

namespace lec7::cuda {

// dx, plus bias (of the channels) where it is not null.
template <class T>
void conv_input_gradient(const ConvShape& shape, const T* dz, const T* weight, const T* bias, T* dx);
template <class T>
void conv_weight_gradient(const ConvShape& shape, const T* dz, const T* x, T* dweight);

// ---- depthwise.cu: each channel has its own filters ----

inline bool is_depthwise(const ConvShape& s) { return s.group_channels() == 1 && s.groups > 1; }

void depthwise_forward(const ConvShape& shape, const float* x, const float* weight, const float* bias, float* y);
void depthwise_input_gradient(const ConvShape& shape, const float* dz, const float* weight, const float* bias,
                              float* dx);
void depthwise_weight_gradient(const ConvShape& shape, const float* dz, const float* x, float* dweight);

}  // namespace lec7::cuda
