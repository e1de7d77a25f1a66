#include "lec7/norm.h"

#include "arrays.h"
#include "module.h"
#include "parse.h"

namespace lec7::bindings {
namespace {

// ---- local response ----

py::tuple response_forward(py::handle x_, py::handle size, double alpha, double beta, double k) {
  constexpr std::string_view op = "local_response_norm";
  const Array x = float_array(op, "x", x_);
  const LocalResponseNorm shape = local_response_norm_shape(x.shape(), parse_integer(op, "size", size), alpha, beta, k);
  const Array y = new_array(x.dtype(), x.shape()), saved = new_array(x.dtype(), x.shape());
  with_float(x.dtype(), [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(local_response_norm_forward<T>)(shape, x.data<T>(), y.data<T>(), saved.data<T>());
  });
  return to_tuple(y, saved);
}

py::object response_backward(py::handle dy_, py::handle x_, py::handle saved_, py::handle size, double alpha,
                             double beta) {
  constexpr std::string_view op = "local_response_norm";
  const Array dy = float_array(op, "dy", dy_), x = float_array(op, "x", x_), saved = float_array(op, "saved", saved_);
  const DType dtype = common_dtype(op, {{"dy", dy}, {"x", x}, {"saved", saved}});
  const LocalResponseNorm shape = local_response_norm_backward_shape(dy.shape(), x.shape(), saved.shape(),
                                                                     parse_integer(op, "size", size), alpha, beta);
  const Array dx = new_array(dtype, x.shape());
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(local_response_norm_backward<T>)(shape, dy.data<T>(), x.data<T>(), saved.data<T>(), dx.data<T>());
  });
  return dx.object();
}

// ---- batch ----

py::tuple batch_forward(py::handle x_, py::handle gamma_, py::handle beta_, py::handle running_mean_,
                        py::handle running_var_, bool training, double momentum, double eps) {
  constexpr std::string_view op = "batch_norm";
  const auto running = training ? inout_array : float_array;
  const Array x = float_array(op, "x", x_), gamma = float_array(op, "gamma", gamma_);
  const Array beta = float_array(op, "beta", beta_);
  const Array running_mean = running(op, "running_mean", running_mean_);
  const Array running_var = running(op, "running_var", running_var_);
  const DType dtype = common_dtype(
      op, {{"x", x}, {"gamma", gamma}, {"beta", beta}, {"running_mean", running_mean}, {"running_var", running_var}});
  const BatchNormOptions options{training, momentum, eps};
  const NormShape shape =
      batch_norm_shape(x.shape(), gamma.shape(), beta.shape(), running_mean.shape(), running_var.shape(), options);
  const Array y = new_array(dtype, x.shape()), saved = new_array(dtype, Shape{2, shape.channels});
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(batch_norm_forward<T>)
    (shape, options, x.data<T>(), gamma.data<T>(), beta.data<T>(), running_mean.data<T>(), running_var.data<T>(),
     y.data<T>(), saved.data<T>());
  });
  return to_tuple(y, saved);
}

py::tuple batch_backward(py::handle dy_, py::handle x_, py::handle gamma_, py::handle saved_, bool training,
                         py::handle needs_) {
  constexpr std::string_view op = "batch_norm";
  const Array dy = float_array(op, "dy", dy_), x = float_array(op, "x", x_);
  const Array gamma = float_array(op, "gamma", gamma_), saved = float_array(op, "saved", saved_);
  const DType dtype = common_dtype(op, {{"dy", dy}, {"x", x}, {"gamma", gamma}, {"saved", saved}});
  const NormShape shape = batch_norm_backward_shape(dy.shape(), x.shape(), gamma.shape(), saved.shape(), training);
  const auto [need_dx, need_dgamma, need_dbeta] =
      parse_needs<3>(op, needs_, {"dx", "dgamma", "dbeta"}, {dy_, x_, gamma_, saved_});
  const Array dx = gradient_array(need_dx, dtype, x.shape());
  const Array dgamma = gradient_array(need_dgamma, dtype, gamma.shape());
  const Array dbeta = gradient_array(need_dbeta, dtype, gamma.shape());
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(batch_norm_backward<T>)
    (shape, training, dy.data<T>(), x.data<T>(), gamma.data<T>(), saved.data<T>(), dx.data<T>(), dgamma.data<T>(),
     dbeta.data<T>());
  });
  return to_tuple(dx, dgamma, dbeta);
}

