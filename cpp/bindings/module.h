// The extension module: one function for each family adds its ops.
#pragma once

#include <pybind11/pybind11.h>

namespace lec7::bindings {

void bind_activation(pybind11::module_& m);
void bind_attention(pybind11::module_& m);
void bind_conv(pybind11::module_& m);
void bind_conv_transpose(pybind11::module_& m);
void bind_dropout(pybind11::module_& m);
void bind_embedding(pybind11::module_& m);
void bind_linear(pybind11::module_& m);
void bind_locally_connected(pybind11::module_& m);
void bind_merge(pybind11::module_& m);
void bind_norm(pybind11::module_& m);
void bind_optimizer(pybind11::module_& m);
void bind_pool(pybind11::module_& m);
void bind_recurrent(pybind11::module_& m);
void bind_softmax(pybind11::module_& m);

}  // namespace lec7::bindings
