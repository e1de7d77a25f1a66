#include "lec7/linear.h"

#include "arrays.h"
#include "module.h"

namespace lec7::bindings {
namespace {

py::object linear_forward(py::handle x_, py::handle weight_, py::handle bias_, py::handle activation_) {
  const Array x = any_float_array("linear", "x", x_), weight = any_float_array("linear", "weight", weight_);
  const Array bias = optional_any_float_array("linear", "bias", bias_);
  const DType dtype = common_dtype("linear", {{"x", x}, {"weight", weight}, {"bias", bias}});
  const Activation activation = activation_of("linear", activation_);
  const LinearShape shape = linear_shape(x.shape(), weight.shape(), bias.shape_or_null());
  const Array y = new_array(dtype, shape.y);
  with_any_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(linear_forward<T>)(shape, x.data<T>(), weight.data<T>(), bias.data<T>(), activation, y.data<T>());
  });
  return y.object();
}

py::tuple linear_backward(py::handle dy_, py::handle x_, py::handle weight_, py::handle y_, py::handle activation_,
                          py::handle needs_) {
  const Array dy = any_float_array("linear", "dy", dy_), x = any_float_array("linear", "x", x_);
  const Array weight = any_float_array("linear", "weight", weight_), y = optional_any_float_array("linear", "y", y_);
  const DType dtype = common_dtype("linear", {{"dy", dy}, {"x", x}, {"weight", weight}, {"y", y}});
  const Activation activation = activation_of("linear", activation_);
  const LinearShape shape = linear_backward_shape(dy.shape(), x.shape(), weight.shape(), y.shape_or_null(), activation);
  const auto [need_dx, need_dweight, need_dbias] =
      parse_needs<3>("linear", needs_, {"dx", "dweight", "dbias"}, {dy_, x_, weight_, y_});
  const Array dx = gradient_array(need_dx, dtype, x.shape());
  const Array dweight = gradient_array(need_dweight, dtype, weight.shape());
  const Array dbias = gradient_array(need_dbias, dtype, Shape{shape.out});
  with_any_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(linear_backward<T>)
    (shape, dy.data<T>(), x.data<T>(), weight.data<T>(), y.data<T>(), activation, dx.data<T>(), dweight.data<T>(),
     dbias.data<T>());
  });
  return to_tuple(dx, dweight, dbias);
}

py::object matmul(py::handle a_, py::handle b_, bool transpose_a, bool transpose_b) {
  const Array a = any_float_array("matmul", "a", a_), b = any_float_array("matmul", "b", b_);
  const DType dtype = common_dtype("matmul", {{"a", a}, {"b", b}});
  const MatmulShape shape = matmul_shape(a.shape(), b.shape(), transpose_a, transpose_b);
  const Array c = new_array(dtype, Shape{shape.m, shape.n});
  with_any_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(matmul<T>)(shape, a.data<T>(), transpose_a, b.data<T>(), transpose_b, c.data<T>());
  });
  return c.object();
}

}  // namespace

void bind_linear(py::module_& m) {
  m.def("linear_forward", &linear_forward, py::arg("x"), py::arg("weight"), py::arg("bias") = py::none(), py::kw_only(),
        py::arg("activation") = py::none());
  m.def("linear_backward", &linear_backward, py::arg("dy"), py::arg("x"), py::arg("weight"), py::kw_only(),
        py::arg("y") = py::none(), py::arg("activation") = py::none(), py::arg("needs") = py::none());
  m.def("matmul", &matmul, py::arg("a"), py::arg("b"), py::kw_only(), py::arg("transpose_a") = false,
        py::arg("transpose_b") = false);
}

}  // namespace lec7::bindings
