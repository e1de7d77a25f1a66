#include "lec7/conv.h"

#include "arrays.h"
#include "module.h"
#include "window.h"

namespace lec7::bindings {
namespace {

constexpr const char* kOps[] = {"conv1d", "conv2d", "conv3d"};

ConvOptions parse_options(std::string_view op, int spatial, py::handle stride, py::handle padding, py::handle dilation,
                          Index groups, bool flip, py::handle activation) {
  return {parse_per_axis(op, "stride", stride, spatial),
          parse_padding(op, padding, spatial),
          parse_per_axis(op, "dilation", dilation, spatial),
          groups,
          flip,
          activation_of(op, activation)};
}

template <int spatial>
py::object conv_forward(py::handle x_, py::handle weight_, py::handle bias_, py::handle stride, py::handle padding,
                        py::handle dilation, Index groups, bool flip, py::handle activation) {
  constexpr const char* op = kOps[spatial - 1];
  const Array x = any_float_array(op, "x", x_), weight = any_float_array(op, "weight", weight_);
  const Array bias = optional_any_float_array(op, "bias", bias_);
  const DType dtype = common_dtype(op, {{"x", x}, {"weight", weight}, {"bias", bias}});
  const ConvOptions options = parse_options(op, spatial, stride, padding, dilation, groups, flip, activation);
  const ConvShape shape = conv_shape(op, spatial, x.shape(), weight.shape(), bias.shape_or_null(), options);
  const Array y = new_array(dtype, shape.y);
  with_any_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(conv_forward<T>)(shape, x.data<T>(), weight.data<T>(), bias.data<T>(), y.data<T>());
  });
  return y.object();
}

template <int spatial>
py::tuple conv_backward(py::handle dy_, py::handle x_, py::handle weight_, py::handle stride, py::handle padding,
                        py::handle dilation, Index groups, bool flip, py::handle activation, py::handle y_,
                        py::handle needs_) {
  constexpr const char* op = kOps[spatial - 1];
  const Array dy = any_float_array(op, "dy", dy_), x = any_float_array(op, "x", x_);
  const Array weight = any_float_array(op, "weight", weight_), y = optional_any_float_array(op, "y", y_);
  const DType dtype = common_dtype(op, {{"dy", dy}, {"x", x}, {"weight", weight}, {"y", y}});
  const ConvOptions options = parse_options(op, spatial, stride, padding, dilation, groups, flip, activation);
  const ConvShape shape =
      conv_backward_shape(op, spatial, dy.shape(), x.shape(), weight.shape(), y.shape_or_null(), options);
  const auto [need_dx, need_dweight, need_dbias] =
      parse_needs<3>(op, needs_, {"dx", "dweight", "dbias"}, {dy_, x_, weight_, y_});
  const Array dx = gradient_array(need_dx, dtype, x.shape());
  const Array dweight = gradient_array(need_dweight, dtype, weight.shape());
  const Array dbias = gradient_array(need_dbias, dtype, Shape{shape.filters});
  with_any_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(conv_backward<T>)
    (shape, dy.data<T>(), x.data<T>(), weight.data<T>(), y.data<T>(), dx.data<T>(), dweight.data<T>(), dbias.data<T>());
  });
  return to_tuple(dx, dweight, dbias);
}

constexpr const char* kAlgorithms[] = {"direct", "accurate", "fast"};

std::string get_algorithm() { return kAlgorithms[static_cast<int>(conv_algorithm())]; }

void set_algorithm(const std::string& name) {
  for (int i = 0; i < 3; ++i) {
    if (name == kAlgorithms[i]) return set_conv_algorithm(static_cast<ConvAlgorithm>(i));
  }
  fail("set_conv_algorithm", "the algorithm is 'direct', 'accurate' or 'fast'; got '" + name + "'");
}

template <int spatial>
void bind(py::module_& m) {
  const std::string op = kOps[spatial - 1];
  m.def((op + "_forward").c_str(), &conv_forward<spatial>, py::arg("x"), py::arg("weight"),
        py::arg("bias") = py::none(), py::kw_only(), py::arg("stride") = 1, py::arg("padding") = 0,
        py::arg("dilation") = 1, py::arg("groups") = 1, py::arg("flip") = false, py::arg("activation") = py::none());
  m.def((op + "_backward").c_str(), &conv_backward<spatial>, py::arg("dy"), py::arg("x"), py::arg("weight"),
        py::kw_only(), py::arg("stride") = 1, py::arg("padding") = 0, py::arg("dilation") = 1, py::arg("groups") = 1,
        py::arg("flip") = false, py::arg("activation") = py::none(), py::arg("y") = py::none(),
        py::arg("needs") = py::none());
}

}  // namespace

void bind_conv(py::module_& m) {
  bind<1>(m);
  bind<2>(m);
  bind<3>(m);
  m.def("get_conv_algorithm", &get_algorithm, "The methods that convolutions may take.");
  m.def("set_conv_algorithm", &set_algorithm, py::arg("name"),
        "The methods that convolutions of float32 may take: 'direct' sums; 'accurate', those with about their error; "
        "'fast' (at first), those with a relative error of up to 1e-5 (Winograd). float64 is always direct.");
}

}  // namespace lec7::bindings
