#include "stack.h"

#include <sys/mman.h>

#include <new>

#include "sanitizers.h"

#if !defined(__x86_64__)
#error "the host build of the CUDA kernels switches stacks in x86-64 assembly"
#endif

// Pushes the registers that a callee preserves, leaves their address in *save, and pops those that lie at `to`. The
// rounding modes and the x87 control word stay what they are: all fibers of a process share them.
extern "C" void lec7_switch_stack(void** save, void* to);
asm(R"(
.text
.globl lec7_switch_stack
.hidden lec7_switch_stack
.type lec7_switch_stack, @function
lec7_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size lec7_switch_stack, .-lec7_switch_stack
)");

namespace lec7::host {
namespace {

constexpr std::size_t kPage = 4096;
#if defined(__SANITIZE_ADDRESS__) || defined(LEC7_TSAN)
constexpr std::size_t kStack = std::size_t{256} << 10;
#else
constexpr std::size_t kStack = std::size_t{64} << 10;
#endif

}  // namespace

void Fiber::create(void (*body)()) {
  void* const memory = mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kPage, PROT_NONE);
  memory_ = memory;
  lowest_ = static_cast<char*>(memory) + kPage;
  bytes_ = kStack;

  void** top = reinterpret_cast<void**>(static_cast<char*>(memory) + kPage + kStack);
  *--top = nullptr;  // where `body` would return to; and a call leaves the stack 8 bytes off a multiple of 16
  *--top = reinterpret_cast<void*>(body);
  for (int preserved = 0; preserved < 6; ++preserved) *--top = nullptr;
  registers_ = top;
#if defined(LEC7_TSAN)
  tsan_ = __tsan_create_fiber(0);
#endif
}

void Fiber::adopt() {
#if defined(LEC7_TSAN)
  tsan_ = __tsan_get_current_fiber();
#endif
}

Fiber::~Fiber() {
  if (!created()) return;
#if defined(LEC7_TSAN)
  __tsan_destroy_fiber(tsan_);
#endif
  unpoison(lowest_, bytes_);  // it still has the frames of `body`
  munmap(memory_, kPage + kStack);
}

void Fiber::switch_to(Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  to.from_ = this;
  __sanitizer_start_switch_fiber(&frames_, to.lowest_, to.bytes_);
#endif
#if defined(LEC7_TSAN)
  __tsan_switch_to_fiber(to.tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  lec7_switch_stack(&registers_, to.registers_);
  arrived();
}

void Fiber::arrived() {
#if defined(__SANITIZE_ADDRESS__)
  // Asks for the bounds of the stack that was left: those of the operating system's thread are not known before.
  __sanitizer_finish_switch_fiber(frames_, &from_->lowest_, &from_->bytes_);
#endif
}

}  // namespace lec7::host
