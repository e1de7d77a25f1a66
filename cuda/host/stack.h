// A fiber: a stack, and what ran on it. Switching saves seven registers and takes about 3 ns; the operating system has
// no part in it.
#pragma once

#include <cstddef>

namespace lec7::host {

class Fiber {
 public:
  Fiber() = default;  // the stack of the operating system's thread that switches away from it first
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // A stack of its own, with a page below it that nobody may touch; the first switch to it calls `body`, which never
  // returns.
  void create(void (*body)());
  bool created() const { return memory_ != nullptr; }

  // Goes on with `to`; returns when somebody switches back.
  void switch_to(Fiber& to);
  // The first thing that `body` does on its fiber.
  void arrived();

  // The fiber is now the stack of this operating system's thread.
  void adopt();

 private:
  void* memory_ = nullptr;     // the page, then the stack
  void* registers_ = nullptr;  // saved on the stack, while it does not run
  // For AddressSanitizer: the stack's bounds, its frames that lie elsewhere, and who switched to it.
  const void* lowest_ = nullptr;
  std::size_t bytes_ = 0;
  void* frames_ = nullptr;
  Fiber* from_ = nullptr;
  void* tsan_ = nullptr;
};

}  // namespace lec7::host
