#include "fibers.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <thread>
#include <utility>

#include "block.h"
#include "sanitizers.h"

namespace lec7::host {

thread_local constinit Thread* current = nullptr;
thread_local constinit Worker* worker = nullptr;

namespace {

// ---- which thread goes on ----

// The next thread that can run, or null.
FiberThread* next() {
  Worker& w = *worker;
  const std::size_t n = w.threads.size();
  if (schedule().shuffle) w.at = w.random() % n;
  for (std::size_t i = 0; i < n; ++i) {
    if (++w.at >= n) w.at = 0;
    const State state = w.threads[w.at].state;
    if (state == State::fresh || state == State::ready) return &w.threads[w.at];
  }
  return nullptr;
}

FiberThread& next_or_die() {
  if (FiberThread* const thread = next()) return *thread;
  for (FiberThread& thread : worker->threads) {
    if (thread.state == State::done) continue;
    current = &thread;
    die(thread.state == State::warp ? "waits in a warp operation for lanes of its mask that never come"
                                    : "waits at a barrier that other threads never reach",
        thread.where);
  }
  std::abort();
}

void run_fiber();

// The fiber of a thread that begins or goes on.
Fiber& fiber_of(FiberThread& thread) {
  Worker& w = *worker;
  if (thread.fiber == nullptr) {
    if (kFindsRaces) {
      thread.fiber = &w.fibers[static_cast<std::size_t>(&thread - w.threads.data())];
    } else {
      thread.fiber = w.idle.back();
      w.idle.pop_back();
      if (!thread.fiber->created()) thread.fiber->create(&run_fiber);
    }
  }
  return *thread.fiber;
}

void run_thread() {
  FiberThread& me = self();
  Worker& w = *worker;
  me.state = State::ready;
  after(&w.begin);
  (*w.body)();
  before(&w.end);
  if (!me.copies.empty()) die("returned before it waited for its copies to shared memory", me.copies.front().where);
  if (me.meeting != nullptr) me.meeting->reading &= ~(1u << lane());
  me.state = State::done;
  --me.block->live;
  --w.live;
}

// Runs the current thread, and the fresh ones after it as long as none waits: a thread that waits keeps its fiber. But
// two threads on one fiber would never race in ThreadSanitizer's eyes, so for it each has its own. Comes back when
// there is another thread for this fiber, perhaps of another launch and on another thread of the operating system:
// not inlined, since the compiler may keep the address of a thread_local.
__attribute__((noinline)) void run_threads() {
  for (;;) {
    run_thread();
    Worker& w = *worker;
    Fiber& mine = *self().fiber;
    FiberThread* const thread = w.live == 0 ? nullptr : &next_or_die();
    if (thread != nullptr) current = thread;
    if (thread != nullptr && thread->fiber == nullptr && !kFindsRaces) {
      thread->fiber = &mine;
      continue;
    }
    if (!kFindsRaces) w.idle.push_back(&mine);
    mine.switch_to(thread == nullptr ? w.main : fiber_of(*thread));
    return;
  }
}

void run_fiber() {
  self().fiber->arrived();
  for (;;) run_threads();
}

// ---- blocks ----

void begin_block(Block& block, std::size_t first, std::uint64_t linear) {
  Worker& w = *worker;
  const dim3 grid = w.launch->grid, size = w.launch->block;
  const unsigned n = volume(size);
  block.index = {static_cast<unsigned>(linear % grid.x), static_cast<unsigned>(linear / grid.x % grid.y),
                 static_cast<unsigned>(linear / (std::uint64_t{grid.x} * grid.y))};
  block.first = first;
  block.live = n;
  block.barrier = {};
  block.warps.resize((n + kWarp - 1) / kWarp);
  begin_shared_memory(block, w.launch->dynamic_shared);
  for (unsigned i = 0; i < n; ++i) {
    FiberThread& thread = w.threads[first + i];
    thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    thread.linear = i;
    thread.block = &block;
    thread.state = State::fresh;
    thread.fiber = nullptr;
    thread.meeting = nullptr;
    thread.group = 0;
  }
}

// Runs `count` blocks at the same time.
void run_blocks(std::uint64_t first, unsigned count) {
  Worker& w = *worker;
  const unsigned n = volume(w.launch->block);
  w.blocks.resize(count);
  w.threads.resize(std::size_t{n} * count);
  while (w.fibers.size() < w.threads.size()) {
    w.idle.push_back(&w.fibers.emplace_back());
    if (kFindsRaces) w.fibers.back().create(&run_fiber);  // which orders what its creator did before
  }
  for (unsigned b = 0; b < count; ++b) begin_block(w.blocks[b], std::size_t{n} * b, first + b);
  w.grid_barrier = {};
  w.live = w.threads.size();
  w.at = w.live - 1;

  before(&w.begin);
  FiberThread& thread = next_or_die();
  current = &thread;
  w.main.switch_to(fiber_of(thread));
  current = nullptr;
  after(&w.end);
  for (const Block& block : w.blocks) end_shared_memory(block);
}

// ---- workers ----

// Workers that no launch uses now. They are never destroyed, nor are their fibers.
class Pool {
 public:
  Worker* take() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) return new Worker;
    Worker* const result = idle_.back();
    idle_.pop_back();
    return result;
  }
  void give(Worker* w) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(w);
  }

 private:
  std::mutex mutex_;
  std::vector<Worker*> idle_;
};

