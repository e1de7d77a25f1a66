// Reads "threads registers shared" a line, prints the share of each chip's warps that such blocks can keep busy, by
// NVIDIA's own calculator. For resources.py.
#include <cuda_occupancy.h>

#include <cstdio>

struct Chip {
  int major, minor, max_threads;
  std::size_t shared;  // of a multiprocessor, in KiB
};

// CUDA programming guide, "Technical Specifications per Compute Capability".
constexpr Chip kChips[] = {{7, 5, 1024, 64}, {8, 0, 2048, 164}, {8, 9, 1536, 100}, {9, 0, 2048, 228}};

int main() {
  int threads, registers;
  std::size_t shared;
  while (std::scanf("%d %d %zu", &threads, &registers, &shared) == 3) {
    for (const Chip& chip : kChips) {
      cudaOccDeviceProp device;
      device.computeMajor = chip.major;
      device.computeMinor = chip.minor;
      device.maxThreadsPerBlock = 1024;
      device.maxThreadsPerMultiprocessor = chip.max_threads;
      device.regsPerBlock = device.regsPerMultiprocessor = 65536;
      device.warpSize = 32;
      device.sharedMemPerBlock = 48 << 10;
      device.sharedMemPerMultiprocessor = chip.shared << 10;
      device.numSms = 1;
      device.sharedMemPerBlockOptin = (chip.shared - (chip.major == 7 ? 0 : 1)) << 10;
      device.reservedSharedMemPerBlock = chip.major == 7 ? 0 : 1024;
      cudaOccFuncAttributes kernel;
      kernel.maxThreadsPerBlock = threads;
      kernel.numRegs = registers;
      kernel.sharedSizeBytes = shared;
      kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
      kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
      kernel.maxDynamicSharedSizeBytes = 0;
      kernel.numBlockBarriers = 1;
      const cudaOccDeviceState state;
      cudaOccResult result;
      if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0) != CUDA_OCC_SUCCESS) {
        return 1;
      }
      std::printf("%d ", 100 * result.activeBlocksPerMultiprocessor * threads / chip.max_threads);
    }
    std::printf("\n");
  }
}
