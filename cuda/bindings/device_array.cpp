#include "device_array.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "../arrays.h"
#include "dlpack.h"
#include "lec7/merge.h"
#include "stream.h"

namespace lec7::bindings {
namespace {

DType dtype_of(const py::array& array) {
  const char kind = array.dtype().kind();
  const py::ssize_t size = array.itemsize();
  if (kind == 'f' && size == 2) return DType::float16;
  if (kind == 'f' && size == 4) return DType::float32;
  if (kind == 'f' && size == 8) return DType::float64;
  if (kind == 'i' && size == 4) return DType::int32;
  if (kind == 'i' && size == 8) return DType::int64;
  if (kind == 'b') return DType::boolean;
  throw py::type_error("to_device: float16, float32, float64, int32, int64 or bool; got dtype " +
                       std::string(py::str(array.dtype())));
}

const DeviceArray& usable(const DeviceArray& array) {
  if (array.block->freed()) fail("lec7.cuda.Array", "it was freed", {{"array", array.shape}});
  if (array.block->device() != cuda::current_device()) {
    fail("lec7.cuda.Array",
         "it is on cuda:" + std::to_string(array.block->device()) +
             ", the current device is cuda:" + std::to_string(cuda::current_device()),
         {{"array", array.shape}});
  }
  use(array.block);
  return array;
}

py::tuple shape_tuple(const Shape& shape) {
  py::tuple result(static_cast<std::size_t>(shape.rank()));
  for (int axis = 0; axis < shape.rank(); ++axis) result[static_cast<std::size_t>(axis)] = shape[axis];
  return result;
}

py::array to_numpy(const DeviceArray& array) {
  usable(array);
  if (array.dtype == DType::bfloat16) {
    throw py::type_error("lec7.cuda.Array: NumPy has no bfloat16; array.astype(\"float32\").numpy() is exact");
  }
  py::array result(py::dtype(name_of(array.dtype)), std::vector<py::ssize_t>(array.shape.begin(), array.shape.end()));
  void* const data = result.mutable_data();
  const py::gil_scoped_release unlocked;
  cuda::copy_to_host(data, array.data, array.bytes());
  return result;
}

DeviceArray copied(const DeviceArray& array) {
  DeviceArray result = new_device_array(usable(array).dtype, array.shape);
  cuda::copy_on_device(result.data, array.data, array.bytes());
  return result;
}

// A dtype as users write it: "float16", numpy.float16, numpy.dtype("float16"); NumPy has no "bfloat16".
std::string written_name(py::handle dtype) {
  if (py::isinstance<py::str>(dtype)) return py::str(dtype);
  return py::str(py::dtype::from_args(py::reinterpret_borrow<py::object>(dtype)).attr("name"));
}

bool has_16_bits(const DeviceArray& array) { return array.dtype == DType::float16 || array.dtype == DType::bfloat16; }

// A copy in float32, float16 or bfloat16, each number rounded to the nearest.
DeviceArray converted(const DeviceArray& array, const std::string& name) {
  usable(array);
  const auto dtype_named = [&] {
    for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
      if (name == name_of(dtype)) return dtype;
    }
    throw py::type_error("astype: to float32, float16 or bfloat16; got " + name);
  };
  const DType dtype = dtype_named();
  if (dtype == array.dtype) return copied(array);
  if (array.dtype != DType::float32 && !has_16_bits(array)) {
    throw py::type_error(std::string("astype: from float32, float16 or bfloat16; the array is ") +
                         name_of(array.dtype));
  }
  DeviceArray result = new_device_array(dtype, array.shape);
  with_any_float(array.dtype, [&]<class From> {
    with_any_float(dtype, [&]<class To> {
      if constexpr (!std::is_same_v<From, To>) {
        cuda::convert(array.shape.size(), static_cast<const From*>(array.data), static_cast<To*>(result.data));
      }
    });
  });
  return result;
}

// The one element, on the host.
py::object item(const DeviceArray& array) {
  if (array.shape.size() != 1) {
    fail("lec7.cuda.Array", "only an array of one element is a number", {{"array", array.shape}});
  }
  return to_numpy(has_16_bits(array) ? converted(array, "float32") : array).attr("item")();
}

DeviceArray reshaped(const DeviceArray& array, const py::args& args) {
  py::tuple dims = args;
  if (args.size() == 1 && py::isinstance<py::tuple>(args[0])) dims = args[0];
  if (dims.size() > Shape::kMaxRank) fail("reshape", "at most 8 axes are possible", {{"array", array.shape}});
  Shape shape;
  int open = -1;
  Index known = 1;
  for (const py::handle dim : dims) {
    const Index d = py::cast<Index>(dim);
    if (d == -1 && open < 0) open = shape.rank();
    else if (d < 0) fail("reshape", "sizes are not negative, but for one -1", {{"array", array.shape}});
    else known = checked_multiply("reshape", known, d);
    shape.append(d);
  }
  if (open >= 0) shape[open] = known > 0 ? array.shape.size() / known : 0;
  if ((open >= 0 ? shape.size() : known) != array.shape.size()) {
    fail("reshape", "the number of elements stays", {{"array", array.shape}, {"shape", shape}});
  }
  DeviceArray result = usable(array);
  result.shape = shape;
  return result;
}

// array[i], array[i:j]: views, on the first axis; array[None] has one more in front.
DeviceArray sliced(const DeviceArray& array, const py::object& index) {
  DeviceArray result = usable(array);
  const Shape& old = array.shape;
  const auto append_from = [&](int axis) {
    for (; axis < old.rank(); ++axis) result.shape.append(old[axis]);
  };
  if (index.is_none()) {
    if (old.rank() == Shape::kMaxRank) throw py::index_error("lec7.cuda.Array: at most 8 axes are possible");
    result.shape = Shape{1};
    append_from(0);
    return result;
  }
  if (old.rank() == 0) throw py::index_error("lec7.cuda.Array: an array of shape () has no axis to index");
  Index begin;
  if (py::isinstance<py::slice>(index)) {
    py::ssize_t start, stop, step, count;
    if (!index.cast<py::slice>().compute(old[0], &start, &stop, &step, &count)) throw py::error_already_set();
    if (step != 1) throw py::index_error("lec7.cuda.Array: slices have step 1");
    begin = start;
    result.shape = Shape{count};
  } else if (PyIndex_Check(index.ptr())) {
    begin = py::cast<Index>(index);
    if (begin < 0) begin += old[0];
    if (begin < 0 || begin >= old[0]) throw py::index_error("lec7.cuda.Array: the index is out of range");
    result.shape = Shape{};
  } else {
    throw py::index_error("lec7.cuda.Array: an integer or a slice of the first axis, or None; got " +
                          std::string(py::repr(index)));
  }
  append_from(1);
  result.data = static_cast<char*>(array.data) +
                static_cast<std::size_t>(begin * old.size(1, old.rank())) * item_size(array.dtype);
  return result;
}

DeviceArray transposed(const DeviceArray& array, const py::args& args) {
  usable(array);
  std::vector<int> axes;
  for (const py::handle axis : args) axes.push_back(py::cast<int>(axis));
  std::vector<int> sorted = axes;
  std::sort(sorted.begin(), sorted.end());
  bool all = static_cast<int>(sorted.size()) == array.shape.rank();
  for (std::size_t i = 0; all && i < sorted.size(); ++i) all = sorted[i] == static_cast<int>(i);
  if (!all) fail("transpose", "the axes are each of the array's, once", {{"array", array.shape}});
  if (item_size(array.dtype) != 4) throw py::type_error("transpose: elements have 4 bytes on a GPU");
  Shape shape;
  for (const int axis : axes) shape.append(array.shape[axis]);
  DeviceArray result = new_device_array(array.dtype, shape);
  cuda::transpose(array.shape, axes, array.data, result.data);
  return result;
}

void assign(const DeviceArray& to, const py::object& index, py::handle value) {
  if (!index.is(py::ellipsis()))
    throw py::index_error("lec7.cuda.Array: only all of it is assigned: array[...] = value");
  const DeviceArray from = to_device(value);
  usable(to);
  usable(from);
  if (from.dtype != to.dtype) {
    throw py::type_error(std::string("lec7.cuda.Array: the array is ") + name_of(to.dtype) + ", the value " +
                         name_of(from.dtype));
  }
  if (!(from.shape == to.shape)) {
    fail("lec7.cuda.Array", "the shapes are equal", {{"array", to.shape}, {"value", from.shape}});
  }
  cuda::copy_on_device(to.data, from.data, to.bytes());
}

bool overlap(const DeviceArray& a, const DeviceArray& b) {
  const auto *a_low = static_cast<const char*>(a.data), *b_low = static_cast<const char*>(b.data);
  return a_low < b_low + b.bytes() && b_low < a_low + a.bytes();
}

// y += x.
void add_to(const DeviceArray& y, const DeviceArray& x) {
  usable(y);
  usable(x);
  if (y.dtype != DType::float32 || x.dtype != DType::float32) {
    throw py::type_error("lec7.cuda.Array: a sum is of two float32 arrays");
  }
  check_add(y.shape, x.shape, y.data != x.data && overlap(y, x));
  cuda::add(y.shape.size(), static_cast<float*>(y.data), static_cast<const float*>(x.data));
}

void fill(const DeviceArray& array, double value) {
  usable(array);
  if (array.dtype != DType::float32) throw py::type_error("lec7.cuda.Array.fill: the array is float32");
  cuda::fill_words(array.data, std::bit_cast<int>(static_cast<float>(value)), array.shape.size());
}

py::dict interface(const DeviceArray& array) {
  usable(array);
  py::dict result;
  result["shape"] = shape_tuple(array.shape);
  if (array.dtype == DType::bfloat16) {  // so that hasattr is false, as for whatever has no such interface
    throw py::attribute_error("lec7.cuda.Array: __cuda_array_interface__ has no bfloat16; DLPack has");
  }
  result["typestr"] = py::dtype(name_of(array.dtype)).attr("str");
  result["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(array.data), false);
  result["version"] = 3;
  result["strides"] = py::none();
  array.block->join_current_stream();
  // 1 is the legacy default stream; 0 is not allowed.
  const auto stream = reinterpret_cast<std::uintptr_t>(cuda::current_stream());
  result["stream"] = stream == 0 ? 1 : stream;
  return result;
}

}  // namespace

Block::Block(std::size_t bytes)
    : recording_(current_recording()),
      memory_(recording_ == nullptr ? Memory::ours : Memory::graphs),
      bytes_(bytes),
      device_(cuda::current_device()),
      stream_(cuda::shared_current_stream()),
      data_(bytes > 0 ? cuda::allocate(bytes) : nullptr) {}

Block::Block(void* data, std::size_t bytes, int device, py::object owner)
    : memory_(Memory::foreign),
      bytes_(bytes),
      device_(device),
      stream_(cuda::shared_current_stream()),
      owner_(std::move(owner)),
      data_(data) {}

Block::~Block() { free(); }

void Block::join_current_stream() const {
  if (stream_.get() != cuda::current_stream())
    cuda::check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
}

void Block::free() {
  if (freed_) return;
  freed_ = true;
  if (memory_ == Memory::ours && data_ != nullptr) cuda::release(data_, stream_.get(), device_);
  if (memory_ == Memory::graphs && data_ != nullptr) recording_->release(data_);
  // Its library may use the memory again at once, and knows nothing of a stream of ours.
  if (memory_ == Memory::foreign && stream_ != nullptr && cudaStreamSynchronize(stream_.get()) != cudaSuccess) {
    cudaGetLastError();
  }
  owner_ = py::object();
}

std::size_t DeviceArray::bytes() const { return static_cast<std::size_t>(shape.size()) * item_size(dtype); }

DeviceArray new_device_array(DType dtype, const Shape& shape) {
  const Index elements = checked_size("lec7.cuda.Array", shape);
  auto block = std::make_shared<Block>(static_cast<std::size_t>(elements) * item_size(dtype));
  void* const data = block->data();
  return {std::move(block), data, dtype, shape};
}

DeviceArray zeros(const py::tuple& dims) {
  if (dims.size() > Shape::kMaxRank) throw py::value_error("zeros: at most 8 axes are possible");
  Shape shape;
  for (const py::handle dim : dims) shape.append(py::cast<Index>(dim));
  DeviceArray result = new_device_array(DType::float32, shape);
  cuda::fill_words(result.data, 0, shape.size());
  return result;
}

DeviceArray to_device(py::handle value) {
  if (py::isinstance<DeviceArray>(value)) return usable(py::cast<const DeviceArray&>(value));
  const auto array = py::array::ensure(value, py::array::c_style);
  if (!array) {
    throw py::type_error("to_device: NumPy makes no array of " + std::string(py::str(py::type::of(value))) +
                         " (from_dlpack takes a GPU's)");
  }
  if (array.ndim() > Shape::kMaxRank) {
    throw py::value_error("to_device: " + std::to_string(array.ndim()) + " axes; at most 8 are possible");
  }
  Shape shape;
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) shape.append(array.shape(axis));
  DeviceArray result = new_device_array(dtype_of(array), shape);
  cuda::copy_to_device(result.data, array.data(), result.bytes());
  return result;
}

