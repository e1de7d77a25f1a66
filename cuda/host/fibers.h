// The threads of a CUDA block on the host: one fiber each, on one core.
//
// A fiber runs until it waits (at a barrier, a shuffle, a vote) or returns; then the next one goes on. So what a kernel
// does between two barriers is done by one thread after the other, in an order that can be shuffled: a kernel that is
// right for every order of them needs no barrier more than it has. Blocks are shared out among `workers` operating
// system threads; the blocks of a cooperative launch live at the same time, in one of them.
//
// What is wrong ends the process, with the kernel, the block, the thread and the line:
//   - the threads of a block meet at different barriers, or one returned before a barrier that others wait at;
//   - a warp operation whose lanes name different masks, or a mask without the caller's lane;
//   - a thread that returns while copies that it began (async_copy.h) are still under way.
// Shared memory is filled with 0xff (NaN, -1) before each block and has gaps around each array that AddressSanitizer
// refuses; ThreadSanitizer sees each fiber as a thread, with barriers that order what they order on a GPU.
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

// How launches run. Shuffled fibers take a random next one at every switch.
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

constexpr std::size_t kMostExchanged = 32;
// Each lane of the mask gives `bytes` and reads what any of them gave, until its next exchange.
struct Exchange {
  const unsigned char (*slots)[kMostExchanged];
  template <class T>
  LEC7_NO_TSAN T get(unsigned lane) const {
    static_assert(sizeof(T) <= kMostExchanged);
    T value;
    __builtin_memcpy(&value, slots[lane], sizeof value);
    return value;
  }
};
Exchange exchange(unsigned mask, const void* value, std::size_t bytes, Where where);

// The block's array for this site (one address for each declaration), the same for all its threads.
void* shared_memory(const void* site, std::size_t bytes, std::size_t alignment);
void* dynamic_shared_memory();

// Ends the process; `current` is named.
[[noreturn]] void die(const char* rule, Where where);

// A copy from global to shared memory that is under way: of `bytes`, the first `valid`, then zeros. Its destination is
// poisoned until it is waited for.
void begin_copy(void* shared, const void* global, std::size_t bytes, std::size_t valid, Where where);
void commit_copies();
void wait_for_copies(unsigned groups_left);

}  // namespace lec7::host
