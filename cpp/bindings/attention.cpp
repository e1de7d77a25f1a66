#include "lec7/attention.h"

#include <pybind11/stl.h>

#include "arrays.h"
#include "module.h"
#include "parse.h"

namespace lec7::bindings {
namespace {

// The parameters that forward and backward share, as they come from Python.
struct Arguments {
  Array mask, key_lengths;
  bool causal;
  std::optional<double> scale;

  Arguments(py::handle key_lengths_, py::handle mask_, bool causal_, std::optional<double> scale_)
      : mask(mask_.is_none() ? Array() : mask_array("attention", "mask", mask_)),
        key_lengths(key_lengths_.is_none() ? Array() : host_integer_array("attention", "key_lengths", key_lengths_)),
        causal(causal_),
        scale(scale_) {}

  bool additive() const { return mask.given() && mask.dtype() != DType::boolean; }
  // Of a half type an added mask is float32, the one type that it can have on a GPU.
  Array mask_of_type(DType dtype) const { return additive() && accumulator_of(dtype) == dtype ? mask : Array(); }

  template <class T>
  AttentionParams<T> params(const AttentionShape& shape) const {
    AttentionParams<T> p{static_cast<T>(attention_scale(shape, scale)), causal, {}, {}};
    if (mask.given()) {
      attention_mask_strides(shape, mask.shape(), p.mask.stride);
      if (additive()) p.mask.add = mask.data<T>();
      else p.mask.keep = mask.data<bool>();
    }
    if (key_lengths.given()) {
      p.key_lengths = attention_key_lengths(shape, key_lengths.shape(), indices_of(key_lengths));
    }
    return p;
  }
};

py::tuple attention_forward(py::handle q_, py::handle k_, py::handle v_, py::handle key_lengths_, py::handle mask_,
                            bool causal, std::optional<double> scale, bool want_weights) {
  const Array q = any_float_array("attention", "q", q_), k = any_float_array("attention", "k", k_);
  const Array v = any_float_array("attention", "v", v_);
  const Arguments arguments(key_lengths_, mask_, causal, scale);
  const DType dtype =
      common_dtype("attention", {{"q", q}, {"k", k}, {"v", v}, {"mask", arguments.mask_of_type(q.dtype())}});
  const AttentionShape shape = attention_shape(q.shape(), k.shape(), v.shape(), want_weights);
  Array y, lse, weights;
  with_any_float(dtype, [&]<class T> {
    const AttentionParams<Accumulator<T>> params = arguments.params<Accumulator<T>>(shape);
    y = new_array(dtype, shape.y);
    lse = new_array(accumulator_of(dtype), shape.lse);
    weights = new_array_if(want_weights, dtype, shape.weights());
    const py::gil_scoped_release unlocked;
    LEC7_PICK(attention_forward<T>)
    (shape, params, q.data<T>(), k.data<T>(), v.data<T>(), y.data<T>(), lse.data<Accumulator<T>>(), weights.data<T>());
  });
  return want_weights ? to_tuple(y, lse, weights) : to_tuple(y, lse);
}

py::tuple attention_backward(py::handle dy_, py::handle q_, py::handle k_, py::handle v_, py::handle y_,
                             py::handle lse_, py::handle key_lengths_, py::handle mask_, bool causal,
                             std::optional<double> scale, py::handle needs_) {
  const Array dy = any_float_array("attention", "dy", dy_), q = any_float_array("attention", "q", q_);
  const Array k = any_float_array("attention", "k", k_), v = any_float_array("attention", "v", v_);
  const Array y = any_float_array("attention", "y", y_), lse = float_array("attention", "lse", lse_);
  const Arguments arguments(key_lengths_, mask_, causal, scale);
  const DType dtype = common_dtype("attention", {{"dy", dy},
                                                 {"q", q},
                                                 {"k", k},
                                                 {"v", v},
                                                 {"y", y},
                                                 {"lse", accumulator_of(q.dtype()) == q.dtype() ? lse : Array()},
                                                 {"mask", arguments.mask_of_type(q.dtype())}});
  const AttentionShape shape =
      attention_backward_shape(dy.shape(), q.shape(), k.shape(), v.shape(), y.shape(), lse.shape());
  const auto [need_dq, need_dk, need_dv] =
      parse_needs<3>("attention", needs_, {"dq", "dk", "dv"}, {dy_, q_, k_, v_, y_, lse_, mask_});
  Array dq, dk, dv;
  with_any_float(dtype, [&, need_dq = need_dq, need_dk = need_dk, need_dv = need_dv]<class T> {
    const AttentionParams<Accumulator<T>> params = arguments.params<Accumulator<T>>(shape);
    dq = gradient_array(need_dq, dtype, q.shape());
    dk = gradient_array(need_dk, dtype, k.shape());
    dv = gradient_array(need_dv, dtype, v.shape());
    const py::gil_scoped_release unlocked;
    LEC7_PICK(attention_backward<T>)
    (shape, params, dy.data<T>(), q.data<T>(), k.data<T>(), v.data<T>(), y.data<T>(), lse.data<Accumulator<T>>(),
     dq.data<T>(), dk.data<T>(), dv.data<T>());
  });
  return to_tuple(dq, dk, dv);
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("attention_forward", &attention_forward, py::arg("q"), py::arg("k"), py::arg("v"), py::kw_only(),
        py::arg("key_lengths") = py::none(), py::arg("mask") = py::none(), py::arg("causal") = false,
        py::arg("scale") = py::none(), py::arg("weights") = false);
  m.def("attention_backward", &attention_backward, py::arg("dy"), py::arg("q"), py::arg("k"), py::arg("v"),
        py::arg("y"), py::arg("lse"), py::kw_only(), py::arg("key_lengths") = py::none(), py::arg("mask") = py::none(),
        py::arg("causal") = false, py::arg("scale") = py::none(), py::arg("needs") = py::none());
}

}  // namespace lec7::bindings
