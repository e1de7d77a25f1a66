// Bugs that are planted, and must be caught: each runs in a process of its own, which must end with the right words.
#pragma once

#include <string>
#include <vector>

#include "check.h"

namespace lec7::test {

// PLANT(name) { ... } is what that process does.
struct Planting {
  Planting(const char* name, void (*body)());
};
#define PLANT(name)                                                 \
  static void name();                                               \
  static const ::lec7::test::Planting planted_##name(#name, &name); \
  static void name()

// lec7_cuda_tests --plant NAME
int run_planted(const std::string& name);

// The process fails, and says each of these on its standard error.
void expect_caught(const std::string& name, const std::vector<std::string>& words,
                   const Place& place = Place::current());

#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

}  // namespace lec7::test
