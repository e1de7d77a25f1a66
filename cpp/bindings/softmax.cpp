#include "lec7/softmax.h"

#include "arrays.h"
#include "module.h"
#include "parse.h"

namespace lec7::bindings {
namespace {

// ---- softmax and its logarithm ----

py::object forward(std::string_view op, bool logarithm, py::handle x_) {
  const Array x = float_array(op, "x", x_);
  const SoftmaxShape shape = softmax_shape(op, x.shape());
  const Array y = new_array(x.dtype(), x.shape());
  with_float(x.dtype(), [&]<class T> {
    const py::gil_scoped_release unlocked;
    const auto kernel = logarithm ? LEC7_PICK(log_softmax_forward<T>) : LEC7_PICK(softmax_forward<T>);
    kernel(shape, x.data<T>(), y.data<T>());
  });
  return y.object();
}

py::object backward(std::string_view op, bool logarithm, py::handle dy_, py::handle y_) {
  const Array dy = float_array(op, "dy", dy_), y = float_array(op, "y", y_);
  const DType dtype = common_dtype(op, {{"dy", dy}, {"y", y}});
  const SoftmaxShape shape = softmax_backward_shape(op, dy.shape(), y.shape());
  const Array dx = new_array(dtype, y.shape());
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    const auto kernel = logarithm ? LEC7_PICK(log_softmax_backward<T>) : LEC7_PICK(softmax_backward<T>);
    kernel(shape, dy.data<T>(), y.data<T>(), dx.data<T>());
  });
  return dx.object();
}

// ---- losses ----

Array new_loss(Reduction reduction, DType dtype, const Shape& terms) {
  return new_array(dtype, reduction == Reduction::none ? terms : Shape{});
}

// A Python number, or an array of the op's dtype.
Array loss_gradient(std::string_view op, py::handle dy, DType dtype) {
  if (!PyFloat_Check(dy.ptr()) && !PyLong_Check(dy.ptr())) return float_array(op, "dy", dy);
  return new_scalar(dtype, py::cast<double>(dy));
}

constexpr std::string_view kCrossEntropy = "softmax_cross_entropy";

py::tuple cross_entropy_forward(py::handle logits_, py::handle labels_, py::handle class_weight_,
                                py::handle ignore_index, double label_smoothing, const std::string& reduction_) {
  constexpr std::string_view op = kCrossEntropy;
  const Array logits = float_array(op, "logits", logits_), labels = integer_array(op, "labels", labels_);
  const Array class_weight = optional_float_array(op, "class_weight", class_weight_);
  const DType dtype = common_dtype(op, {{"logits", logits}, {"class_weight", class_weight}});
  const CrossEntropy shape = cross_entropy_shape(
      logits.shape(), labels.shape(), indices_of(labels), class_weight.shape_or_null(),
      parse_optional_integer(op, "ignore_index", ignore_index), label_smoothing, parse_reduction(op, reduction_));
  const Array loss = new_loss(shape.reduction, dtype, labels.shape());
  const Array saved = new_array(dtype, labels.shape());
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(softmax_cross_entropy_forward<T>)
    (shape, logits.data<T>(), indices_of(labels), class_weight.data<T>(), loss.data<T>(), saved.data<T>());
  });
  return to_tuple(loss, saved);
}

py::object cross_entropy_backward(py::handle dy_, py::handle logits_, py::handle labels_, py::handle saved_,
                                  py::handle class_weight_, py::handle ignore_index, double label_smoothing,
                                  const std::string& reduction_) {
  constexpr std::string_view op = kCrossEntropy;
  const Array logits = float_array(op, "logits", logits_), labels = integer_array(op, "labels", labels_);
  const Array saved = float_array(op, "saved", saved_);
  const Array class_weight = optional_float_array(op, "class_weight", class_weight_);
  const Array dy = loss_gradient(op, dy_, logits.dtype());
  const DType dtype =
      common_dtype(op, {{"logits", logits}, {"class_weight", class_weight}, {"saved", saved}, {"dy", dy}});
  const CrossEntropy shape = cross_entropy_shape(
      logits.shape(), labels.shape(), indices_of(labels), class_weight.shape_or_null(),
      parse_optional_integer(op, "ignore_index", ignore_index), label_smoothing, parse_reduction(op, reduction_));
  check_loss_gradient(op, shape.reduction, dy.shape(), labels.shape());
  if (saved.shape() != labels.shape()) {
    fail(op, "saved has the shape of labels", {{"saved (...)", saved.shape()}, {"labels (...)", labels.shape()}});
  }
  const Array dlogits = new_array(dtype, logits.shape());
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(softmax_cross_entropy_backward<T>)
    (shape, dy.data<T>(), logits.data<T>(), indices_of(labels), saved.data<T>(), class_weight.data<T>(),
     dlogits.data<T>());
  });
  return dlogits.object();
}

