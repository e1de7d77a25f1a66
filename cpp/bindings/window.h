// The Python values of kernel_size, stride, dilation and padding.
#pragma once

#include <pybind11/pybind11.h>

#include "lec7/window.h"

namespace lec7::bindings {

// An integer, or one for each of the `spatial` axes. The axes in front that the op lacks get `absent`.
PerAxis parse_per_axis(std::string_view op, const char* argument, pybind11::handle value, int spatial,
                       Index absent = 1);

// An integer, one for each axis, a (before, after) pair for each axis, "valid", "same" or "same_lower".
Padding parse_padding(std::string_view op, pybind11::handle value, int spatial);

// A shape given as a sequence of integers that are not negative.
Shape parse_shape(std::string_view op, const char* argument, pybind11::handle value);

}  // namespace lec7::bindings
