#include "runtime.h"

#include <atomic>
#include <new>
#include <stdexcept>
#include <vector>

#include "kernel.h"
#include "values.h"

namespace lec7::cuda {
namespace {

thread_local Stream stream_in_use;
std::atomic<bool> tf32 = false;

// The kernels launched since the last synchronization, the newest last: the one that failed is among them.
constexpr int kRemembered = 8;
thread_local const char* launched[kRemembered];
thread_local unsigned launches = 0;

std::string launched_last() {
  std::string text;
  for (unsigned i = launches > kRemembered ? launches - kRemembered : 0; i < launches; ++i) {
    text += (text.empty() ? "" : ", ") + std::string(launched[i % kRemembered]);
  }
  return text.empty() ? "no kernel" : text;
}

std::string place(const std::source_location& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

constexpr std::uint64_t kFirstLimit = std::uint64_t{4} << 30;

cudaMemPool_t pool() {
  const int device = current_device();
  cudaMemPool_t result;
  check(cudaDeviceGetDefaultMemPool(&result, device), "cudaDeviceGetDefaultMemPool");
  // CUDA's own limit is 0: each synchronization would give all freed memory back, and the next step ask for it again.
  static std::atomic<std::uint64_t> limited{0};  // a bit for each device
  const std::uint64_t mine = std::uint64_t{1} << device;
  if ((limited.load() & mine) == 0) {
    std::uint64_t limit = kFirstLimit;
    check(cudaMemPoolSetAttribute(result, cudaMemPoolAttrReleaseThreshold, &limit), "cudaMemPoolSetAttribute");
    limited.fetch_or(mine);
  }
  return result;
}

std::uint64_t pool_attribute(cudaMemPoolAttr attribute) {
  std::uint64_t value = 0;
  check(cudaMemPoolGetAttribute(pool(), attribute, &value), "cudaMemPoolGetAttribute");
  return value;
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

std::vector<Properties>& all_properties() {
  static std::vector<Properties> all = [] {
    std::vector<Properties> result;
    for (int device = 0; device < device_count(); ++device) {
      result.push_back({attribute(cudaDevAttrMultiProcessorCount, device),
                        attribute(cudaDevAttrComputeCapabilityMajor, device) * 10 +
                            attribute(cudaDevAttrComputeCapabilityMinor, device),
                        static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device))});
    }
    return result;
  }();
  return all;
}

}  // namespace

void check(cudaError_t error, std::string_view call, std::source_location where) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error that was reported does not come back
  if (error == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw std::runtime_error(place(where) + ": " + std::string(call) + ": " + cudaGetErrorName(error) + ": " +
                           cudaGetErrorString(error));
}

int device_count() {
  int count = 0;
  // Without a driver the count may be left as it was: only the code tells.
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

const Properties& properties(int device) { return all_properties().at(static_cast<std::size_t>(device)); }
const Properties& properties() { return properties(current_device()); }
#if defined(LEC7_CUDA_HOST)
void set_compute_capability(int capability) { all_properties().front().compute_capability = capability; }
#endif

Peaks peaks() {
  // Multiply-adds of a multiprocessor in a clock: CUDA C++ Programming Guide, "Arithmetic Instructions"; for tensor
  // cores (dense), NVIDIA's white papers on the architectures. GeForce cards of 7.5, 8.6, 8.9 and 12.0 have half of it.
  struct Rate {
    int compute_capability;
    double float32, tf32, half;
  };
  constexpr Rate kRates[] = {{75, 64, 0, 512},      {80, 64, 512, 1024},    {86, 128, 256, 512}, {89, 128, 256, 512},
                             {90, 128, 1024, 2048}, {100, 128, 2048, 4096}, {120, 128, 256, 512}};
  const int device = current_device();
  Rate rate = kRates[0];
  for (const Rate& known : kRates) {
    if (known.compute_capability <= properties().compute_capability) rate = known;
  }
  const double hertz = 1e3 * attribute(cudaDevAttrClockRate, device);
  const double flops = 2 * hertz * properties().multiprocessors;
  const double transfers = 2 * 1e3 * attribute(cudaDevAttrMemoryClockRate, device);  // two in a clock
  return {flops * rate.float32, flops * rate.tf32, flops * rate.half,
          transfers * attribute(cudaDevAttrGlobalMemoryBusWidth, device) / 8};
}

bool allow_tf32() { return tf32; }
void set_allow_tf32(bool allow) { tf32 = allow; }

Stream new_stream() {
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return Stream(stream, [](cudaStream_t last) { cudaStreamDestroy(last); });
}

cudaStream_t current_stream() { return stream_in_use.get(); }
const Stream& shared_current_stream() { return stream_in_use; }
void set_current_stream(Stream stream) { stream_in_use = std::move(stream); }

bool capturing() {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(current_stream(), &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

void refuse_recording(std::string_view op, std::string_view argument) {
  if (!capturing()) return;
  throw std::runtime_error(std::string(op) + ": a graph would repeat this " + std::string(argument) +
                           " at every replay; while it records, give an int64 array of shape () that changes "
                           "(lec7.cuda.Graph.each_replay)");
}

void synchronize() {
  if (capturing()) {
    throw std::runtime_error(
        "lec7.cuda: nothing can be waited for while a graph records; read results (numpy, item, float) after replay()");
  }
  const cudaError_t error = cudaStreamSynchronize(current_stream());
  if (error != cudaSuccess) {
    const std::string kernels = launched_last();
    launches = 0;
    check(error, "cudaStreamSynchronize, after " + kernels);
  }
  launches = 0;
  throw_bad_values();
}

void prepare_capture() {
  pool();
  throw_bad_values();
}

void begin_launch(const KernelName& name, const Grid& grid) {
  const dim3& g = grid.grid;
  if (g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) {
    throw std::runtime_error(place(name.where) + ": " + name.text + ": a grid of (" + std::to_string(g.x) + ", " +
                             std::to_string(g.y) + ", " + std::to_string(g.z) +
                             ") blocks; at most (2147483647, 65535, 65535) are possible");
  }
  launched[launches++ % kRemembered] = name.text;
}

void end_launch(const KernelName& name, cudaError_t error) { check(error, name.text, name.where); }

Grid strided_grid(Index n) {
  constexpr Index kBlocksEach = 8;  // 2048 threads fill a multiprocessor
  const Index most = kBlocksEach * properties().multiprocessors;
  return {static_cast<unsigned>(std::min(most, ceil_div(n, kThreads))), kThreads};
}

void* allocate(std::size_t bytes) {
  void* block = nullptr;
  pool();
  cudaError_t error = cudaMallocAsync(&block, bytes, current_stream());
  if (error == cudaErrorMemoryAllocation && !capturing()) {
    cudaGetLastError();
    synchronize();
    empty_cache();
    error = cudaMallocAsync(&block, bytes, current_stream());
  }
  check(error, "cudaMallocAsync");
  return block;
}

void release(void* block, cudaStream_t on, int device) noexcept {
  // Errors: the process ends, and the context is gone.
  int before = device;
  cudaGetDevice(&before);
  if (before != device) cudaSetDevice(device);  // the default stream is the current device's
  if (cudaFreeAsync(block, on) != cudaSuccess) cudaGetLastError();
  if (before != device) cudaSetDevice(before);
}

MemoryInfo memory_info() {
  MemoryInfo info{};
  info.in_use = pool_attribute(cudaMemPoolAttrUsedMemCurrent);
  info.peak = pool_attribute(cudaMemPoolAttrUsedMemHigh);
  info.cached = pool_attribute(cudaMemPoolAttrReservedMemCurrent) - info.in_use;
  info.limit = pool_attribute(cudaMemPoolAttrReleaseThreshold);
  check(cudaMemGetInfo(&info.free, &info.total), "cudaMemGetInfo");
  return info;
}

void reset_peak_memory() {
  std::uint64_t to_current = 0;
  check(cudaMemPoolSetAttribute(pool(), cudaMemPoolAttrUsedMemHigh, &to_current), "cudaMemPoolSetAttribute");
}

void set_memory_limit(std::size_t bytes) {
  std::uint64_t threshold = bytes;
  check(cudaMemPoolSetAttribute(pool(), cudaMemPoolAttrReleaseThreshold, &threshold), "cudaMemPoolSetAttribute");
}

void empty_cache() {
  check(cudaMemPoolTrimTo(pool(), 0), "cudaMemPoolTrimTo");
  check(cudaDeviceGraphMemTrim(current_device()), "cudaDeviceGraphMemTrim");  // graphs have a pool of their own
}

void copy_to_device(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  if (capturing()) {
    throw std::runtime_error("lec7.cuda: a graph does not record copies from the host; make the array before");
  }
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, current_stream()), "cudaMemcpyAsync");
  // Ordinary memory was read when the call returned; pinned memory is read later.
  cudaPointerAttributes memory;
  if (cudaPointerGetAttributes(&memory, from) != cudaSuccess) cudaGetLastError();
  else if (memory.type != cudaMemoryTypeUnregistered) check(cudaStreamSynchronize(current_stream()), "cudaMemcpyAsync");
}
void copy_to_host(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0 && !capturing()) {  // synchronize() refuses to be recorded
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, current_stream()), "cudaMemcpyAsync");
  }
  synchronize();
}
void copy_on_device(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0 || to == from) return;
  const auto *low = static_cast<const char*>(from), *at = static_cast<const char*>(to);
  if (low < at + bytes && at < low + bytes) {  // what cudaMemcpyAsync does not allow
    Buffer<char> between(static_cast<Index>(bytes));
    copy_on_device(between.data(), from, bytes);
    return copy_on_device(to, between.data(), bytes);
  }
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, current_stream()), "cudaMemcpyAsync");
}

}  // namespace lec7::cuda
