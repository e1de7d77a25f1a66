// Python values that are not arrays.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "arrays.h"
#include "lec7/indices.h"
#include "lec7/number.h"

namespace lec7::bindings {

[[noreturn]] inline void refuse(std::string_view op, const char* argument, py::handle value,
                                const std::string& wanted) {
  throw py::type_error(std::string(op) + ": " + argument + " is " + wanted + "; got " + std::string(py::repr(value)));
}

// The items of a sequence that is not a string; `wanted` says what else it should be.
inline py::tuple items(std::string_view op, const char* argument, py::handle value, const std::string& wanted) {
  if (!PySequence_Check(value.ptr()) || PyUnicode_Check(value.ptr())) refuse(op, argument, value, wanted);
  auto result = py::reinterpret_steal<py::tuple>(PySequence_Tuple(value.ptr()));
  if (!result) throw py::error_already_set();
  return result;
}

// Is it an int, or a NumPy integer?
inline bool is_integer(py::handle value) { return PyIndex_Check(value.ptr()) && !PySequence_Check(value.ptr()); }

// ValueError where it does not fit 64 bits, TypeError where it is no integer.
inline Index parse_integer(std::string_view op, const char* argument, py::handle value) {
  if (!is_integer(value)) refuse(op, argument, value, "an integer");
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!number) throw py::error_already_set();
  int overflow = 0;
  const Index result = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow != 0) fail(op, std::string(argument) + " is out of range: " + std::string(py::str(value)));
  return result;
}

inline std::optional<Index> parse_optional_integer(std::string_view op, const char* argument, py::handle value) {
  if (value.is_none()) return std::nullopt;
  return parse_integer(op, argument, value);
}

// A number, or where it is on the GPU.
inline Number<double> parse_number(std::string_view op, const char* argument, py::handle value) {
  if (const void* at = number_on_device(op, argument, value, DType::float64)) {
    return {0, static_cast<const double*>(at)};
  }
  const double number = PyFloat_AsDouble(value.ptr());
  if (PyErr_Occurred() == nullptr) return number;
  PyErr_Clear();
  refuse(op, argument, value, "a number");
}

inline Indices indices_of(const Array& array) {
  return {array.data<void>(), array.dtype() == DType::int64, array.shape().size()};
}

}  // namespace lec7::bindings
