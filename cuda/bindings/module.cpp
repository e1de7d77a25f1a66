#include "bindings/module.h"

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
  info["cached"] = bytes.cached;
  info["limit"] = bytes.limit;
  info["free"] = bytes.free;
  info["total"] = bytes.total;
  return info;
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
  m.def("synchronize", &cuda::synchronize, py::call_guard<py::gil_scoped_release>(),
        "Wait for the current stream; raise what went wrong on it.");
  m.def("memory_info", &memory_info,
        "Bytes of arrays in use, of freed ones kept for reuse, the most that are kept, the device's free and total.");
  m.def("empty_cache", &cuda::empty_cache, "Give the freed memory back to the device.");
  m.def("set_memory_limit", &cuda::set_memory_limit, py::arg("bytes"), "Keep at most `bytes` of freed memory.");
  m.def("allow_tf32", &cuda::allow_tf32, "Whether products and convolutions may round their operands to tf32.");
  m.def(
      "set_allow_tf32", &cuda::set_allow_tf32, py::arg("allow"),
      "Let products and convolutions round their operands to tf32 (10 bits of fraction, the sums stay float32), which "
      "tensor cores multiply faster, from compute capability 8.0 on. At first they may not.");
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