// ---- layer ----

py::tuple layer_forward(py::handle x_, py::handle gamma_, py::handle beta_, double eps) {
  constexpr std::string_view op = "layer_norm";
  const Array x = float_array(op, "x", x_), gamma = float_array(op, "gamma", gamma_);
  const Array beta = float_array(op, "beta", beta_);
  const DType dtype = common_dtype(op, {{"x", x}, {"gamma", gamma}, {"beta", beta}});
  const NormShape shape = layer_norm_shape(x.shape(), gamma.shape(), beta.shape(), eps);
  const Array y = new_array(dtype, x.shape()), saved = new_array(dtype, layer_norm_saved(x.shape()));
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(layer_norm_forward<T>)
    (shape, eps, x.data<T>(), gamma.data<T>(), beta.data<T>(), y.data<T>(), saved.data<T>());
  });
  return to_tuple(y, saved);
}

py::tuple layer_backward(py::handle dy_, py::handle x_, py::handle gamma_, py::handle saved_, py::handle needs_) {
  constexpr std::string_view op = "layer_norm";
  const Array dy = float_array(op, "dy", dy_), x = float_array(op, "x", x_);
  const Array gamma = float_array(op, "gamma", gamma_), saved = float_array(op, "saved", saved_);
  const DType dtype = common_dtype(op, {{"dy", dy}, {"x", x}, {"gamma", gamma}, {"saved", saved}});
  const NormShape shape = layer_norm_backward_shape(dy.shape(), x.shape(), gamma.shape(), saved.shape());
  const auto [need_dx, need_dgamma, need_dbeta] =
      parse_needs<3>(op, needs_, {"dx", "dgamma", "dbeta"}, {dy_, x_, gamma_, saved_});
  const Array dx = gradient_array(need_dx, dtype, x.shape());
  const Array dgamma = gradient_array(need_dgamma, dtype, gamma.shape());
  const Array dbeta = gradient_array(need_dbeta, dtype, gamma.shape());
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(layer_norm_backward<T>)
    (shape, dy.data<T>(), x.data<T>(), gamma.data<T>(), saved.data<T>(), dx.data<T>(), dgamma.data<T>(),
     dbeta.data<T>());
  });
  return to_tuple(dx, dgamma, dbeta);
}

}  // namespace

void bind_norm(py::module_& m) {
  m.def("local_response_norm_forward", &response_forward, py::arg("x"), py::kw_only(), py::arg("size"),
        py::arg("alpha") = 1e-4, py::arg("beta") = 0.75, py::arg("k") = 1.0);
  m.def("local_response_norm_backward", &response_backward, py::arg("dy"), py::arg("x"), py::arg("saved"),
        py::kw_only(), py::arg("size"), py::arg("alpha") = 1e-4, py::arg("beta") = 0.75);
  m.def("batch_norm_forward", &batch_forward, py::arg("x"), py::arg("gamma"), py::arg("beta"), py::arg("running_mean"),
        py::arg("running_var"), py::kw_only(), py::arg("training"), py::arg("momentum") = 0.1, py::arg("eps") = 1e-5);
  m.def("batch_norm_backward", &batch_backward, py::arg("dy"), py::arg("x"), py::arg("gamma"), py::arg("saved"),
        py::kw_only(), py::arg("training"), py::arg("needs") = py::none());
  m.def("layer_norm_forward", &layer_forward, py::arg("x"), py::arg("gamma"), py::arg("beta"), py::kw_only(),
        py::arg("eps") = 1e-5);
  m.def("layer_norm_backward", &layer_backward, py::arg("dy"), py::arg("x"), py::arg("gamma"), py::arg("saved"),
        py::kw_only(), py::arg("needs") = py::none());
}

}  // namespace lec7::bindings
