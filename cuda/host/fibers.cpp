#include "fibers.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#if !defined(__x86_64__)
#error "the host build of the CUDA kernels switches stacks in x86-64 assembly"
#endif

// Saves the callee's registers on this stack and goes on with those on the other.
extern "C" void lec7_switch_stack(void** save, void* to);
asm(R"(
.text
.globl lec7_switch_stack
.hidden lec7_switch_stack
.type lec7_switch_stack, @function
lec7_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size lec7_switch_stack, .-lec7_switch_stack
)");

namespace lec7::host {

thread_local constinit Thread* current = nullptr;

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::size_t kStackBytes = std::size_t{256} << 10;
#else
constexpr std::size_t kStackBytes = std::size_t{64} << 10;
#endif
constexpr unsigned kWarp = 32;
constexpr std::size_t kMostShared = std::size_t{227} << 10;  // a block of an H100
constexpr std::size_t kGap = 64;                             // between shared arrays
constexpr std::size_t kArena = kMostShared + 64 * kGap;

enum class State : std::uint8_t { fresh, ready, block_barrier, grid_barrier, warp, done };

struct Fiber {
  void* stack = nullptr;
  void* top = nullptr;  // of the saved registers, while it does not run
  void* tsan = nullptr;
};

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes, valid;
  unsigned group;
};

struct Warp {
  alignas(16) unsigned char slots[2][kWarp][kMostExchanged];
  unsigned turn, arrived, mask;
};

struct FiberThread : Thread {
  State state;
  Fiber* fiber;
  Where where;
  unsigned group;
  std::vector<Copy> copies;
};

struct Barrier {
  unsigned arrived, turn;
  Where where;
  char tokens[2];  // in turn: a thread that wakes late must not see what came after the next barrier
};

}  // namespace

struct Block {
  uint3 index;
  unsigned first, live;
  Barrier barrier;
  std::vector<Warp> warps;
  struct Array {
    const void* site;
    std::size_t offset;
  };
  std::vector<Array> arrays;
  std::unique_ptr<unsigned char, decltype(&std::free)> memory{nullptr, &std::free};
  std::size_t used, dynamic;
};

namespace {

#if defined(__SANITIZE_THREAD__)
void release(void* token) { __tsan_release(token); }
void acquire(void* token) { __tsan_acquire(token); }
constexpr bool kOneFiberEach = true;  // two threads on one fiber would never race
#else
void release(void*) {}
void acquire(void*) {}
constexpr bool kOneFiberEach = false;
#endif

// What one operating system thread runs: one block, or all blocks of a cooperative launch.
struct Worker {
  const Launch* launch = nullptr;
  const std::function<void()>* body = nullptr;
  std::vector<Block> blocks;
  std::vector<FiberThread> threads;
  std::vector<Fiber> fibers;
  std::vector<Fiber*> free;
  std::size_t at = 0, live = 0;
  Barrier grid_barrier{};
  Fiber main;
  char begin_token = 0, end_token = 0;
  std::mt19937_64 random;
  void* stacks = nullptr;
  std::size_t stack_count = 0;

  ~Worker() { free_stacks(); }
  void free_stacks() {
#if defined(__SANITIZE_THREAD__)
    for (const Fiber& fiber : fibers) {
      if (fiber.tsan != nullptr) __tsan_destroy_fiber(fiber.tsan);
    }
#endif
    if (stacks != nullptr) munmap(stacks, stack_count * kStackBytes);
    stacks = nullptr;
  }
};

thread_local constinit Worker* worker __attribute__((tls_model("initial-exec"))) = nullptr;

FiberThread& self() { return *static_cast<FiberThread*>(current); }

LEC7_NO_TSAN void switch_to(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan, 1);  // 1: switching orders nothing
#endif
  lec7_switch_stack(&from.top, to.top);
}

// The next thread that can run, or null.
LEC7_NO_TSAN FiberThread* next() {
  Worker& w = *worker;
  const std::size_t n = w.threads.size();
  if (schedule().shuffle) w.at = w.random() % n;
  for (std::size_t i = 0; i < n; ++i) {
    if (++w.at >= n) w.at = 0;
    const State state = w.threads[w.at].state;
    if (state == State::ready || state == State::fresh) return &w.threads[w.at];
  }
  return nullptr;
}

