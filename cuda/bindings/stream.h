// lec7.cuda.Stream and lec7.cuda.Graph.
#pragma once

#include <pybind11/pybind11.h>

namespace lec7::bindings {

void bind_stream(pybind11::module_& m);

}  // namespace lec7::bindings