// The kernels of a pointwise loss.
template <class T>
struct PointwiseLoss {
  void (*forward)(Index n, const T* x, const T* targets, Reduction reduction, T* loss);
  void (*backward)(Index n, const T* dy, const T* x, const T* targets, Reduction reduction, T* dx);
};

struct PointwiseOp {
  const char* name;
  const char* x;       // the argument beside targets
  bool probabilities;  // binary cross-entropy, whose targets are in [0, 1]; else the squared error

  template <class T>
  PointwiseLoss<T> kernels() const {
    if (probabilities) return {LEC7_PICK(binary_cross_entropy_forward<T>), LEC7_PICK(binary_cross_entropy_backward<T>)};
    return {LEC7_PICK(mean_squared_error_forward<T>), LEC7_PICK(mean_squared_error_backward<T>)};
  }
  void check_targets(const Array& targets) const {
    if (!probabilities) return;
    with_float(targets.dtype(),
               [&]<class T> { check_probabilities(name, {"targets", targets.shape()}, targets.data<T>()); });
  }
};

py::object pointwise_forward(const PointwiseOp& op, py::handle x_, py::handle targets_, const std::string& reduction_) {
  const Array x = float_array(op.name, op.x, x_), targets = float_array(op.name, "targets", targets_);
  const DType dtype = common_dtype(op.name, {{op.x, x}, {"targets", targets}});
  const Index n = pointwise_loss_shape(op.name, op.x, x.shape(), targets.shape());
  const Reduction reduction = parse_reduction(op.name, reduction_);
  op.check_targets(targets);
  const Array loss = new_loss(reduction, dtype, x.shape());
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    op.kernels<T>().forward(n, x.data<T>(), targets.data<T>(), reduction, loss.data<T>());
  });
  return loss.object();
}

py::object pointwise_backward(const PointwiseOp& op, py::handle dy_, py::handle x_, py::handle targets_,
                              const std::string& reduction_) {
  const Array x = float_array(op.name, op.x, x_), targets = float_array(op.name, "targets", targets_);
  const Array dy = loss_gradient(op.name, dy_, x.dtype());
  const DType dtype = common_dtype(op.name, {{op.x, x}, {"targets", targets}, {"dy", dy}});
  const Index n = pointwise_loss_shape(op.name, op.x, x.shape(), targets.shape());
  const Reduction reduction = parse_reduction(op.name, reduction_);
  check_loss_gradient(op.name, reduction, dy.shape(), x.shape());
  op.check_targets(targets);
  const Array dx = new_array(dtype, x.shape());
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    op.kernels<T>().backward(n, dy.data<T>(), x.data<T>(), targets.data<T>(), reduction, dx.data<T>());
  });
  return dx.object();
}

}  // namespace

void bind_softmax(py::module_& m) {
  struct Named {
    const char* name;
    bool logarithm;
  };
  for (const auto& [name, logarithm] : {Named{"softmax", false}, Named{"log_softmax", true}}) {
    m.def((std::string(name) + "_forward").c_str(),
          [name, logarithm](py::handle x) { return forward(name, logarithm, x); }, py::arg("x"));
    m.def((std::string(name) + "_backward").c_str(),
          [name, logarithm](py::handle dy, py::handle y) { return backward(name, logarithm, dy, y); }, py::arg("dy"),
          py::arg("y"));
  }
  m.def("softmax_cross_entropy_forward", &cross_entropy_forward, py::arg("logits"), py::arg("labels"), py::kw_only(),
        py::arg("class_weight") = py::none(), py::arg("ignore_index") = py::none(), py::arg("label_smoothing") = 0.0,
        py::arg("reduction") = "mean");
  m.def("softmax_cross_entropy_backward", &cross_entropy_backward, py::arg("dy"), py::arg("logits"), py::arg("labels"),
        py::arg("saved"), py::kw_only(), py::arg("class_weight") = py::none(), py::arg("ignore_index") = py::none(),
        py::arg("label_smoothing") = 0.0, py::arg("reduction") = "mean");
  static constexpr PointwiseOp ops[] = {{"binary_cross_entropy", "logits", true}, {"mean_squared_error", "x", false}};
  for (const PointwiseOp& op : ops) {
    m.def((std::string(op.name) + "_forward").c_str(),
          [&op](py::handle x, py::handle targets, const std::string& reduction) {
            return pointwise_forward(op, x, targets, reduction);
          },
          py::arg(op.x), py::arg("targets"), py::kw_only(), py::arg("reduction") = "mean");
    m.def((std::string(op.name) + "_backward").c_str(),
          [&op](py::handle dy, py::handle x, py::handle targets, const std::string& reduction) {
            return pointwise_backward(op, dy, x, targets, reduction);
          },
          py::arg("dy"), py::arg(op.x), py::arg("targets"), py::kw_only(), py::arg("reduction") = "mean");
  }
}

}  // namespace lec7::bindings
