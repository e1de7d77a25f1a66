// NumPy's C API rather than py::array_t: six arrays in and two out cost 0.4 us instead of 1.5 (a step of a small LSTM
// is 4 us). An input is used in place when it is a contiguous, aligned, native array; a strided one is copied.
#include "arrays.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL lec7_array_api
#include <numpy/arrayobject.h>

#include <cstring>
#include <memory>

#include "lec7/memory.h"

namespace lec7::bindings {
namespace {

// Below this NumPy's own cache of small blocks is as fast, and a capsule would cost more.
constexpr std::size_t kPooledBytes = std::size_t{1} << 14;

PyArrayObject* as_array(py::handle object) { return reinterpret_cast<PyArrayObject*>(object.ptr()); }

std::string dtype_name(PyArrayObject* array) { return py::str(reinterpret_cast<PyObject*>(PyArray_DESCR(array))); }

Shape shape_of(std::string_view op, const char* argument, PyArrayObject* array) {
  const int rank = PyArray_NDIM(array);
  if (rank > Shape::kMaxRank) {
    fail(op, std::string(argument) + " has " + std::to_string(rank) + " axes; at most 8 are possible");
  }
  Shape shape;
  for (int axis = 0; axis < rank; ++axis) shape.append(PyArray_DIM(array, axis));
  return shape;
}

std::string described(PyArrayObject* array) {
  std::string text = "dtype " + dtype_name(array) + ", shape (";
  for (int axis = 0; axis < PyArray_NDIM(array); ++axis) {
    text += (axis > 0 ? ", " : "") + std::to_string(PyArray_DIM(array, axis));
  }
  return text + (PyArray_NDIM(array) == 1 ? ",)" : ")");
}

// The DType of a native array, or false where the kernels have none for it.
bool find_dtype(PyArrayObject* array, DType* dtype) {
  const PyArray_Descr* descr = PyArray_DESCR(array);
  if (PyArray_ISBYTESWAPPED(array)) return false;
  switch (descr->kind) {
    case 'f':
      if (PyArray_ITEMSIZE(array) == 4) return *dtype = DType::float32, true;
      if (PyArray_ITEMSIZE(array) == 8) return *dtype = DType::float64, true;
      return false;
    case 'i':
      if (PyArray_ITEMSIZE(array) == 4) return *dtype = DType::int32, true;
      if (PyArray_ITEMSIZE(array) == 8) return *dtype = DType::int64, true;
      return false;
    case 'b': return *dtype = DType::boolean, true;
    default: return false;
  }
}

Array input(std::string_view op, const char* argument, py::handle value, std::initializer_list<DType> accepted,
            const char* wanted) {
  py::object owner;
  if (PyArray_Check(value.ptr())) {
    owner = py::reinterpret_borrow<py::object>(value);
  } else {
    owner = py::reinterpret_steal<py::object>(PyArray_FROM_O(value.ptr()));
    if (!owner) throw py::error_already_set();
  }
  DType dtype{};
  bool ok = find_dtype(as_array(owner), &dtype);
  if (ok) {
    ok = false;
    for (DType d : accepted) ok = ok || d == dtype;
  }
  if (!ok) {
    throw py::type_error(std::string(op) + ": " + argument + " must be " + wanted + "; got " +
                         described(as_array(owner)));
  }
  const Shape shape = shape_of(op, argument, as_array(owner));
  if (!PyArray_IS_C_CONTIGUOUS(as_array(owner)) || !PyArray_ISALIGNED(as_array(owner))) {
    owner = py::reinterpret_steal<py::object>(PyArray_NewCopy(as_array(owner), NPY_CORDER));
    if (!owner) throw py::error_already_set();
  }
  void* const data = PyArray_DATA(as_array(owner));
  return Array(std::move(owner), data, dtype, shape);
}

int numpy_type(DType dtype) {
  switch (dtype) {
    case DType::float32: return NPY_FLOAT32;
    case DType::float64: return NPY_FLOAT64;
    case DType::int32: return NPY_INT32;
    case DType::int64: return NPY_INT64;
    default: return NPY_BOOL;
  }
}

// The first byte of an array's elements and the one after its last.
std::pair<const char*, const char*> bounds(PyArrayObject* array) {
  const char* low = PyArray_BYTES(array);
  const char* high = low + PyArray_ITEMSIZE(array);
  for (int axis = 0; axis < PyArray_NDIM(array); ++axis) {
    if (PyArray_DIM(array, axis) == 0) return {low, low};
    const npy_intp reach = (PyArray_DIM(array, axis) - 1) * PyArray_STRIDE(array, axis);
    (reach < 0 ? low : high) += reach;
  }
  return {low, high};
}

void release_block(PyObject* capsule) {
  void* const block = PyCapsule_GetPointer(capsule, nullptr);
  memory::release(block, reinterpret_cast<std::size_t>(PyCapsule_GetContext(capsule)));
}

}  // namespace

// Called once by the module: NumPy's function table lives in this file alone.
bool import_numpy() { return _import_array() >= 0; }

Array float_array(std::string_view op, const char* argument, py::handle value) {
  return input(op, argument, value, {DType::float32, DType::float64}, "float32 or float64");
}
Array integer_array(std::string_view op, const char* argument, py::handle value) {
  return input(op, argument, value, {DType::int32, DType::int64}, "int32 or int64");
}
Array mask_array(std::string_view op, const char* argument, py::handle value) {
  return input(op, argument, value, {DType::boolean, DType::float32, DType::float64}, "bool, float32 or float64");
}
Array optional_float_array(std::string_view op, const char* argument, py::handle value) {
  return value.is_none() ? Array() : float_array(op, argument, value);
}
Array any_float_array(std::string_view op, const char* argument, py::handle value) {
  return float_array(op, argument, value);
}
Array optional_any_float_array(std::string_view op, const char* argument, py::handle value) {
  return optional_float_array(op, argument, value);
}
Array host_integer_array(std::string_view op, const char* argument, py::handle value) {
  return integer_array(op, argument, value);
}

Array inout_array(std::string_view op, const char* argument, py::handle value) {
  const std::string name = std::string(op) + ": " + argument;
  if (!PyArray_Check(value.ptr())) {
    throw py::type_error(name + " is changed in place and must be a NumPy array; got " +
                         std::string(py::str(py::type::handle_of(value))));
  }
  Array array = float_array(op, argument, value);
  if (!array.object().is(value)) {
    fail(op, std::string(argument) + " is changed in place and must be contiguous", {{argument, array.shape()}});
  }
  if (!PyArray_ISWRITEABLE(as_array(value))) {
    fail(op, std::string(argument) + " is changed in place and is read-only", {{argument, array.shape()}});
  }
  return array;
}

Array gradient_array(const Wanted& gradient, DType dtype, const Shape& shape) {
  if (!gradient.wanted) return {};
  if (gradient.into.is_none()) return new_array(dtype, shape);
  Array array = inout_array(gradient.op, gradient.name, gradient.into);
  if (array.dtype() != dtype) {
    throw py::type_error(std::string(gradient.op) + ": " + gradient.name + " is written as " + name_of(dtype) +
                         "; got " + described(as_array(gradient.into)));
  }
  if (!(array.shape() == shape)) {
    fail(gradient.op, std::string("the array given for ") + gradient.name + " must have the gradient's shape",
         {{gradient.name, array.shape()}, {"gradient", shape}});
  }
  return array;
}

bool may_share_memory(py::handle a, py::handle b) {
  if (!PyArray_Check(a.ptr()) || !PyArray_Check(b.ptr())) return false;
  const auto [a_low, a_high] = bounds(as_array(a));
  const auto [b_low, b_high] = bounds(as_array(b));
  return a_low < b_high && b_low < a_high;
}

Array new_array(DType dtype, const Shape& shape) {
  npy_intp dims[Shape::kMaxRank];
  for (int axis = 0; axis < shape.rank(); ++axis) dims[axis] = shape[axis];
  const std::size_t bytes = static_cast<std::size_t>(shape.size()) * item_size(dtype);
  if (bytes < kPooledBytes) {
    auto owner = py::reinterpret_steal<py::object>(PyArray_SimpleNew(shape.rank(), dims, numpy_type(dtype)));
    if (!owner) throw py::error_already_set();
    void* const data = PyArray_DATA(as_array(owner));
    if (memory::poisoned()) std::memset(data, 0xff, bytes);
    return Array(std::move(owner), data, dtype, shape);
  }
  void* const block = memory::allocate(bytes);
  auto capsule = py::reinterpret_steal<py::object>(PyCapsule_New(block, nullptr, release_block));
  if (!capsule) {
    memory::release(block, bytes);
    throw py::error_already_set();
  }
  PyCapsule_SetContext(capsule.ptr(), reinterpret_cast<void*>(bytes));
  auto owner =
      py::reinterpret_steal<py::object>(PyArray_SimpleNewFromData(shape.rank(), dims, numpy_type(dtype), block));
  if (!owner) throw py::error_already_set();
  if (PyArray_SetBaseObject(as_array(owner), capsule.release().ptr()) < 0) throw py::error_already_set();
  return Array(std::move(owner), block, dtype, shape);
}

const void* number_on_device(std::string_view, const char*, py::handle, DType) { return nullptr; }

py::object number_of(const Array& scalar) { return scalar.object().attr("item")(); }

Array new_scalar(DType dtype, double value) {
  const Array scalar = new_array(dtype, Shape{});
  with_float(dtype, [&]<class T> { *scalar.data<T>() = static_cast<T>(value); });
  return scalar;
}

}  // namespace lec7::bindings
