#include "lec7/conv_transpose.h"

#include "arrays.h"
#include "module.h"
#include "window.h"

namespace lec7::bindings {
namespace {

constexpr const char* kOps[] = {"conv_transpose1d", "conv_transpose2d"};

ConvTransposeOptions parse_options(std::string_view op, int spatial, py::handle stride, py::handle padding,
                                   py::handle output_padding, Index groups) {
  return {parse_per_axis(op, "stride", stride, spatial), parse_padding(op, padding, spatial),
          parse_per_axis(op, "output_padding", output_padding, spatial, 0), groups};
}

template <int spatial>
py::object conv_transpose_forward(py::handle x_, py::handle weight_, py::handle bias_, py::handle stride,
                                  py::handle padding, py::handle output_padding, Index groups) {
  constexpr const char* op = kOps[spatial - 1];
  const Array x = float_array(op, "x", x_), weight = float_array(op, "weight", weight_);
  const Array bias = optional_float_array(op, "bias", bias_);
  const DType dtype = common_dtype(op, {{"x", x}, {"weight", weight}, {"bias", bias}});
  const ConvTransposeOptions options = parse_options(op, spatial, stride, padding, output_padding, groups);
  const ConvTransposeShape shape =
      conv_transpose_shape(op, spatial, x.shape(), weight.shape(), bias.shape_or_null(), options);
  const Array y = new_array(dtype, shape.y);
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(conv_transpose_forward<T>)(shape, x.data<T>(), weight.data<T>(), bias.data<T>(), y.data<T>());
  });
  return y.object();
}

template <int spatial>
py::tuple conv_transpose_backward(py::handle dy_, py::handle x_, py::handle weight_, py::handle stride,
                                  py::handle padding, py::handle output_padding, Index groups, py::handle needs_) {
  constexpr const char* op = kOps[spatial - 1];
  const Array dy = float_array(op, "dy", dy_), x = float_array(op, "x", x_);
  const Array weight = float_array(op, "weight", weight_);
  const DType dtype = common_dtype(op, {{"dy", dy}, {"x", x}, {"weight", weight}});
  const ConvTransposeOptions options = parse_options(op, spatial, stride, padding, output_padding, groups);
  const ConvTransposeShape shape =
      conv_transpose_backward_shape(op, spatial, dy.shape(), x.shape(), weight.shape(), options);
  const auto [need_dx, need_dweight, need_dbias] =
      parse_needs<3>(op, needs_, {"dx", "dweight", "dbias"}, {dy_, x_, weight_});
  const Array dx = gradient_array(need_dx, dtype, x.shape());
  const Array dweight = gradient_array(need_dweight, dtype, weight.shape());
  const Array dbias = gradient_array(need_dbias, dtype, Shape{shape.filters()});
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(conv_transpose_backward<T>)
    (shape, dy.data<T>(), x.data<T>(), weight.data<T>(), dx.data<T>(), dweight.data<T>(), dbias.data<T>());
  });
  return to_tuple(dx, dweight, dbias);
}

template <int spatial>
void bind(py::module_& m) {
  const std::string op = kOps[spatial - 1];
  m.def((op + "_forward").c_str(), &conv_transpose_forward<spatial>, py::arg("x"), py::arg("weight"),
        py::arg("bias") = py::none(), py::kw_only(), py::arg("stride") = 1, py::arg("padding") = 0,
        py::arg("output_padding") = 0, py::arg("groups") = 1);
  m.def((op + "_backward").c_str(), &conv_transpose_backward<spatial>, py::arg("dy"), py::arg("x"), py::arg("weight"),
        py::kw_only(), py::arg("stride") = 1, py::arg("padding") = 0, py::arg("output_padding") = 0,
        py::arg("groups") = 1, py::arg("needs") = py::none());
}

}  // namespace

void bind_conv_transpose(py::module_& m) {
  bind<1>(m);
  bind<2>(m);
}

}  // namespace lec7::bindings
