// The threads of a CUDA block on the host: one fiber each, on one core.
//
// A fiber runs until it waits (at a barrier, a shuffle, a vote) or returns; then the next one goes on. So what a kernel
// does between two barriers is done by one thread after the other, in an order that can be shuffled: a kernel that is
// right needs no barrier more than it has, for every order. Blocks are shared out among `workers` threads of the
// operating system; the blocks of a cooperative launch live at the same time, in one of them.
//
// What is wrong ends the process, with the line, the kernel, the block and the thread:
//   - the threads of a block meet at different barriers, or one returned before a barrier that others wait at;
//   - a warp operation whose lanes name different masks, a mask without the caller's lane, a lane that takes no part;
//   - a write between two shared arrays; more shared memory than a block has;
//   - a thread that returns while copies that it began (async_copy.h) are still under way; addresses not aligned.
// Shared memory is NaN (all bits 1) when a block begins. Under AddressSanitizer every access outside an array is found,
// and every access to the destination of a copy that was not waited for; ThreadSanitizer takes each fiber for a thread
// and finds two accesses that no barrier orders, within a block and between blocks of different workers.
//
//   stack.h              a fiber: its stack, and the switch
//   fibers.cpp           the schedule: which thread goes on; blocks and workers
//   barriers.cpp         barriers of block and grid, operations of a warp
//   shared_memory.cpp    a block's arrays, asynchronous copies into them
//   runtime.cpp          the CUDA runtime: a device, its memory, streams and graphs
//
// On one core of 2.6 GHz (bench_fibers; in brackets with shuffled threads): a barrier 17 ns a thread (35), a shuffle
// 17 ns a lane (43), mma_tf32 41 ns a lane (69), a thread that waits for nobody 9 ns (27), a launch 0.5 us and 60 us more
// for a second worker; 64 x 64 tiles of a 512^3 product 64 ms (82), 4 GFLOP/s.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

#if defined(__SANITIZE_THREAD__)
#define LEC7_NO_TSAN __attribute__((no_sanitize("thread")))
#else
#define LEC7_NO_TSAN
#endif

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace lec7::host {

using Where = std::source_location;

// How launches run. Shuffled: every switch goes to a random thread, and blocks come in another order.
struct Schedule {
  unsigned workers = 1;
  bool shuffle = false;
  std::uint64_t seed = 1;
};
Schedule& schedule();

struct Launch {
  const char* kernel;
  dim3 grid, block;
  std::size_t dynamic_shared = 0;
  bool cooperative = false;
};
// Calls `body` once for each thread of the grid; returns when all have returned.
void run(const Launch& launch, const std::function<void()>& body);

struct Block;
struct Thread {
  uint3 index;
  unsigned linear;
  Block* block;
};
extern thread_local constinit Thread* current __attribute__((tls_model("initial-exec")));

uint3 block_index();
dim3 block_size();
dim3 grid_size();

void sync_threads(Where where);
void sync_grid(Where where);
void sync_warp(unsigned mask, Where where);

constexpr unsigned kWarp = 32;
constexpr std::size_t kMostExchanged = 32;
inline unsigned lane() { return current->linear % kWarp; }

// What each lane of a mask gave, for any of them to read until its next exchange. `lanes` of the mask exist.
using Slot = unsigned char[kMostExchanged];
struct Exchange {
  unsigned lanes;
  const Slot* slots;

  template <class T>
  LEC7_NO_TSAN T get(unsigned from) const {
    T value;
    __builtin_memcpy(&value, slots[from], sizeof value);
    return value;
  }
};
Exchange exchange_slots(unsigned mask, const Slot& mine, std::size_t bytes, Where where);

// This lane gives `value` and waits for the other lanes. It orders no accesses to memory: that is for sync_warp.
template <class T>
Exchange exchange(unsigned mask, const T& value, Where where) {
  static_assert(sizeof(T) <= kMostExchanged);
  Slot mine;
  __builtin_memcpy(mine, &value, sizeof value);
  return exchange_slots(mask, mine, sizeof value, where);
}

// The block's array for this site (one address for each declaration), the same for all its threads.
void* shared_memory(const void* site, std::size_t bytes, std::size_t alignment);
void* dynamic_shared_memory();

// A copy from global to shared memory that is under way: of `bytes`, the first `valid`, then zeros.
void begin_copy(void* shared, const void* global, std::size_t bytes, std::size_t valid, Where where);
void commit_copies();
void wait_for_copies(unsigned groups_left);

// Ends the process and names the current thread.
[[noreturn]] void die(const char* rule, Where where);

}  // namespace lec7::host
