#include "lec7/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>

namespace lec7 {
namespace {

// The CPUs that a cgroup v2 quota leaves, or a large number where there is none.
int cgroup_cpus() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (file >> quota >> period && quota != "max" && period > 0) {
    return std::max(1, static_cast<int>(std::ceil(std::atof(quota.c_str()) / period)));
  }
  return 1 << 20;
}

int initial_threads() {
  const int allowed = omp_get_max_threads();  // OMP_NUM_THREADS, else the affinity mask
  return std::getenv("OMP_NUM_THREADS") != nullptr ? allowed : std::min(allowed, cgroup_cpus());
}

std::atomic<int> threads{initial_threads()};
std::atomic<bool> forked{false};

const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

int num_threads() { return forked.load(std::memory_order_relaxed) ? 1 : threads.load(std::memory_order_relaxed); }

void set_num_threads(int count) {
  if (count < 1) throw std::invalid_argument("set_num_threads: the count is at least 1; got " + std::to_string(count));
  threads = count;
}

}  // namespace lec7
