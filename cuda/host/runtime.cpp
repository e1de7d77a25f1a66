// A device with four multiprocessors and a gigabyte of memory, out of the host's. Work on a stream is done at once, or
// recorded while the stream is captured.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "sanitizers.h"

using Work = std::vector<std::function<void()>>;

struct CUgraph_st {
  Work work;
};
struct CUgraphExec_st {
  Work work;
};
struct CUevent_st {
  std::chrono::steady_clock::time_point time;
};
struct CUstream_st {
  std::unique_ptr<CUgraph_st> recording;
};

namespace lec7::host {
namespace {

constexpr std::size_t kMemory = std::size_t{1} << 30;
constexpr int kMultiprocessors = 4;
constexpr int kClock = 1'000'000, kMemoryClock = 1'000'000, kBusWidth = 128;  // kHz, kHz, bits
constexpr std::size_t kMostShared = std::size_t{227} << 10;
constexpr std::size_t kAligned = 256;
constexpr int kUnwritten = 0xff;

std::mutex mutex;
std::size_t used = 0, most_used = 0;

// Memory of the device: NaN where nothing was written, and with a margin behind it that nobody writes to.
class Memory {
 public:
  explicit Memory(std::size_t bytes)
      : bytes_(bytes),
        whole_((bytes + kAligned - 1) / kAligned * kAligned + kAligned),
        data_(static_cast<unsigned char*>(std::aligned_alloc(kAligned, whole_))) {
    if (data_ == nullptr) return;
    std::memset(data_, kUnwritten, whole_);
    poison(data_ + bytes_, whole_ - bytes_);
    const std::lock_guard lock(mutex);
    used += bytes_;
    most_used = std::max(most_used, used);
  }
  ~Memory() {
    if (data_ == nullptr) return;
    unpoison(data_ + bytes_, whole_ - bytes_);
    if (std::any_of(data_ + bytes_, data_ + whole_, [](unsigned char byte) { return byte != kUnwritten; })) {
      std::fprintf(stderr, "a kernel wrote beyond the end of %zu bytes of the device's memory\n", bytes_);
      std::abort();
    }
    std::free(data_);
    const std::lock_guard lock(mutex);
    used -= bytes_;
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* data() const { return data_; }
  void clear() const { std::memset(data_, kUnwritten, bytes_); }

 private:
  std::size_t bytes_, whole_;
  unsigned char* data_;
};

// What was allocated and not freed; never destroyed, since arrays may be freed while the process ends.
auto& allocated = *new std::unordered_map<void*, std::shared_ptr<Memory>>;

bool free_now(void* data) {
  std::shared_ptr<Memory> memory;
  {
    const std::lock_guard lock(mutex);
    const auto found = allocated.find(data);
    if (found == allocated.end()) return false;
    memory = std::move(found->second);
    allocated.erase(found);
  }
  if (memory.use_count() > 1) memory->clear();  // a graph's
  return true;
}

bool recorded(cudaStream_t stream) { return stream != nullptr && stream->recording != nullptr; }

}  // namespace

void submit(cudaStream_t stream, std::function<void()> work) {
  if (recorded(stream)) stream->recording->work.push_back(std::move(work));
  else work();
}

cudaError_t check_launch(const Launch& launch) {
  const dim3 &g = launch.grid, &b = launch.block;
  const std::uint64_t threads = std::uint64_t{b.x} * b.y * b.z, grid = std::uint64_t{g.x} * g.y * g.z;
  if (threads == 0 || threads > 1024 || b.z > 64) return cudaErrorInvalidConfiguration;
  if (grid == 0 || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) return cudaErrorInvalidConfiguration;
  if (launch.dynamic_shared > kMostShared) return cudaErrorInvalidValue;
  if (launch.cooperative && grid > kMultiprocessors) return cudaErrorCooperativeLaunchTooLarge;
  return cudaSuccess;
}

}  // namespace lec7::host

using namespace lec7::host;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorCooperativeLaunchTooLarge: return "cudaErrorCooperativeLaunchTooLarge";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorCooperativeLaunchTooLarge: return "too many blocks in cooperative launch";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = kMultiprocessors; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 8; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrClockRate: *value = kClock; break;
    case cudaDevAttrMemoryClockRate: *value = kMemoryClock; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = kBusWidth; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(kMostShared); break;
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  *properties = {"the host in a GPU's place"};
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  const std::lock_guard lock(mutex);
  *free = kMemory - used;
  *total = kMemory;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = new CUstream_st, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return recorded(stream) ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = new CUevent_st, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  return event->time = std::chrono::steady_clock::now(), cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop) {
  *milliseconds = std::chrono::duration<float, std::milli>(stop->time - start->time).count();
  return cudaSuccess;
}

// Memory that is allocated while a graph is recorded has its place from then on, and is there from a replay, which
// clears it, until it is freed by a replay or otherwise; the graph's end does not free it.
cudaError_t cudaMallocAsync(void** data, std::size_t bytes, cudaStream_t stream) {
  {
    const std::lock_guard lock(mutex);
    if (bytes > kMemory - used) return cudaErrorMemoryAllocation;
  }
  const auto memory = std::make_shared<Memory>(bytes);
  if (memory->data() == nullptr) return cudaErrorMemoryAllocation;
  *data = memory->data();
  submit(stream, [memory, again = recorded(stream)] {
    if (again) memory->clear();
    const std::lock_guard lock(mutex);
    allocated[memory->data()] = memory;
  });
  return cudaSuccess;
}

cudaError_t cudaFreeAsync(void* data, cudaStream_t stream) {
  if (recorded(stream)) {
    submit(stream, [data] { free_now(data); });
    return cudaSuccess;
  }
  return free_now(data) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  *memory = std::malloc(bytes);
  return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) { return std::free(memory), cudaSuccess; }

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  submit(stream, [=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  submit(stream, [=] { std::memset(to, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr) return cudaErrorStreamCaptureUnsupported;
  if (recorded(stream)) return cudaErrorInvalidValue;
  stream->recording = std::make_unique<CUgraph_st>();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!recorded(stream)) return cudaErrorInvalidValue;
  *graph = stream->recording.release();
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = recorded(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const auto& work : executable->work) submit(stream, work);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return delete executable, cudaSuccess; }

// Nothing that was freed is kept here: a later use of it is found.
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  *pool = nullptr;
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void*) {
  const std::lock_guard lock(mutex);
  if (attribute == cudaMemPoolAttrUsedMemHigh) most_used = used;
  return cudaSuccess;
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void* value) {
  const std::lock_guard lock(mutex);
  auto& bytes = *static_cast<std::uint64_t*>(value);
  switch (attribute) {
    case cudaMemPoolAttrReleaseThreshold: bytes = 0; break;
    case cudaMemPoolAttrUsedMemHigh: bytes = most_used; break;
    default: bytes = used;
  }
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, std::size_t) { return cudaSuccess; }
cudaError_t cudaDeviceGraphMemTrim(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