[[noreturn]] void die_waiting() {
  for (FiberThread& thread : worker->threads) {
    if (thread.state == State::done) continue;
    current = &thread;
    die(thread.state == State::warp ? "waits in a warp operation for lanes of its mask that never come"
                                    : "waits at a barrier that other threads never reach",
        thread.where);
  }
  std::abort();
}

void fiber_main();

LEC7_NO_TSAN void prepare(Fiber& fiber) {
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack, kStackBytes);
  void** top = reinterpret_cast<void**>(static_cast<char*>(fiber.stack) + kStackBytes);
  *--top = nullptr;  // fiber_main's return address, and the alignment that a call leaves
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int callee_saved = 0; callee_saved < 6; ++callee_saved) *--top = nullptr;
  fiber.top = top;
#if defined(__SANITIZE_THREAD__)
  if (fiber.tsan == nullptr) fiber.tsan = __tsan_create_fiber(0);
#endif
}

LEC7_NO_TSAN Fiber& fiber_for(FiberThread& thread) {
  Worker& w = *worker;
  if (thread.fiber == nullptr) {
    if (kOneFiberEach) {
      thread.fiber = &w.fibers[static_cast<std::size_t>(&thread - w.threads.data())];
    } else {
      thread.fiber = w.free.back();
      w.free.pop_back();
    }
    prepare(*thread.fiber);
  }
  return *thread.fiber;
}

// This thread waits: another one goes on, until this one is ready again.
LEC7_NO_TSAN void wait() {
  FiberThread& me = self();
  FiberThread* const other = next();
  if (other == nullptr) die_waiting();
  if (other == &me) return;
  Fiber& to = fiber_for(*other);
  current = other;
  switch_to(*me.fiber, to);
}

// Threads one after the other, as long as none waits; what waits comes back to its own fiber.
LEC7_NO_TSAN void fiber_main() {
  Worker& w = *worker;
  for (;;) {
    FiberThread& me = self();
    me.state = State::ready;
    acquire(&w.begin_token);
    (*w.body)();
    if (!me.copies.empty()) die("returned before it waited for its copies to shared memory", me.where);
    release(&w.end_token);
    me.state = State::done;
    --me.block->live;
    Fiber& mine = *me.fiber;
    if (--w.live == 0) switch_to(mine, w.main);
    FiberThread* const other = next();
    if (other == nullptr) die_waiting();
    current = other;
    if (!kOneFiberEach && other->state == State::fresh) {
      other->fiber = &mine;
      continue;
    }
    w.free.push_back(&mine);
    switch_to(mine, fiber_for(*other));
  }
}

// Everybody comes, then everybody goes on.
template <class Waiting>
LEC7_NO_TSAN void meet(Barrier& barrier, unsigned expected, State waiting, Where where, Waiting&& each_waiting) {
  FiberThread& me = self();
  char* const token = &barrier.tokens[barrier.turn & 1];
  release(token);
  if (barrier.arrived == 0) barrier.where = where;
  me.where = where;
  if (barrier.where.line() != where.line() || std::strcmp(barrier.where.file_name(), where.file_name()) != 0) {
    die("meets another barrier than the other threads of its block", where);
  }
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.turn;
    each_waiting([](FiberThread& thread) { thread.state = State::ready; });
    if (schedule().shuffle) wait();
  } else {
    me.state = waiting;
    wait();
  }
  acquire(token);
}

unsigned volume(const dim3& size) { return size.x * size.y * size.z; }

void start_block(Block& block, unsigned first, std::uint64_t linear) {
  Worker& w = *worker;
  const dim3 grid = w.launch->grid, size = w.launch->block;
  const unsigned n = volume(size);
  block.index = {static_cast<unsigned>(linear % grid.x), static_cast<unsigned>(linear / grid.x % grid.y),
                 static_cast<unsigned>(linear / (std::uint64_t{grid.x} * grid.y))};
  block.first = first;
  block.live = n;
  block.barrier = {};
  block.warps.resize((n + kWarp - 1) / kWarp);
  for (Warp& warp : block.warps) warp.turn = warp.arrived = 0;
  if (!block.memory) {
    block.memory.reset(static_cast<unsigned char*>(std::aligned_alloc(128, kArena)));
    if (!block.memory) throw std::bad_alloc();
    block.used = kArena;
  }
  ASAN_UNPOISON_MEMORY_REGION(block.memory.get(), kArena);
  std::memset(block.memory.get(), 0xff, block.used);
  ASAN_POISON_MEMORY_REGION(block.memory.get(), kArena);
  block.arrays.clear();
  block.used = 0;
  block.dynamic = 0;
  for (unsigned i = 0; i < n; ++i) {
    FiberThread& thread = w.threads[first + i];
    thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    thread.linear = i;
    thread.block = &block;
    thread.state = State::fresh;
    thread.fiber = nullptr;
    thread.group = 0;
  }
}

