// The part of the OpenMP runtime that GCC's code for lec7/parallel.h calls, on threads that ThreadSanitizer
// understands.
//
// libgomp is not built with the sanitizer and synchronizes through futexes, so that every fork, join and barrier of it
// looks like a missing one: false races everywhere, or, with all of them suppressed, none found at all. Linked in front
// of libgomp, these few functions do the same with the standard library, and what is reported is real.
//
// A loop hands its iterations out in turn, one of the orders that schedule(dynamic) allows: each thread gets some, and
// two that touch the same number are found, whoever would have come first.
#include <omp.h>

#include <algorithm>
#include <barrier>
#include <thread>
#include <vector>

namespace {

struct Team {
  int threads;
  std::barrier<> barrier;
};

struct Self {
  Team* team = nullptr;
  int thread = 0;
  long next = 0, end = 0, chunk = 0;  // of the loop that this thread is in
};
thread_local Self self;

void run(void (*body)(void*), void* data, Team& team, int thread) {
  const Self outer = self;
  self = {&team, thread};
  body(data);
  self = outer;
}

}  // namespace

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  const int count = threads == 0 ? omp_get_max_threads() : static_cast<int>(threads);
  Team team{count, std::barrier<>(count)};
  std::vector<std::thread> others;
  for (int i = 1; i < count; ++i) others.emplace_back([&, i] { run(body, data, team, i); });
  run(body, data, team, 0);
  for (std::thread& thread : others) thread.join();
}

int omp_get_thread_num() { return self.thread; }
int omp_get_num_threads() { return self.team == nullptr ? 1 : self.team->threads; }

void GOMP_barrier() {
  if (self.team != nullptr) self.team->barrier.arrive_and_wait();
}

bool GOMP_loop_nonmonotonic_dynamic_next(long* begin, long* end) {
  if (self.next >= self.end) return false;
  *begin = self.next;
  *end = std::min(self.next + self.chunk, self.end);
  self.next += self.chunk * self.team->threads;
  return true;
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long /*step: 1*/, long chunk, long* begin,
                                          long* chunk_end) {
  self.next = start + chunk * self.thread;
  self.end = end;
  self.chunk = chunk;
  return GOMP_loop_nonmonotonic_dynamic_next(begin, chunk_end);
}

void GOMP_loop_end() { GOMP_barrier(); }

}  // extern "C"
