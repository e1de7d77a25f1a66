// A device with four multiprocessors and a gigabyte of memory, out of the host's.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <vector>

using Work = std::vector<std::function<void()>>;

struct CUgraph_st {
  Work work;
};
struct CUgraphExec_st {
  Work work;
};
struct CUstream_st {
  CUgraph_st* recording = nullptr;
};

namespace lec7::host {
namespace {

constexpr std::size_t kMemory = std::size_t{1} << 30;
constexpr int kMultiprocessors = 4;

std::mutex mutex;
std::unordered_map<void*, std::size_t> blocks;
std::size_t used = 0;

}  // namespace

void submit(cudaStream_t stream, std::function<void()> work) {
  if (stream != nullptr && stream->recording != nullptr) stream->recording->work.push_back(std::move(work));
  else work();
}

cudaError_t check_launch(const Launch& launch) {
  const dim3 &g = launch.grid, &b = launch.block;
  const std::uint64_t threads = std::uint64_t{b.x} * b.y * b.z, grid = std::uint64_t{g.x} * g.y * g.z;
  if (threads == 0 || threads > 1024 || b.z > 64) return cudaErrorInvalidConfiguration;
  if (grid == 0 || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) return cudaErrorInvalidConfiguration;
  if (launch.dynamic_shared > std::size_t{227} << 10) return cudaErrorInvalidValue;
  if (launch.cooperative && grid > kMultiprocessors) return cudaErrorInvalidConfiguration;
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
    default: return "cudaErrorInvalidDevice";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return "invalid device ordinal";
  }
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
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
  }
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
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaMallocAsync(void** memory, std::size_t bytes, cudaStream_t) {
  const std::lock_guard lock(mutex);
  if (bytes > kMemory - used) return cudaErrorMemoryAllocation;
  *memory = std::aligned_alloc(256, std::max<std::size_t>(256, (bytes + 255) / 256 * 256));
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xff, bytes);
  blocks[*memory] = bytes;
  used += bytes;
  return cudaSuccess;
}

// While a graph is recorded its memory must outlive the recording: it is freed with what `submit` keeps.
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
  if (stream != nullptr && stream->recording != nullptr) return cudaSuccess;
  const std::lock_guard lock(mutex);
  const auto block = blocks.find(memory);
  if (block == blocks.end()) return cudaErrorInvalidValue;
  used -= block->second;
  std::memset(memory, 0xff, block->second);
  blocks.erase(block);
  std::free(memory);
  return cudaSuccess;
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
  if (stream == nullptr || stream->recording != nullptr) return cudaErrorInvalidValue;
  stream->recording = new CUgraph_st;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream == nullptr || stream->recording == nullptr) return cudaErrorInvalidValue;
  *graph = stream->recording;
  stream->recording = nullptr;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status =
      stream != nullptr && stream->recording != nullptr ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
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
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void* value) {
  const std::lock_guard lock(mutex);
  *static_cast<std::uint64_t*>(value) = attribute == cudaMemPoolAttrReleaseThreshold ? 0 : used;
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, std::size_t) { return cudaSuccess; }