Pool& pool() {
  static Pool& the_pool = *new Pool;
  return the_pool;
}

}  // namespace

void wait() {
  FiberThread& me = self();
  FiberThread& other = next_or_die();
  if (&other == &me) return;
  Fiber& to = fiber_of(other);
  current = &other;
  me.fiber->switch_to(to);
}

Schedule& schedule() {
  static Schedule the_schedule;
  return the_schedule;
}

void run(const Launch& launch, const std::function<void()>& body) {
  const Schedule& how = schedule();
  const std::uint64_t blocks = std::uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const auto workers = launch.cooperative ? 1u : static_cast<unsigned>(std::min<std::uint64_t>(how.workers, blocks));
  std::atomic<std::uint64_t> taken{0};

  const auto work = [&](unsigned id) {
    worker = pool().take();
    worker->launch = &launch;
    worker->body = &body;
    worker->random.seed(static_cast<unsigned>(how.seed * 977 + id));
    worker->main.adopt();
    if (launch.cooperative) {
      run_blocks(0, static_cast<unsigned>(blocks));
    } else {
      // Whoever is free takes the next block; but for ThreadSanitizer neighbors never go to the same worker.
      auto take = [&, mine = std::uint64_t{id}]() mutable {
        return kFindsRaces ? std::exchange(mine, mine + workers) : taken.fetch_add(1, std::memory_order_relaxed);
      };
      constexpr std::uint64_t kPrime = 2654435761;  // i -> (kPrime i + seed) mod blocks is another order of them
      for (std::uint64_t i; (i = take()) < blocks;) {
        run_blocks(how.shuffle && blocks < kPrime ? (i * kPrime + how.seed % blocks) % blocks : i, 1);
      }
    }
    pool().give(std::exchange(worker, nullptr));
  };

  std::vector<std::thread> others;
  for (unsigned id = 1; id < workers; ++id) others.emplace_back(work, id);
  work(0);
  for (std::thread& other : others) other.join();
}

uint3 block_index() { return current->block->index; }
dim3 block_size() { return worker->launch->block; }
dim3 grid_size() { return worker->launch->grid; }

void die(const char* rule, Where where) {
  const uint3 b = current->block->index, t = current->index;
  std::fprintf(stderr, "%s:%u: %s: block (%u, %u, %u), thread (%u, %u, %u) %s\n", where.file_name(), where.line(),
               worker->launch->kernel, b.x, b.y, b.z, t.x, t.y, t.z, rule);
  std::abort();
}

}  // namespace lec7::host
