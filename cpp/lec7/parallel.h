// Threads: how work is split, and what every worker thread sets up.
//
// Results must not depend on the number of threads. So tasks are cut by the size of the problem, never
// by the number of threads; threads only decide who runs a task, and a reduction over tasks adds their
// results in the order of the tasks.
#pragma once

#include <omp.h>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "lec7/array.h"

namespace lec7 {

// The threads that a kernel may use: OMP_NUM_THREADS, or the cores that the process may run on, within
// its cgroup's quota; 1 in a forked child, where OpenMP's threads no longer exist.
int num_threads();
void set_num_threads(int count);  // throws std::invalid_argument unless count >= 1

// Flush denormals to zero while it lives: they cost 1.4-3 times the time and carry no information that
// training needs. The caller's mode comes back at the end.
class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }  // FTZ, DAZ
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | (std::uint64_t{1} << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  std::uint64_t saved_;
#endif
};

// Code that runs on one thread or on many exists once: in a second copy the compiler may fuse the other product of
// a * b + c * d, and the results would differ in the last bit.
#define LEC7_ONE_COPY __attribute__((noinline, noclone))

// "As many threads as there are", where a function takes a limit.
inline constexpr Index kParallel = 1 << 20;

// The threads of one parallel region, seen from one of them.
struct Team {
  int thread;
  int threads;

  // Runs body(i) for i in [0, tasks), each by whichever thread is free, then waits for all of them.
  template <class Body>
  void for_each(Index tasks, Body&& body) const {
    const auto task = [&](Index i) LEC7_ONE_COPY { body(i); };
    if (threads == 1) {
      for (Index i = 0; i < tasks; ++i) task(i);
    } else {
#pragma omp for schedule(dynamic, 1)
      for (Index i = 0; i < tasks; ++i) task(i);
    }
  }

  // As for_each, but each thread takes the same part at every call: what it read stays in its own cache.
  template <class Body>
  void for_share(Index tasks, Body&& body) const {
    const auto task = [&](Index i) LEC7_ONE_COPY { body(i); };
    for (Index i = tasks * thread / threads; i < tasks * (thread + 1) / threads; ++i) task(i);
    barrier();
  }

  void barrier() const {
    if (threads > 1) {
#pragma omp barrier
    }
  }
};

// Runs body(team) on up to `most` threads. Nothing in it may throw: allocate before.
template <class Body>
void parallel_region(Index most, Body&& body) {
  const int threads = static_cast<int>(most < num_threads() ? (most < 1 ? 1 : most) : num_threads());
  const auto run = [&](Team team) LEC7_ONE_COPY {
    const FlushDenormals flush;
    body(team);
  };
  if (threads == 1) return run(Team{0, 1});
#pragma omp parallel num_threads(threads)
  run(Team{omp_get_thread_num(), omp_get_num_threads()});
}

// Runs body(i) for i in [0, tasks).
template <class Body>
void parallel_for(Index tasks, Body&& body) {
  parallel_region(tasks, [&](const Team& team) { team.for_each(tasks, body); });
}

// Cuts [0, n) into ranges of `grain` and runs body(begin, end) on each.
template <class Body>
void parallel_ranges(Index n, Index grain, Body&& body) {
  parallel_for((n + grain - 1) / grain, [&](Index i) { body(i * grain, (i + 1) * grain < n ? (i + 1) * grain : n); });
}

}  // namespace lec7