std::size_t reserve(Block& block, std::size_t bytes, std::size_t alignment) {
  const std::size_t offset = (block.used + kGap + alignment - 1) / alignment * alignment;
  if (offset + bytes + kGap > kArena) die("needs more shared memory than a block can have", Where::current());
  block.used = offset + bytes;
  ASAN_UNPOISON_MEMORY_REGION(block.memory.get() + offset, bytes);
  return offset;
}

void run_blocks(std::uint64_t first, unsigned count) {
  Worker& w = *worker;
  const unsigned n = volume(w.launch->block);
  w.blocks.resize(count);
  w.threads.resize(std::size_t{n} * count);
  if (w.stack_count < w.threads.size()) {
    w.free_stacks();
    w.stack_count = w.threads.size();
    w.stacks = mmap(nullptr, w.stack_count * kStackBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (w.stacks == MAP_FAILED) throw std::bad_alloc();
    w.fibers.assign(w.stack_count, Fiber{});
    for (std::size_t i = 0; i < w.stack_count; ++i) {
      w.fibers[i].stack = static_cast<char*>(w.stacks) + i * kStackBytes;
    }
  }
  w.free.clear();
  for (std::size_t i = w.fibers.size(); i > 0; --i) w.free.push_back(&w.fibers[i - 1]);
  for (unsigned b = 0; b < count; ++b) start_block(w.blocks[b], b * n, first + b);
  for (Block& block : w.blocks) {
    if (w.launch->dynamic_shared > 0) block.dynamic = reserve(block, w.launch->dynamic_shared, 128);
  }
  w.grid_barrier = {};
  w.live = w.threads.size();
  w.at = w.threads.size() - 1;
  release(&w.begin_token);
  current = next();
  switch_to(w.main, fiber_for(self()));
  current = nullptr;
  acquire(&w.end_token);
}

}  // namespace

Schedule& schedule() {
  static Schedule the_schedule;
  return the_schedule;
}

void run(const Launch& launch, const std::function<void()>& body) {
  const std::uint64_t blocks = std::uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  std::atomic<std::uint64_t> done{0};
  const auto work = [&](unsigned id) {
    thread_local std::unique_ptr<Worker> kept;  // with its stacks; on the heap, since a module's static TLS is small
    if (!kept) kept = std::make_unique<Worker>();
    Worker& mine = *kept;
    worker = &mine;
    mine.launch = &launch;
    mine.body = &body;
    mine.random.seed(schedule().seed * 977 + id);
#if defined(__SANITIZE_THREAD__)
    mine.main.tsan = __tsan_get_current_fiber();
#endif
    if (launch.cooperative) run_blocks(0, static_cast<unsigned>(blocks));
    else {
      for (std::uint64_t i; (i = done.fetch_add(1, std::memory_order_relaxed)) < blocks;) run_blocks(i, 1);
    }
    worker = nullptr;
  };
  std::vector<std::thread> others;
  for (unsigned id = 1; !launch.cooperative && id < schedule().workers && id < blocks; ++id) {
    others.emplace_back(work, id);
  }
  work(0);
  for (std::thread& other : others) other.join();
}

uint3 block_index() { return current->block->index; }
dim3 block_size() { return worker->launch->block; }
dim3 grid_size() { return worker->launch->grid; }

LEC7_NO_TSAN void sync_threads(Where where) {
  Block& block = *current->block;
  const unsigned n = volume(worker->launch->block);
  if (block.live != n) die("waits at a barrier after a thread of its block returned", where);
  meet(block.barrier, n, State::block_barrier, where, [&](auto&& wake) {
    for (unsigned i = 0; i < n; ++i) {
      FiberThread& thread = worker->threads[block.first + i];
      if (thread.state == State::block_barrier) wake(thread);
    }
  });
}

