#include "dlpack.h"

#include <vector>

#include "stream.h"

namespace lec7::bindings {
namespace {

// The structures of dlpack.h, as the standard lays them out.
struct DLDevice {
  std::int32_t type, id;
};
struct DLDataType {
  std::uint8_t code, bits;  // code: 0 int, 2 float, 4 bfloat, 6 bool
  std::uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t ndim;
  DLDataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: contiguous
  std::uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* manager;
  void (*deleter)(DLManagedTensor*);
};

constexpr const char* kFresh = "dltensor";
constexpr const char* kTaken = "used_dltensor";

DLDataType dl_type(DType dtype) {
  const auto bits = static_cast<std::uint8_t>(item_size(dtype) * 8);
  switch (dtype) {
    case DType::float16:
    case DType::float32:
    case DType::float64: return {2, bits, 1};
    case DType::bfloat16: return {4, bits, 1};
    case DType::boolean: return {6, bits, 1};
    default: return {0, bits, 1};
  }
}

DType dtype_of(const DLDataType& type) {
  for (const DType dtype :
       {DType::float16, DType::bfloat16, DType::float32, DType::float64, DType::int32, DType::int64, DType::boolean}) {
    const DLDataType mine = dl_type(dtype);
    if (mine.code == type.code && mine.bits == type.bits && type.lanes == 1) return dtype;
  }
  throw py::type_error("from_dlpack: float16, bfloat16, float32, float64, int32, int64 or bool");
}

// An exported array keeps its block alive until the consumer lets go of it.
struct Exported {
  DeviceArray array;
  std::vector<std::int64_t> shape;
  DLManagedTensor managed;
};

void release_unused(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, kFresh) == 0) return;  // taken: the consumer calls the deleter
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, kFresh));
  managed->deleter(managed);
}

}  // namespace

py::object to_dlpack(const DeviceArray& array, const py::object& stream, const py::object&, const py::object& device,
                     const py::object& copy) {
  if (array.block->freed()) fail("lec7.cuda.Array", "it was freed", {{"array", array.shape}});
  use(array.block);
  if (!device.is_none() && !device.equal(py::make_tuple(kDlpackDevice, array.block->device()))) {
    throw py::buffer_error("lec7.cuda.Array: it is not copied to another device; .numpy() is a copy on the host");
  }
  if (!copy.is_none() && py::cast<bool>(copy)) throw py::buffer_error("lec7.cuda.Array: DLPack shares, copy() copies");
  // A consumer on any stream (None: the default one; -1: it asks for nothing) sees what was asked to be written.
  if (stream.is_none() || py::cast<std::int64_t>(stream) != -1) {
    const py::gil_scoped_release unlocked;
    array.block->join_current_stream();
    cuda::synchronize();
  }
  auto exported = std::make_unique<Exported>(
      Exported{array, std::vector<std::int64_t>(array.shape.begin(), array.shape.end()), {}});
  exported->managed = {{array.data,
                        {kDlpackDevice, array.block->device()},
                        array.shape.rank(),
                        dl_type(array.dtype),
                        exported->shape.data(),
                        nullptr,
                        0},
                       exported.get(),
                       [](DLManagedTensor* managed) {
                         if (Py_IsInitialized() == 0) return;  // the process ends
                         const py::gil_scoped_acquire locked;
                         delete static_cast<Exported*>(managed->manager);
                       }};
  PyObject* const capsule = PyCapsule_New(&exported->managed, kFresh, release_unused);
  if (capsule == nullptr) throw py::error_already_set();
  exported.release();
  return py::reinterpret_steal<py::object>(capsule);
}

DeviceArray from_dlpack(const py::object& array) {
  if (!py::hasattr(array, "__dlpack__")) {
    throw py::type_error("from_dlpack: the array has __dlpack__; got " + std::string(py::repr(py::type::of(array))));
  }
  const auto stream = reinterpret_cast<std::uintptr_t>(cuda::current_stream());
  const py::object wanted = kDlpackDevice == 1 ? py::object(py::none()) : py::int_(stream == 0 ? 1 : stream);
  py::object capsule = array.attr("__dlpack__")(py::arg("stream") = wanted);
  auto* const managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), kFresh));
  if (managed == nullptr) throw py::error_already_set();
  const DLTensor& tensor = managed->tensor;
  if (tensor.device.type != kDlpackDevice) throw py::type_error("from_dlpack: the array is not on a GPU");
  if (tensor.ndim > Shape::kMaxRank) throw py::value_error("from_dlpack: at most 8 axes are possible");
  Shape shape;
  for (int axis = 0; axis < tensor.ndim; ++axis) shape.append(tensor.shape[axis]);
  for (int axis = 0; tensor.strides != nullptr && shape.size() > 0 && axis < tensor.ndim; ++axis) {
    if (shape[axis] > 1 && tensor.strides[axis] != shape.size(axis + 1, tensor.ndim)) {
      fail("from_dlpack", "the array is contiguous", {{"array", shape}});
    }
  }
  const DType dtype = dtype_of(tensor.dtype);
  void* const data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  PyCapsule_SetName(capsule.ptr(), kTaken);
  // From here on the block calls the deleter, through a capsule of its own.
  py::capsule owner(managed, [](void* pointer) {
    auto* const taken = static_cast<DLManagedTensor*>(pointer);
    if (taken->deleter != nullptr) taken->deleter(taken);
  });
  const auto bytes = static_cast<std::size_t>(shape.size()) * item_size(dtype);
  return {std::make_shared<Block>(data, bytes, tensor.device.id, std::move(owner)), data, dtype, shape};
}

}  // namespace lec7::bindings
