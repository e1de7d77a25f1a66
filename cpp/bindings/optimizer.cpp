#include "lec7/optimizer.h"

#include "arrays.h"
#include "module.h"
#include "parse.h"

namespace lec7::bindings {
namespace {

// What an update changes and reads: params, grads, and up to two states.
struct Update {
  DType dtype;
  Index n;
};

Update update_of(std::string_view op, std::initializer_list<NamedArray> arrays) {
  Named named[4];
  std::size_t count = 0;
  for (const NamedArray& a : arrays) {
    if (a.array.given()) named[count++] = {a.name, a.array.shape()};
  }
  const DType dtype = common_dtype(op, arrays);
  return {dtype, update_shape(op, std::span<const Named>(named, count))};
}

void sgd_update(py::handle params_, py::handle grads_, py::handle momentum_buffer_, py::handle lr, double momentum,
                bool nesterov, double weight_decay, py::handle grad_scale) {
  constexpr std::string_view op = "sgd_update_";
  const Array params = inout_array(op, "params", params_), grads = float_array(op, "grads", grads_);
  const Array buffer = momentum_buffer_.is_none() ? Array() : inout_array(op, "momentum_buffer", momentum_buffer_);
  const auto [dtype, n] = update_of(op, {{"params", params}, {"grads", grads}, {"momentum_buffer", buffer}});
  const Sgd sgd{parse_number(op, "lr", lr), momentum, nesterov, weight_decay,
                parse_number(op, "grad_scale", grad_scale)};
  check(sgd, buffer.given());
  with_float(dtype, [&, n = n]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(sgd_update<T>)(sgd, n, params.data<T>(), grads.data<T>(), buffer.data<T>());
  });
}

void rmsprop_update(py::handle params_, py::handle grads_, py::handle square_average_, py::handle lr, double decay,
                    double eps, double weight_decay, py::handle grad_scale) {
  constexpr std::string_view op = "rmsprop_update_";
  const Array params = inout_array(op, "params", params_), grads = float_array(op, "grads", grads_);
  const Array average = inout_array(op, "square_average", square_average_);
  const auto [dtype, n] = update_of(op, {{"params", params}, {"grads", grads}, {"square_average", average}});
  const RmsProp rmsprop{parse_number(op, "lr", lr), decay, eps, weight_decay,
                        parse_number(op, "grad_scale", grad_scale)};
  check(rmsprop);
  with_float(dtype, [&, n = n]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(rmsprop_update<T>)(rmsprop, n, params.data<T>(), grads.data<T>(), average.data<T>());
  });
}

Number<Index> parse_step(std::string_view op, py::handle step) {
  if (const void* at = number_on_device(op, "step", step, DType::int64)) return {1, static_cast<const Index*>(at)};
  return parse_integer(op, "step", step);
}

void adam_update(py::handle params_, py::handle grads_, py::handle mean_, py::handle variance_, py::handle lr,
                 py::handle step, double beta1, double beta2, double eps, double weight_decay, bool decoupled,
                 py::handle grad_scale) {
  constexpr std::string_view op = "adam_update_";
  const Array params = inout_array(op, "params", params_), grads = float_array(op, "grads", grads_);
  const Array mean = inout_array(op, "mean", mean_), variance = inout_array(op, "variance", variance_);
  const auto [dtype, n] = update_of(op, {{"params", params}, {"grads", grads}, {"mean", mean}, {"variance", variance}});
  const Adam adam{parse_number(op, "lr", lr),
                  parse_step(op, step),
                  beta1,
                  beta2,
                  eps,
                  weight_decay,
                  decoupled,
                  parse_number(op, "grad_scale", grad_scale)};
  check(adam);
  with_float(dtype, [&, n = n]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(adam_update<T>)
    (adam, n, params.data<T>(), grads.data<T>(), mean.data<T>(), variance.data<T>());
  });
}

py::object global_norm(py::handle grads_) {
  const Array grads = float_array("global_norm", "grads", grads_);
  const Array norm = new_array(DType::float64, Shape{});
  with_float(grads.dtype(), [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(global_norm<T>)(grads.shape().size(), grads.data<T>(), norm.data<double>());
  });
  return number_of(norm);
}

void scale(py::handle x_, double factor) {
  const Array x = inout_array("scale_", "x", x_);
  with_float(x.dtype(), [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(scale<T>)(x.shape().size(), x.data<T>(), factor);
  });
}

}  // namespace

void bind_optimizer(py::module_& m) {
  m.def("sgd_update_", &sgd_update, py::arg("params"), py::arg("grads"), py::arg("momentum_buffer") = py::none(),
        py::kw_only(), py::arg("lr"), py::arg("momentum") = 0.0, py::arg("nesterov") = false,
        py::arg("weight_decay") = 0.0, py::arg("grad_scale") = 1.0);
  m.def("rmsprop_update_", &rmsprop_update, py::arg("params"), py::arg("grads"), py::arg("square_average"),
        py::kw_only(), py::arg("lr"), py::arg("decay") = 0.99, py::arg("eps") = 1e-8, py::arg("weight_decay") = 0.0,
        py::arg("grad_scale") = 1.0);
  m.def("adam_update_", &adam_update, py::arg("params"), py::arg("grads"), py::arg("mean"), py::arg("variance"),
        py::kw_only(), py::arg("lr"), py::arg("step"), py::arg("beta1") = 0.9, py::arg("beta2") = 0.999,
        py::arg("eps") = 1e-8, py::arg("weight_decay") = 0.0, py::arg("decoupled") = false,
        py::arg("grad_scale") = 1.0);
  m.def("global_norm", &global_norm, py::arg("grads"));
  m.def("scale_", &scale, py::arg("x"), py::arg("factor"));
}

}  // namespace lec7::bindings
