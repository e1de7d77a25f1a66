// Memory shared with other libraries, without a copy (dmlc.github.io/dlpack, version 0.8: the "dltensor" capsule).
#pragma once

#include "device_array.h"

namespace lec7::bindings {

#if defined(LEC7_CUDA_HOST)
inline constexpr int kDlpackDevice = 1;  // kDLCPU: its memory is the host's
#else
inline constexpr int kDlpackDevice = 2;  // kDLCUDA
#endif

// `stream` is the consumer's: what was launched for the array is done before what it launches there.
py::object to_dlpack(const DeviceArray& array, const py::object& stream, const py::object& max_version,
                     const py::object& device, const py::object& copy);
DeviceArray from_dlpack(const py::object& array);

}  // namespace lec7::bindings
