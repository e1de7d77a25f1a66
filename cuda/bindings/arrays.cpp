// The bindings' arrays are the device's: an input is a lec7.cuda.Array of the current device, used in place.
#include "bindings/arrays.h"

#include <pybind11/numpy.h>

#include <bit>

#include "../arrays.h"
#include "device_array.h"
#include "stream.h"

namespace lec7::bindings {
namespace {

std::string type_name(py::handle value) { return py::str(py::type::handle_of(value).attr("__name__")); }

Array input(std::string_view op, const char* argument, py::handle value, std::initializer_list<DType> accepted,
            const char* wanted) {
  const std::string name = std::string(op) + ": " + argument;
  if (!py::isinstance<DeviceArray>(value)) {
    throw py::type_error(name + " must be a lec7.cuda.Array, as the op's other arrays are; got " + type_name(value) +
                         " (lec7.cuda.to_device makes one)");
  }
  const auto& array = py::cast<const DeviceArray&>(value);
  if (array.block->freed()) fail(op, std::string(argument) + " was freed", {{argument, array.shape}});
  if (array.block->device() != cuda::current_device()) {
    fail(op,
         std::string(argument) + " is on cuda:" + std::to_string(array.block->device()) +
             ", the current device is cuda:" + std::to_string(cuda::current_device()),
         {{argument, array.shape}});
  }
  use(array.block);
  for (const DType dtype : accepted) {
    if (dtype == array.dtype) {
      return Array(py::reinterpret_borrow<py::object>(value), array.data, array.dtype, array.shape);
    }
  }
  throw py::type_error(name + " must be " + wanted + " on a GPU; got dtype " + name_of(array.dtype) + ", shape " +
                       array.shape.str());
}

Array wrap(DeviceArray array) {
  void* const data = array.data;
  const DType dtype = array.dtype;
  const Shape shape = array.shape;
  return Array(py::cast(std::move(array)), data, dtype, shape);
}

}  // namespace

Array float_array(std::string_view op, const char* argument, py::handle value) {
  return input(op, argument, value, {DType::float32}, "float32");
}
Array integer_array(std::string_view op, const char* argument, py::handle value) {
  return input(op, argument, value, {DType::int32, DType::int64}, "int32 or int64");
}
Array mask_array(std::string_view op, const char* argument, py::handle value) {
  return input(op, argument, value, {DType::boolean, DType::float32}, "bool or float32");
}
Array optional_float_array(std::string_view op, const char* argument, py::handle value) {
  return value.is_none() ? Array() : float_array(op, argument, value);
}
Array any_float_array(std::string_view op, const char* argument, py::handle value) {
  return input(op, argument, value, {DType::float32, DType::float16, DType::bfloat16}, "float32, float16 or bfloat16");
}
Array optional_any_float_array(std::string_view op, const char* argument, py::handle value) {
  return value.is_none() ? Array() : any_float_array(op, argument, value);
}
Array inout_array(std::string_view op, const char* argument, py::handle value) {
  return float_array(op, argument, value);
}

Array host_integer_array(std::string_view op, const char* argument, py::handle value) {
  const std::string name = std::string(op) + ": " + argument;
  if (py::isinstance<DeviceArray>(value)) {
    throw py::type_error(name + " is read by the host: pass a NumPy array, not a lec7.cuda.Array");
  }
  const auto array = py::array::ensure(value, py::array::c_style);
  if (!array) throw py::type_error(name + " must be an array of int32 or int64; got " + type_name(value));
  if (array.dtype().kind() != 'i' || array.itemsize() < 4) {
    throw py::type_error(name + " must be int32 or int64; got dtype " + std::string(py::str(array.dtype())));
  }
  if (array.ndim() > Shape::kMaxRank) throw py::value_error(name + " has too many axes; at most 8 are possible");
  Shape shape;
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) shape.append(array.shape(axis));
  void* const data = const_cast<void*>(array.data());
  return Array(array, data, array.itemsize() == 8 ? DType::int64 : DType::int32, shape);
}

const void* number_on_device(std::string_view op, const char* argument, py::handle value, DType dtype) {
  if (!py::isinstance<DeviceArray>(value)) return nullptr;
  const Array number = input(op, argument, value, {dtype}, name_of(dtype));
  if (number.shape().rank() != 0) {
    fail(op, std::string(argument) + " is a number, or an array of shape ()", {{argument, number.shape()}});
  }
  return number.data<void>();
}

py::object number_of(const Array& scalar) { return scalar.object(); }

bool may_share_memory(py::handle a, py::handle b) {
  if (!py::isinstance<DeviceArray>(a) || !py::isinstance<DeviceArray>(b)) return false;
  const auto &x = py::cast<const DeviceArray&>(a), &y = py::cast<const DeviceArray&>(b);
  const auto *x_low = static_cast<const char*>(x.data), *y_low = static_cast<const char*>(y.data);
  return x_low < y_low + y.bytes() && y_low < x_low + x.bytes();
}

Array new_array(DType dtype, const Shape& shape) { return wrap(new_device_array(dtype, shape)); }

Array new_scalar(DType dtype, double value) {
  const Array scalar = new_array(dtype, Shape{});
  cuda::fill_words(scalar.data<void>(), std::bit_cast<int>(static_cast<float>(value)), 1);
  return scalar;
}

Array gradient_array(const Wanted& gradient, DType dtype, const Shape& shape) {
  if (!gradient.wanted) return {};
  if (gradient.into.is_none()) return new_array(dtype, shape);
  Array array = input(gradient.op, gradient.name, gradient.into, {dtype}, name_of(dtype));
  if (!(array.shape() == shape)) {
    fail(gradient.op, std::string("the array given for ") + gradient.name + " must have the gradient's shape",
         {{gradient.name, array.shape()}, {"gradient", shape}});
  }
  return array;
}

}  // namespace lec7::bindings
