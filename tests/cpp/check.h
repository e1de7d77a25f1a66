// What the C++ tests are written with. A failed check is printed with its place and with what was being tried; the
// test goes on, and the program fails at its end.
#pragma once

#include <source_location>
#include <sstream>
#include <string>
#include <vector>

namespace lec7::test {

// TEST(name) { ... } belongs to the suite of its file: test_linear.cpp is the suite "linear".
struct Registration {
  Registration(const char* file, const char* name, void (*body)());
};
#define TEST(name)                                                                   \
  static void name();                                                                \
  static const ::lec7::test::Registration registered_##name(__FILE__, #name, &name); \
  static void name()

// Runs the tests of these suites, or all; what main returns.
int run_tests(const std::vector<std::string>& suites);

using Place = std::source_location;

void report(const Place& place, const std::string& what);

// What is being tried while it lives: printed with every failure.
class Trying {
 public:
  explicit Trying(std::string text);
  ~Trying();
  Trying(const Trying&) = delete;
  Trying& operator=(const Trying&) = delete;
};

// "m=3, n=17" from text("m=", 3, ", n=", 17).
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

inline void check(bool condition, const std::string& what, const Place& place = Place::current()) {
  if (!condition) report(place, what);
}
#define CHECK(condition) ::lec7::test::check(condition, #condition)

template <class A, class B>
void check_equal(const A& got, const B& want, const Place& place = Place::current()) {
  if (!(got == want)) report(place, text("got  ", got, "\n    want ", want));
}

// The message of the exception that body throws.
template <class Exception, class Body>
std::string thrown(Body&& body) {
  try {
    body();
  } catch (const Exception& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace lec7::test
