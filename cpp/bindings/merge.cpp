#include "lec7/merge.h"

#include <vector>

#include "arrays.h"
#include "module.h"
#include "parse.h"

namespace lec7::bindings {
namespace {

py::object concat_forward(py::handle arrays_) {
  constexpr std::string_view op = "concat";
  std::vector<Array> arrays;
  std::vector<Shape> shapes;
  for (const py::handle item : items(op, "arrays", arrays_, "a sequence of arrays")) {
    const std::string name = "arrays[" + std::to_string(arrays.size()) + "]";
    arrays.push_back(float_array(op, name.c_str(), item));
    shapes.push_back(arrays.back().shape());
    common_dtype(op, {{"arrays[0]", arrays.front()}, {name.c_str(), arrays.back()}});
  }
  const ConcatShape shape = concat_shape(shapes);
  const Array y = new_array(arrays.front().dtype(), shape.y);
  with_float(y.dtype(), [&]<class T> {
    std::vector<const T*> data;
    for (const Array& array : arrays) data.push_back(array.data<T>());
    const py::gil_scoped_release unlocked;
    LEC7_PICK(concat_forward<T>)(shape, data.data(), y.data<T>());
  });
  return y.object();
}

py::list concat_backward(py::handle dy_, py::handle channels_) {
  constexpr std::string_view op = "concat";
  const Array dy = float_array(op, "dy", dy_);
  std::vector<Index> channels;
  for (const py::handle item : items(op, "channels", channels_, "a sequence of integers")) {
    channels.push_back(parse_integer(op, "channels", item));
  }
  const ConcatShape shape = concat_backward_shape(dy.shape(), channels);
  std::vector<Array> gradients;
  py::list result;
  for (const Index c : channels) {
    Shape dx = dy.shape();
    dx[dx.rank() - 1] = c;
    gradients.push_back(new_array(dy.dtype(), dx));
    result.append(gradients.back().object());
  }
  with_float(dy.dtype(), [&]<class T> {
    std::vector<T*> data;
    for (const Array& gradient : gradients) data.push_back(gradient.data<T>());
    const py::gil_scoped_release unlocked;
    LEC7_PICK(concat_backward<T>)(shape, dy.data<T>(), data.data());
  });
  return result;
}

void add(py::handle y_, py::handle x_) {
  constexpr std::string_view op = "add_";
  const Array y = inout_array(op, "y", y_), x = float_array(op, "x", x_);
  const DType dtype = common_dtype(op, {{"y", y}, {"x", x}});
  const bool same = y.data<void>() == x.data<void>();
  check_add(y.shape(), x.shape(), !same && may_share_memory(y_, x_));
  with_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(add<T>)(y.shape().size(), y.data<T>(), x.data<T>());
  });
}

}  // namespace

void bind_merge(py::module_& m) {
  m.def("concat_forward", &concat_forward, py::arg("arrays"));
  m.def("concat_backward", &concat_backward, py::arg("dy"), py::kw_only(), py::arg("channels"));
  m.def("add_", &add, py::arg("y"), py::arg("x"));
}

}  // namespace lec7::bindings
