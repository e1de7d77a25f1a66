// What AddressSanitizer and ThreadSanitizer are told, or nothing in a build without them. The files of this directory
// are themselves compiled without ThreadSanitizer (LEC7_TSAN says that the kernels are not): a switch from fiber to
// fiber would look like a race.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(LEC7_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace lec7::host {

#if defined(LEC7_TSAN)
inline constexpr bool kFindsRaces = true;
#else
inline constexpr bool kFindsRaces = false;
#endif

// An access to poisoned bytes is an error.
inline void poison([[maybe_unused]] const void* bytes, [[maybe_unused]] std::size_t count) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(bytes, count);
#endif
}
inline void unpoison([[maybe_unused]] const void* bytes, [[maybe_unused]] std::size_t count) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(bytes, count);
#endif
}

// What a fiber did before `before(token)` happened before what another does after `after(token)`.
inline void before([[maybe_unused]] void* token) {
#if defined(LEC7_TSAN)
  __tsan_release(token);
#endif
}
inline void after([[maybe_unused]] void* token) {
#if defined(LEC7_TSAN)
  __tsan_acquire(token);
#endif
}

}  // namespace lec7::host
