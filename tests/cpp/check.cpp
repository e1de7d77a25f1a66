#include "check.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <vector>

namespace lec7::test {
namespace {

struct Test {
  std::string suite;
  const char* name;
  void (*body)();
};

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

std::vector<std::string> trying;
int failures = 0;
constexpr int kMostPrinted = 20;

}  // namespace

Registration::Registration(const char* file, const char* name, void (*body)()) {
  const std::string stem = std::filesystem::path(file).stem();
  tests().push_back({stem.substr(std::strlen("test_")), name, body});
}

Trying::Trying(std::string text) { trying.push_back(std::move(text)); }
Trying::~Trying() { trying.pop_back(); }

void report(const Place& place, const std::string& what) {
  if (++failures > kMostPrinted) return;
  std::string where;
  for (const std::string& text : trying) where += (where.empty() ? "" : ", ") + text;
  std::printf("%s:%u: failed: %s\n    %s\n", place.file_name(), place.line(), where.c_str(), what.c_str());
}

int run_tests(const std::vector<std::string>& suites) {
  int run = 0;
  for (const Test& test : tests()) {
    if (!suites.empty() && std::find(suites.begin(), suites.end(), test.suite) == suites.end()) continue;
    const Trying scope(test.suite + "." + test.name);
    ++run;
    try {
      test.body();
    } catch (const std::exception& error) {
      report(Place::current(), std::string("an exception left the test: ") + error.what());
    }
  }
  if (run == 0) std::printf("there is no such suite\n");
  std::printf("%d tests, %d failed checks\n", run, failures);
  return run == 0 || failures > 0;
}

}  // namespace lec7::test