LEC7_NO_TSAN void sync_grid(Where where) {
  Worker& w = *worker;
  if (!w.launch->cooperative) die("waits for the grid in a launch that is not cooperative", where);
  if (w.live != w.threads.size()) die("waits for the grid after a thread of it returned", where);
  meet(w.grid_barrier, static_cast<unsigned>(w.threads.size()), State::grid_barrier, where, [&](auto&& wake) {
    for (FiberThread& thread : w.threads) {
      if (thread.state == State::grid_barrier) wake(thread);
    }
  });
}

LEC7_NO_TSAN void sync_warp(unsigned mask, Where where) { exchange(mask, nullptr, 0, where); }

LEC7_NO_TSAN Exchange exchange(unsigned mask, const void* value, std::size_t bytes, Where where) {
  FiberThread& me = self();
  Block& block = *me.block;
  const unsigned lane = me.linear % kWarp, base = me.linear - lane;
  Warp& warp = block.warps[me.linear / kWarp];
  const unsigned n = volume(worker->launch->block), turn = warp.turn & 1;
  if ((mask >> lane & 1) == 0) die("calls a warp operation with a mask without its own lane", where);
  if (warp.arrived == 0) warp.mask = mask;
  if (warp.mask != mask) die("calls a warp operation with another mask than the lanes that wait in one", where);
  const unsigned present = n - base >= kWarp ? ~0u : (1u << (n - base)) - 1;
  if (bytes > 0) std::memcpy(warp.slots[turn][lane], value, bytes);
  me.where = where;
  char* const token = reinterpret_cast<char*>(&warp.slots[turn]);
  release(token);
  warp.arrived |= 1u << lane;
  if (warp.arrived == (mask & present)) {
    warp.arrived = 0;
    ++warp.turn;
    for (unsigned l = 0; l < kWarp && base + l < n; ++l) {
      FiberThread& thread = worker->threads[block.first + base + l];
      if ((mask >> l & 1) != 0 && thread.state == State::warp) thread.state = State::ready;
    }
  } else {
    me.state = State::warp;
    wait();
  }
  acquire(token);
  return {warp.slots[turn]};
}

LEC7_NO_TSAN void* shared_memory(const void* site, std::size_t bytes, std::size_t alignment) {
  Block& block = *current->block;
  for (const Block::Array& array : block.arrays) {
    if (array.site == site) return block.memory.get() + array.offset;
  }
  block.arrays.push_back({site, reserve(block, bytes, alignment)});
  return block.memory.get() + block.arrays.back().offset;
}

LEC7_NO_TSAN void* dynamic_shared_memory() { return current->block->memory.get() + current->block->dynamic; }

void die(const char* rule, Where where) {
  const FiberThread& me = self();
  const uint3 b = me.block->index, t = me.index;
  std::fprintf(stderr, "%s:%u: %s: block (%u, %u, %u), thread (%u, %u, %u) %s\n", where.file_name(), where.line(),
               worker->launch->kernel, b.x, b.y, b.z, t.x, t.y, t.z, rule);
  std::abort();
}

LEC7_NO_TSAN void begin_copy(void* shared, const void* global, std::size_t bytes, std::size_t valid, Where where) {
  FiberThread& me = self();
  me.where = where;
  const auto misaligned = [&](const void* address) { return reinterpret_cast<std::uintptr_t>(address) % bytes != 0; };
  if (misaligned(shared) || misaligned(global))
    die("copies asynchronously between addresses that are not aligned", where);
  std::memset(shared, 0xff, bytes);
  ASAN_POISON_MEMORY_REGION(shared, bytes);
  me.copies.push_back({shared, global, bytes, valid, me.group});
}

LEC7_NO_TSAN void commit_copies() { ++self().group; }

LEC7_NO_TSAN void wait_for_copies(unsigned groups_left) {
  FiberThread& me = self();
  std::size_t kept = 0;
  for (const Copy& copy : me.copies) {
    if (copy.group + groups_left < me.group) {
      ASAN_UNPOISON_MEMORY_REGION(copy.to, copy.bytes);
      std::memcpy(copy.to, copy.from, copy.valid);
      std::memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
    } else {
      me.copies[kept++] = copy;
    }
  }
  me.copies.resize(kept);
}

}  // namespace lec7::host
