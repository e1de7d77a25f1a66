// Convolution with 3 x 3 filters by Winograd's filtering, F(4 x 4, 3 x 3): what conv.cu asks of winograd.cu.
#pragma once

#include "lec7/conv.h"

namespace lec7::cuda {

// Whether the algorithm may be taken, and pays.
bool winograd_pays(const ConvShape& shape);

void winograd_forward(const ConvShape& shape, const float* x, const float* weight, const float* bias, float* y);
void winograd_input_gradient(const ConvShape& shape, const float* dz, const float* weight, const float* bias,
                             float* dx);
void winograd_weight_gradient(const ConvShape& shape, const float* dz, const float* x, float* dweight);

}  // namespace lec7::cuda
