// Arrays in and out of the kernels: NumPy's for the CPU (arrays.cpp), the device's for CUDA (cuda/bindings/arrays.cpp).
// The bindings of the ops are the same for both. Nothing changes an array's dtype.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "lec7/activation.h"
#include "lec7/array.h"
#include "lec7/half.h"

namespace lec7::bindings {

namespace py = pybind11;

enum class DType { float32, float64, float16, bfloat16, int32, int64, boolean };

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::float32: return "float32";
    case DType::float64: return "float64";
    case DType::float16: return "float16";
    case DType::bfloat16: return "bfloat16";
    case DType::int32: return "int32";
    case DType::int64: return "int64";
    default: return "bool";
  }
}

inline std::size_t item_size(DType dtype) {
  switch (dtype) {
    case DType::float32:
    case DType::int32: return 4;
    case DType::float16:
    case DType::bfloat16: return 2;
    case DType::boolean: return 1;
    default: return 8;
  }
}

// The type of sums and statistics, as Accumulator<T>.
inline DType accumulator_of(DType dtype) {
  return dtype == DType::float16 || dtype == DType::bfloat16 ? DType::float32 : dtype;
}

// An input: keeps the array (or its contiguous copy) alive.
class Array {
 public:
  Array() = default;
  Array(py::object owner, void* data, DType dtype, Shape shape)
      : owner_(std::move(owner)), data_(data), dtype_(dtype), shape_(shape) {}

  bool given() const { return data_ != nullptr || owner_; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  const Shape* shape_or_null() const { return given() ? &shape_ : nullptr; }

  template <class T>
  T* data() const {
    return static_cast<T*>(data_);
  }
  py::object object() const { return owner_; }

 private:
  py::object owner_;
  void* data_ = nullptr;
  DType dtype_ = DType::float32;
  Shape shape_;
};

// Any array-like of one of the dtypes; TypeError names op, argument, dtype and shape.
Array float_array(std::string_view op, const char* argument, py::handle value);
Array integer_array(std::string_view op, const char* argument, py::handle value);  // int32, int64
Array mask_array(std::string_view op, const char* argument, py::handle value);     // bool, float32, float64
// Integers that the host reads, whatever the backend (lengths): a NumPy array.
Array host_integer_array(std::string_view op, const char* argument, py::handle value);
// None gives an Array that is not `given`.
Array optional_float_array(std::string_view op, const char* argument, py::handle value);
// The same, also of float16 and bfloat16 on a GPU.
Array any_float_array(std::string_view op, const char* argument, py::handle value);
Array optional_any_float_array(std::string_view op, const char* argument, py::handle value);
// An array to be changed in place: contiguous, writeable, never copied.
Array inout_array(std::string_view op, const char* argument, py::handle value);
// Where a number is that lies on the GPU, as an array of shape () of this dtype; null: the host has it.
const void* number_on_device(std::string_view op, const char* argument, py::handle value, DType dtype);
// Do the bounds of two arrays in memory overlap? (Either may be any array-like: a copy overlaps nothing.)
bool may_share_memory(py::handle a, py::handle b);

// The dtype that all given arrays share; TypeError names them otherwise.
struct NamedArray {
  const char* name;
  const Array& array;
};
inline DType common_dtype(std::string_view op, std::initializer_list<NamedArray> arrays) {
  const NamedArray* first = nullptr;
  for (const NamedArray& a : arrays) {
    if (!a.array.given()) continue;
    if (first == nullptr) first = &a;
    if (a.array.dtype() != first->array.dtype()) {
      throw py::type_error(std::string(op) + ": all arrays have one dtype; " + first->name + " is " +
                           name_of(first->array.dtype()) + " of shape " + first->array.shape().str() + ", " + a.name +
                           " is " + name_of(a.array.dtype()) + " of shape " + a.array.shape().str());
    }
  }
  return first->array.dtype();
}

// A result: from the caching allocator where it is large.
Array new_array(DType dtype, const Shape& shape);
// A result of shape () with this value.
Array new_scalar(DType dtype, double value);
// A result of shape () as its user gets it: a Python number, or, on a GPU, the array.
py::object number_of(const Array& scalar);

// Calls body<T>() for float32 or float64; on CUDA for float32 alone.
template <class Body>
void with_float([[maybe_unused]] DType dtype, Body&& body) {
#if !defined(LEC7_BACKEND_CUDA)
  if (dtype == DType::float64) return body.template operator()<double>();
#endif
  body.template operator()<float>();
}

// The same, also for float16 and bfloat16 on CUDA.
template <class Body>
void with_any_float(DType dtype, Body&& body) {
#if defined(LEC7_BACKEND_CUDA)
  if (dtype == DType::float16) return body.template operator()<float16>();
  if (dtype == DType::bfloat16) return body.template operator()<bfloat16>();
#endif
  with_float(dtype, body);
}

// A gradient that a backward may be asked for, and the array that it should be written to (None: a new one).
struct Wanted {
  std::string_view op;
  const char* name = nullptr;
  py::object into;
  bool wanted = false;
};

// Which gradients a backward should compute: `needs` (None: all) against their names. A dict also gives arrays to write
// them to, which share no memory with the op's inputs or each other: kernels read while they write.
template <std::size_t N>
std::array<Wanted, N> parse_needs(std::string_view op, py::handle needs, const std::array<const char*, N>& names,
                                  std::initializer_list<py::handle> inputs) {
  std::array<Wanted, N> result;
  for (std::size_t i = 0; i < N; ++i) result[i] = {op, names[i], py::none(), needs.is_none()};
  if (needs.is_none()) return result;
  if (py::isinstance<py::str>(needs)) fail(op, "needs is None or a collection of gradient names, not one string");
  const bool gives_arrays = PyDict_Check(needs.ptr());
  for (const py::handle item : needs) {
    const std::string text = py::str(item);
    std::size_t i = 0;
    while (i < N && text != names[i]) ++i;
    if (i == N) {
      std::string rule = "needs names gradients among";
      for (const char* name : names) rule += std::string(" ") + name;
      fail(op, rule + "; got \"" + text + "\"");
    }
    result[i].wanted = true;
    if (gives_arrays) result[i].into = py::reinterpret_borrow<py::object>(PyDict_GetItem(needs.ptr(), item.ptr()));
  }
  for (std::size_t i = 0; gives_arrays && i < N; ++i) {
    bool shares = false;
    for (const py::handle input : inputs) shares = shares || may_share_memory(result[i].into, input);
    for (std::size_t j = 0; j < i; ++j) shares = shares || may_share_memory(result[i].into, result[j].into);
    if (shares) fail(op, std::string(names[i]) + " shares memory with an input or another gradient");
  }
  return result;
}

// A result that may not be wanted (its data() is null then, and it becomes None).
inline Array new_array_if(bool wanted, DType dtype, const Shape& shape) {
  return wanted ? new_array(dtype, shape) : Array();
}
// A gradient: new, the array that `needs` gave for it, or nothing where it is not wanted.
Array gradient_array(const Wanted& gradient, DType dtype, const Shape& shape);

inline py::object to_python(const Array& array) { return array.given() ? array.object() : py::none(); }

template <class... Arrays>
py::tuple to_tuple(const Arrays&... arrays) {
  return py::make_tuple(to_python(arrays)...);
}

// The op's fused activation: None or its name.
inline Activation activation_of(std::string_view op, py::handle value) {
  return value.is_none() ? Activation::none : parse_activation(op, std::string(py::str(value)));
}

}  // namespace lec7::bindings