void bind_device_array(py::module_& m) {
  // Local to the module: the host build has a type of this name in the same process.
  py::class_<DeviceArray> type(m, "Array", py::module_local(),
                               "A contiguous array on a GPU: made by lec7.cuda.to_device or by an op.");
  type.attr("__array_ufunc__") = py::none();  // NumPy's operators refuse it, instead of trying each element
  type.def_property_readonly("shape", [](const DeviceArray& a) { return shape_tuple(a.shape); })
      .def_property_readonly("ndim", [](const DeviceArray& a) { return a.shape.rank(); })
      .def_property_readonly("size", [](const DeviceArray& a) { return a.shape.size(); })
      .def_property_readonly("nbytes", &DeviceArray::bytes)
      .def_property_readonly(
          "dtype",
          [](const DeviceArray& a) -> py::object {
            if (a.dtype == DType::bfloat16) return py::str(name_of(a.dtype));
            return py::dtype(name_of(a.dtype));
          },
          "NumPy's; of bfloat16, which NumPy has not, the name.")
      .def_property_readonly("device", [](const DeviceArray& a) { return "cuda:" + std::to_string(a.block->device()); })
      .def("numpy", &to_numpy, "A copy as a NumPy array; waits for the stream.")
      .def("item", &item, "The one element as a Python number; waits for the stream.")
      .def("__float__", [](const DeviceArray& a) { return py::float_(item(a)); })
      .def("__format__",
           [](const py::object& self, const py::str& spec) -> py::object {
             if (py::len(spec) == 0) return py::str(self);
             return item(py::cast<const DeviceArray&>(self)).attr("__format__")(spec);
           })
      .def("__int__", [](const DeviceArray& a) { return py::int_(item(a)); })
      .def("__len__",
           [](const DeviceArray& a) {
             if (a.shape.rank() == 0) throw py::type_error("len() of an array of shape ()");
             return a.shape[0];
           })
      .def("reshape", &reshaped, "The same memory with another shape; one size may be -1.")
      .def("__getitem__", &sliced, py::arg("index"), "array[i] or array[i:j]: a view.")
      .def("copy", &copied)
      .def(
          "astype", [](const DeviceArray& a, py::handle dtype) { return converted(a, written_name(dtype)); },
          py::arg("dtype"), "A copy in float32, float16 or bfloat16, each number rounded to the nearest.")
      .def("transpose", &transposed, "A copy with the axes in another order: transpose(1, 0).")
      .def("__setitem__", &assign, py::arg("index"), py::arg("value"),
           "array[...] = a NumPy or device array of the same shape and dtype.")
      .def(
          "__iadd__",
          [](const py::object& y, const DeviceArray& x) {
            add_to(py::cast<const DeviceArray&>(y), x);
            return y;
          },
          py::is_operator())
      .def(
          "__add__",
          [](const DeviceArray& y, const DeviceArray& x) {
            DeviceArray sum = copied(y);
            add_to(sum, x);
            return sum;
          },
          py::is_operator())
      .def("fill", &fill, py::arg("value"), "Set every element (float32).")
      .def(
          "free", [](DeviceArray& a) { a.block->free(); },
          "Give the memory back now; the array, and its views, refuse to be used from then on.")
      .def_property_readonly("__cuda_array_interface__", &interface)
      .def("__dlpack__", &to_dlpack, py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
           py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
      .def("__dlpack_device__", [](const DeviceArray& a) { return py::make_tuple(kDlpackDevice, a.block->device()); })
      .def("__array__",
           [](const DeviceArray&, const py::args&, const py::kwargs&) {
             throw py::type_error("lec7.cuda.Array: NumPy does not read a GPU's memory; array.numpy() is a copy");
           })
      .def("__repr__", [](const DeviceArray& a) {
        return "lec7.cuda.Array(" + a.shape.str() + ", " + name_of(a.dtype) +
               ", cuda:" + std::to_string(a.block->device()) + (a.block->freed() ? ", freed)" : ")");
      });
  m.def("from_dlpack", &from_dlpack, py::arg("array"), "The same memory as an array of another library (DLPack).");
}

}  // namespace lec7::bindings
