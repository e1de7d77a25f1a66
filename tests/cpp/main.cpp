// lec7_tests [SUITE ...]: runs the tests of these suites, or all.
#include <cstdio>

#include "check.h"
#include "lec7/memory.h"

// A request that no memory can hold must reach the library as a null pointer, as without sanitizers.
#define LEC7_EXPORT extern "C" __attribute__((visibility("default")))
LEC7_EXPORT const char* __asan_default_options() { return "allocator_may_return_null=1"; }
LEC7_EXPORT const char* __tsan_default_options() { return "allocator_may_return_null=1"; }

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
  // Holes in results are NaN, and what a kernel still reads after it gave it back is gone.
  lec7::memory::set_poison(true);
  lec7::memory::set_limit(0);
  return lec7::test::run_tests({argv + 1, argv + argc});
}
