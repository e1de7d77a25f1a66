// What runs: threads, their blocks, and the operating system's thread that they run on.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "fibers.h"
#include "stack.h"

namespace lec7::host {

enum class State : std::uint8_t { fresh, ready, block_barrier, grid_barrier, warp, done };

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes, valid;
  unsigned group;
  Where where;
};

struct Meeting;

struct FiberThread : Thread {
  State state;
  Fiber* fiber;                // null until it begins
  Where where;                 // of what it waits for
  Meeting* meeting = nullptr;  // whose values it may still read
  unsigned group = 0;          // of copies: the one that is open
  std::vector<Copy> copies;
};

// Everybody comes, then everybody goes on.
struct Barrier {
  unsigned arrived = 0, turn = 0;
  Where where;
  char tokens[2];  // in turn: who wakes up late must not see what came after the next barrier
};

// One operation of a warp: its lanes come, leave a value each, and when all are there each may read.
struct Meeting {
  alignas(16) Slot slots[kWarp];
  unsigned mask, expected, arrived;  // lanes
  unsigned reading = 0;              // lanes that came and have not gone to their next meeting; 0: it is free
  std::size_t bytes;
  Where where;
  bool open() const { return reading != 0 && arrived != expected; }
};
using Warp = std::deque<Meeting>;

struct SharedArray {
  const void* site;
  std::size_t offset, bytes;
};

struct Block {
  uint3 index;
  std::size_t first;  // of its threads, in the worker's
  unsigned live;      // threads that have not returned
  Barrier barrier;
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char, decltype(&std::free)> memory{nullptr, &std::free};
  std::size_t used = 0;
  std::vector<SharedArray> arrays;  // the first is the dynamic one
};

// A thread of the operating system that runs one block after the other, or all blocks of a cooperative launch. Its
// fibers and its blocks' memory stay for the next launch.
struct Worker {
  const Launch* launch;
  const std::function<void()>* body;
  std::deque<Block> blocks;
  std::vector<FiberThread> threads;
  std::size_t at, live;
  Barrier grid_barrier;
  Fiber main;
  std::deque<Fiber> fibers;
  std::vector<Fiber*> idle;
  char begin, end;  // tokens
  std::minstd_rand random;
};
extern thread_local constinit Worker* worker __attribute__((tls_model("initial-exec")));

inline FiberThread& self() { return *static_cast<FiberThread*>(current); }
inline unsigned volume(const dim3& size) { return size.x * size.y * size.z; }

// This thread waits: another one goes on, until this one is ready again.
void wait();

// A barrier, or a wait, that is left out to see whether a test misses it: LEC7_LEAVE_OUT=gemm.cu:91
// (tests/cuda/leave_out.py).
bool left_out(const Where& where);

// Shared memory of a block that begins, and of one that ends.
void begin_shared_memory(Block& block, std::size_t dynamic);
void end_shared_memory(const Block& block);

}  // namespace lec7::host
