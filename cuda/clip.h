// Clipping by the norm without waiting for the norm.
#pragma once

namespace lec7::cuda {

// scale = 1 where norm <= limit, else limit / norm: both of one number, on the device.
void clip_scale(const double* norm, double limit, double* scale);

}  // namespace lec7::cuda
