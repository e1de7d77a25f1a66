// lec7_cuda_tests [SUITE ...]: runs the tests of these suites, or all; in a new order of the threads for each seed.
#include <cstdio>
#include <cstring>

#include "planted.h"

#define LEC7_EXPORT extern "C" __attribute__((visibility("default")))
LEC7_EXPORT const char* __asan_default_options() { return "allocator_may_return_null=1"; }
LEC7_EXPORT const char* __tsan_default_options() { return "allocator_may_return_null=1"; }

int main(int argc, char** argv) {
  using namespace lec7::test;
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
  if (argc == 3 && std::strcmp(argv[1], "--plant") == 0) return run_planted(argv[2]);
  return run_tests({argv + 1, argv + argc});
}
