// Threads: every task runs once, on at most the threads that were asked for, with denormals flushed.
#include "lec7/parallel.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <set>
#include <stdexcept>
#include <vector>

#include "check.h"

namespace lec7::test {
namespace {

constexpr int kThreads[] = {1, 2, 3, 7, 16};

// Any number of threads, and the one before at the end.
class Threads {
 public:
  explicit Threads(int count) : before_(num_threads()) { set_num_threads(count); }
  ~Threads() { set_num_threads(before_); }

 private:
  int before_;
};

TEST(each_index_runs_once) {
  for (const int count : kThreads) {
    const Threads threads(count);
    check_equal(num_threads(), count);
    for (const Index tasks : {0, 1, 2, 5, 16, 1000}) {
      const Trying sizes(text(count, " threads, ", tasks, " tasks"));
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
      parallel_for(tasks, [&](Index i) { ++runs[i]; });
      for (const auto& n : runs) check_equal(n.load(), 1);
    }
  }
}

TEST(ranges_cut_everything_by_the_grain) {
  for (const int count : kThreads) {
    const Threads threads(count);
    for (const Index n : {0, 1, 6, 7, 8, 700}) {
      const Trying sizes(text(count, " threads, n=", n));
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(n));
      std::atomic<int> wrong = 0;
      parallel_ranges(n, 7, [&](Index begin, Index end) {
        wrong += begin % 7 != 0 || end - begin != std::min<Index>(7, n - begin);
        for (Index i = begin; i < end; ++i) ++runs[i];
      });
      check_equal(wrong.load(), 0);
      for (const auto& k : runs) check_equal(k.load(), 1);
    }
  }
}

TEST(a_region_has_no_more_threads_than_asked) {
  const Threads threads(4);
  for (const Index most : {Index{-1}, Index{0}, Index{1}, Index{3}, Index{4}, kParallel}) {
    const int allowed = static_cast<int>(std::clamp<Index>(most, 1, 4));
    std::mutex mutex;
    std::set<int> seen;
    parallel_region(most, [&](const Team& team) {
      const std::lock_guard lock(mutex);
      CHECK(team.threads <= allowed);
      CHECK(team.thread >= 0 && team.thread < team.threads);
      CHECK(seen.insert(team.thread).second);
    });
    CHECK(static_cast<int>(seen.size()) <= allowed && !seen.empty());
  }
}

TEST(loops_of_a_region_wait_for_each_other) {
  for (const int count : kThreads) {
    const Threads threads(count);
    std::vector<Index> first(100), second(100);
    std::atomic<int> early = 0;
    std::atomic<int> arrived = 0;
    parallel_region(kParallel, [&](const Team& team) {
      team.for_each(100, [&](Index i) { first[i] = i; });
      team.for_each(100, [&](Index i) { second[i] = first[99 - i]; });
      ++arrived;
      team.barrier();
      early += arrived.load() != team.threads;
    });
    for (Index i = 0; i < 100; ++i) check_equal(second[i], 99 - i);
    check_equal(early.load(), 0);
  }
}

TEST(denormals_are_flushed_inside_only) {
  volatile float small = std::numeric_limits<float>::denorm_min() * 1024;
  const auto survives = [&] { return small * 0.5f != 0; };
  for (const int count : kThreads) {
    const Threads threads(count);
    CHECK(survives());
    std::atomic<int> surviving = 0;
    parallel_region(kParallel, [&](const Team&) { surviving += survives(); });
    check_equal(surviving.load(), 0);
    CHECK(survives());
  }
}

TEST(a_count_below_one_is_refused) {
  const int before = num_threads();
  for (const int count : {0, -1, std::numeric_limits<int>::min()}) {
    check_equal(thrown<std::invalid_argument>([&] { set_num_threads(count); }),
                text("set_num_threads: the count is at least 1; got ", count));
  }
  check_equal(num_threads(), before);
}

TEST(a_forked_child_runs_on_one_thread) {
  const Threads threads(3);
  std::atomic<int> sum = 0;
  parallel_for(10, [&](Index i) { sum += static_cast<int>(i); });
  check_equal(sum.load(), 45);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a hang ends it
    int in_child = 0;
    parallel_for(10, [&](Index i) { in_child += static_cast<int>(i); });
    _exit(in_child == 45 && num_threads() == 1 ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  check_equal(status, 0);
  check_equal(num_threads(), 3);
}

}  // namespace
}  // namespace lec7::test
