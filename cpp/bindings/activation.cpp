#include "lec7/activation.h"

#include "arrays.h"
#include "module.h"

namespace lec7::bindings {
namespace {

Array forward(std::string_view op, Activation activation, py::handle x_) {
  const Array x = float_array(op, "x", x_);
  const Array y = new_array(x.dtype(), x.shape());
  with_float(x.dtype(), [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(activation_forward<T>)(activation, x.shape().size(), x.data<T>(), y.data<T>());
  });
  return y;
}

Array backward(std::string_view op, Activation activation, py::handle dy_, py::handle y_) {
  const Array dy = float_array(op, "dy", dy_), y = float_array(op, "y", y_);
  const DType dtype = common_dtype(op, {{"dy", dy}, {"y", y}});
  if (dy.shape() != y.shape()) fail(op, "dy has the shape of y", {{"dy", dy.shape()}, {"y", y.shape()}});
  const Array dx = new_array(dtype, y.shape());
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(activation_backward<T>)(activation, y.shape().size(), dy.data<T>(), y.data<T>(), dx.data<T>());
  });
  return dx;
}

}  // namespace

void bind_activation(py::module_& m) {
  struct Named {
    const char* name;
    Activation activation;
  };
  for (const auto& [name, activation] :
       {Named{"relu", Activation::relu}, Named{"sigmoid", Activation::sigmoid}, Named{"tanh", Activation::tanh}}) {
    m.def((std::string(name) + "_forward").c_str(),
          [name, activation](py::handle x) { return forward(name, activation, x).object(); }, py::arg("x"));
    m.def((std::string(name) + "_backward").c_str(),
          [name, activation](py::handle dy, py::handle y) { return backward(name, activation, dy, y).object(); },
          py::arg("dy"), py::arg("y"));
  }
}

}  // namespace lec7::bindings
