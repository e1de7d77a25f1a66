// The part of the OpenMP runtime that GCC's code for lec7/parallel.h calls, on threads that ThreadSanitizer
// understands.
//
// libgomp is not built with the sanitizer and synchronizes through futexes, so that every fork, join and barrier of it
// looks like a missing one: thousands of false races, or, with all of them suppressed, none found at all. Linked in
// front of libgomp, these few functions do the same with the standard library, and what is reported is real.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace {

struct Loop {
  std::atomic<long> next;
  long end, chunk;
};

struct Team {
  explicit Team(int threads) : threads(threads), barrier(threads) {}
  int threads;
  std::barrier<> barrier;
  std::mutex mutex;
  std::vector<std::unique_ptr<Loop>> loops;  // in the order in which the threads come to them
};

struct Self {
  Team* team = nullptr;
  int thread = 0;
  std::size_t loops = 0;  // that this thread has come to
  Loop* loop = nullptr;
};
thread_local Self self;

void run(void (*body)(void*), void* data, Team& team, int thread) {
  const Self outer = self;
  self = {&team, thread, 0, nullptr};
  body(data);
  self = outer;
}

}  // namespace

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  Team team(threads == 0 ? omp_get_max_threads() : static_cast<int>(threads));
  std::vector<std::thread> others;
  for (int i = 1; i < team.threads; ++i) others.emplace_back([&, i] { run(body, data, team, i); });
  run(body, data, team, 0);
  for (std::thread& thread : others) thread.join();
}

int omp_get_thread_num() { return self.thread; }
int omp_get_num_threads() { return self.team == nullptr ? 1 : self.team->threads; }

void GOMP_barrier() {
  if (self.team != nullptr) self.team->barrier.arrive_and_wait();
}

bool GOMP_loop_nonmonotonic_dynamic_next(long* begin, long* end) {
  Loop& loop = *self.loop;
  const long first = loop.next.fetch_add(loop.chunk, std::memory_order_relaxed);
  if (first >= loop.end) return false;
  *begin = first;
  *end = std::min(first + loop.chunk, loop.end);
  return true;
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long /*step: 1*/, long chunk, long* begin,
                                          long* chunk_end) {
  Team& team = *self.team;
  {
    const std::lock_guard lock(team.mutex);
    if (self.loops == team.loops.size()) team.loops.emplace_back(new Loop{start, end, chunk});
    self.loop = team.loops[self.loops++].get();
  }
  return GOMP_loop_nonmonotonic_dynamic_next(begin, chunk_end);
}

void GOMP_loop_end() { GOMP_barrier(); }

}  // extern "C"
