// The extension modules, of the CPU and of CUDA: one function for each family adds its ops.
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

inline void bind_ops(pybind11::module_& m) {
  bind_activation(m);
  bind_attention(m);
  bind_conv(m);
  bind_conv_transpose(m);
  bind_dropout(m);
  bind_embedding(m);
  bind_linear(m);
  bind_locally_connected(m);
  bind_merge(m);
  bind_norm(m);
  bind_optimizer(m);
  bind_pool(m);
  bind_recurrent(m);
  bind_softmax(m);
}

}  // namespace lec7::bindings
