#include "lec7/locally_connected.h"

#include "arrays.h"
#include "module.h"
#include "window.h"

namespace lec7::bindings {
namespace {

constexpr const char* op = "locally_connected2d";

py::object locally_connected_forward(py::handle x_, py::handle weight_, py::handle bias_, py::handle stride) {
  const Array x = float_array(op, "x", x_), weight = float_array(op, "weight", weight_);
  const Array bias = optional_float_array(op, "bias", bias_);
  const DType dtype = common_dtype(op, {{"x", x}, {"weight", weight}, {"bias", bias}});
  const LocallyConnectedShape shape =
      locally_connected_shape(x.shape(), weight.shape(), bias.shape_or_null(), parse_per_axis(op, "stride", stride, 2));
  const Array y = new_array(dtype, shape.y);
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(locally_connected_forward<T>)(shape, x.data<T>(), weight.data<T>(), bias.data<T>(), y.data<T>());
  });
  return y.object();
}

py::tuple locally_connected_backward(py::handle dy_, py::handle x_, py::handle weight_, py::handle stride,
                                     py::handle needs_) {
  const Array dy = float_array(op, "dy", dy_), x = float_array(op, "x", x_);
  const Array weight = float_array(op, "weight", weight_);
  const DType dtype = common_dtype(op, {{"dy", dy}, {"x", x}, {"weight", weight}});
  const LocallyConnectedShape shape =
      locally_connected_backward_shape(dy.shape(), x.shape(), weight.shape(), parse_per_axis(op, "stride", stride, 2));
  const auto [need_dx, need_dweight, need_dbias] =
      parse_needs<3>(op, needs_, {"dx", "dweight", "dbias"}, {dy_, x_, weight_});
  const Array dx = gradient_array(need_dx, dtype, x.shape());
  const Array dweight = gradient_array(need_dweight, dtype, weight.shape());
  const Array dbias = gradient_array(need_dbias, dtype, Shape{shape.height.out, shape.width.out, shape.filters});
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(locally_connected_backward<T>)
    (shape, dy.data<T>(), x.data<T>(), weight.data<T>(), dx.data<T>(), dweight.data<T>(), dbias.data<T>());
  });
  return to_tuple(dx, dweight, dbias);
}

}  // namespace

void bind_locally_connected(py::module_& m) {
  m.def("locally_connected2d_forward", &locally_connected_forward, py::arg("x"), py::arg("weight"),
        py::arg("bias") = py::none(), py::kw_only(), py::arg("stride") = 1);
  m.def("locally_connected2d_backward", &locally_connected_backward, py::arg("dy"), py::arg("x"), py::arg("weight"),
        py::kw_only(), py::arg("stride") = 1, py::arg("needs") = py::none());
}

}  // namespace lec7::bindings
