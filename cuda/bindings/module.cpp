#include "bindings/module.h"

#include "../clip.h"
#include "../runtime.h"
#include "device_array.h"
#include "stream.h"
#if defined(LEC7_CUDA_HOST)
#include "fibers.h"
#endif

namespace py = pybind11;

namespace lec7::bindings {

namespace {

py::dict memory_info() {
  const cuda::MemoryInfo bytes = cuda::memory_info();
  py::dict info;
  info["in_use"] = bytes.in_use;
  info["peak"] = bytes.peak;
  info["cached"] = bytes.cached;
  info["limit"] = bytes.limit;
  info["free"] = bytes.free;
  info["total"] = bytes.total;
  return info;
}

py::dict device_info() {
  cudaDeviceProp device;
  cuda::check(cudaGetDeviceProperties(&device, cuda::current_device()), "cudaGetDeviceProperties");
  const int capability = cuda::properties().compute_capability;
  const cuda::Peaks peaks = cuda::peaks();
  py::dict info;
  info["name"] = device.name;
  info["compute_capability"] = py::make_tuple(capability / 10, capability % 10);
  info["multiprocessors"] = cuda::properties().multiprocessors;
  info["float32_flops"] = peaks.float32;
  info["tf32_flops"] = peaks.tf32;
  info["half_flops"] = peaks.half;
  info["bandwidth"] = peaks.bandwidth;
  return info;
}

// A factor for gradients of this norm; both stay on the device.
DeviceArray clip_scale(py::handle norm, double limit) {
  const void* const at = number_on_device("clip_scale", "norm", norm, DType::float64);
  if (at == nullptr) throw py::type_error("clip_scale: norm is a lec7.cuda.Array, as global_norm gives it");
  DeviceArray scale = new_device_array(DType::float64, Shape{});
  cuda::clip_scale(static_cast<const double*>(at), limit, static_cast<double*>(scale.data));
  return scale;
}

}  // namespace

PYBIND11_MODULE(LEC7_MODULE, m) {
  m.doc() = "lec7's CUDA backend: the ops of lec7.ops on lec7.cuda.Array.";

  m.def(
      "build_info",
      [] {
        py::dict info;
        info["toolkit"] = LEC7_CUDA_TOOLKIT;
        info["chips"] = LEC7_CUDA_CHIPS;
        return info;
      },
      "The toolkit that compiled it, and the chips it was compiled for.");
  m.def("device_count", &cuda::device_count, "The GPUs that can be used: 0 without one, or without a driver.");
  m.def(
      "set_device", [](int device) { cuda::check(cudaSetDevice(device), "cudaSetDevice"); }, py::arg("device"),
      "Make this GPU the thread's.");
  m.def(
      "device_info", &device_info,
      "Of the current device: name, compute_capability, multiprocessors, and its peaks, at the highest clocks: FLOP/s "
      "(a multiply-add is two) of float32, tf32 and half (tensor cores; 0: none), bytes/s of its memory.");
  m.def("synchronize", &cuda::synchronize, py::call_guard<py::gil_scoped_release>(),
        "Wait for the current stream; raise what went wrong on it.");
  m.def("memory_info", &memory_info,
        "Bytes of arrays in use, the most since reset_peak_memory(), of freed ones kept for reuse, the most that are "
        "kept, the device's free and total.");
  m.def("reset_peak_memory", &cuda::reset_peak_memory, "Count memory_info()[\"peak\"] from now on.");
  m.def("empty_cache", &cuda::empty_cache, "Give the freed memory back to the device.");
  m.def("set_memory_limit", &cuda::set_memory_limit, py::arg("bytes"), "Keep at most `bytes` of freed memory.");
  m.def("allow_tf32", &cuda::allow_tf32, "Whether products and convolutions may round their operands to tf32.");
  m.def(
      "set_allow_tf32", &cuda::set_allow_tf32, py::arg("allow"),
      "Let products and convolutions round their operands to tf32 (10 bits of fraction, the sums stay float32), which "
      "tensor cores multiply faster, from compute capability 8.0 on. At first they may not.");
  m.def("_clip_scale", &clip_scale, py::arg("norm"), py::arg("limit"),
        "What gradients of this norm are multiplied by so that it is at most `limit`: 1, or limit / norm.");
  m.def(
      "compute_capability", [](int device) { return cuda::properties(device).compute_capability; }, py::arg("device"),
      "The GPU's chip: 90 for 9.0.");
  m.def("current_device", &cuda::current_device, "The thread's GPU.");
  m.def("zeros", &zeros, py::arg("shape"), "Zeros of float32 on the current device.");
  m.def("to_device", &to_device, py::arg("array"), "A copy of an array on the current device; its dtype stays.");
#if defined(LEC7_CUDA_HOST)
  m.def(
      "_set_schedule",
      [](unsigned workers, bool shuffle, std::uint64_t seed) { host::schedule() = {workers, shuffle, seed}; },
      py::arg("workers") = 1, py::arg("shuffle") = false, py::arg("seed") = 1);
  m.def("_set_compute_capability", &cuda::set_compute_capability, py::arg("capability"));
#endif

  bind_device_array(m);
  bind_stream(m);
  bind_ops(m);
}

}  // namespace lec7::bindings
