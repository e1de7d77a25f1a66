// The device: streams, memory, errors. Everything a kernel's host code needs besides `launch`.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <string>
#include <string_view>

#include "lec7/array.h"

namespace lec7::cuda {

// std::bad_alloc where memory ran out; otherwise std::runtime_error with the call, CUDA's own text, file and line.
void check(cudaError_t error, std::string_view call, std::source_location where = std::source_location::current());

// ---- devices ----

int device_count();  // 0 where there is no GPU or no driver
int current_device();
struct Properties {
  int multiprocessors;
  int compute_capability;  // 80 for 8.0
  std::size_t shared_per_block;
};
const Properties& properties(int device);
const Properties& properties();  // of the current device
#if defined(LEC7_CUDA_HOST)
void set_compute_capability(int capability);  // as what chip the host picks kernels, for tests; at first as 80
#endif

// What the current device can do at most, at its highest clocks: FLOP/s (a multiply-add is two) of float32, of tensor
// cores with tf32 and with 16-bit inputs (0: it has none), and bytes/s of its memory.
struct Peaks {
  double float32, tf32, half, bandwidth;
};
Peaks peaks();

// Whether matrix products and convolutions may round their operands to tf32 (10 bits of fraction) for tensor cores;
// at first not.
bool allow_tf32();
void set_allow_tf32(bool allow);

// ---- streams ----

// A stream lives as long as memory that is to be released on it. Empty: the default stream.
using Stream = std::shared_ptr<CUstream_st>;
Stream new_stream();

cudaStream_t current_stream();  // of this host thread; at first the default stream
const Stream& shared_current_stream();
void set_current_stream(Stream stream);

// Waits for the current stream. What went wrong on the device until then is thrown here: a CUDA error with the names of
// the kernels launched last, or bad values that a kernel met (values.h).
void synchronize();

// What cannot be done for the first time while a stream is captured.
void prepare_capture();
// Is the current stream captured: is its work recorded, and not done?
bool capturing();
// Throws while it is, where an op was given `argument` as a number: each replay would use the same one again.
void refuse_recording(std::string_view op, std::string_view argument);

// ---- memory ----

// Stream-ordered: a block may be used and released on the stream that is current at its allocation. Throws
// std::bad_alloc, after the cache was emptied and the request repeated; the process stays usable.
void* allocate(std::size_t bytes);
void release(void* block, cudaStream_t stream, int device) noexcept;

struct MemoryInfo {
  std::size_t in_use, peak, cached, limit, free, total;
};
MemoryInfo memory_info();
void reset_peak_memory();                  // the most that is in use is counted from now on
void set_memory_limit(std::size_t bytes);  // of what is kept for reuse; at first 4 GiB
void empty_cache();

// The host's memory may change once it returns. Not while a stream is captured: the graph would copy again from
// memory that is gone by then.
void copy_to_device(void* to, const void* from, std::size_t bytes);
void copy_to_host(void* to, const void* from, std::size_t bytes);  // synchronizes
void copy_on_device(void* to, const void* from, std::size_t bytes);

// Scratch for an op: released on the stream it was allocated on, after the kernels that use it.
template <class T>
class Buffer {
 public:
  explicit Buffer(Index count)
      : stream_(current_stream()),
        device_(current_device()),
        data_(count == 0 ? nullptr : static_cast<T*>(allocate(static_cast<std::size_t>(count) * sizeof(T)))) {}
  ~Buffer() {
    if (data_ != nullptr) release(data_, stream_, device_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return data_; }

 private:
  cudaStream_t stream_;
  int device_;
  T* data_;
};

}  // namespace lec7::cuda
