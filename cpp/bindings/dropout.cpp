#include "lec7/dropout.h"

#include "arrays.h"
#include "module.h"
#include "parse.h"

namespace lec7::bindings {
namespace {

std::uint64_t parse_unsigned(const char* argument, py::handle value) {
  if (is_integer(value)) {
    const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!number) throw py::error_already_set();
    const std::uint64_t result = PyLong_AsUnsignedLongLong(number.ptr());
    if (PyErr_Occurred() == nullptr) return result;
    PyErr_Clear();
    fail("dropout", std::string(argument) + " is in [0, 2^64); got " + std::string(py::str(value)));
  }
  throw py::type_error(std::string("dropout: ") + argument + " is an integer; got " + std::string(py::repr(value)));
}

Number<std::uint64_t> parse_bits(const char* argument, py::handle value) {
  if (const void* at = number_on_device("dropout", argument, value, DType::int64)) {
    return {0, static_cast<const std::uint64_t*>(at)};
  }
  return parse_unsigned(argument, value);
}

// Forward and backward are the same function.
py::object dropout(const char* argument, py::handle x_, double p, py::handle seed, py::handle offset,
                   bool whole_channels) {
  const Array x = float_array("dropout", argument, x_);
  const Dropout shape =
      dropout_shape(x.shape(), p, parse_bits("seed", seed), parse_bits("offset", offset), whole_channels);
  const Array y = new_array(x.dtype(), x.shape());
  with_float(x.dtype(), [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(dropout<T>)(shape, x.data<T>(), y.data<T>());
  });
  return y.object();
}

py::object forward(py::handle x, double p, py::handle seed, py::handle offset, bool whole_channels) {
  return dropout("x", x, p, seed, offset, whole_channels);
}
py::object backward(py::handle dy, double p, py::handle seed, py::handle offset, bool whole_channels) {
  return dropout("dy", dy, p, seed, offset, whole_channels);
}

// For the tests: `count` blocks of the stream from block `first` on, as published test vectors give them.
py::object philox_blocks(std::uint64_t seed, std::uint64_t offset, std::uint64_t first, Index count) {
  if (count < 0) fail("_philox", "count is not negative; got " + std::to_string(count));
  const Array words = new_array(DType::int32, Shape{count + 8, 4});  // room for a whole vector of counters
  LEC7_PICK(philox)(seed, offset, first, count, words.data<std::uint32_t>());
  return words.object()[py::slice(0, count, 1)];
}

}  // namespace

void bind_dropout(py::module_& m) {
  m.def("dropout_forward", &forward, py::arg("x"), py::kw_only(), py::arg("p"), py::arg("seed"), py::arg("offset") = 0,
        py::arg("whole_channels") = false);
  m.def("dropout_backward", &backward, py::arg("dy"), py::kw_only(), py::arg("p"), py::arg("seed"),
        py::arg("offset") = 0, py::arg("whole_channels") = false);
  m.def("_philox", &philox_blocks, py::arg("seed"), py::arg("offset"), py::arg("first"), py::arg("count"));
}

}  // namespace lec7::bindings
