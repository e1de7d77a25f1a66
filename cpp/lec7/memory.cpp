#include "lec7/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace lec7::memory {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kLine = 64;
constexpr int kClasses = 8 * 64;

// Sizes are rounded up to a class: eight to each power of two, so that at most 1/8 is wasted.
struct SizeClass {
  int index;
  std::size_t bytes;
};

SizeClass size_class(std::size_t bytes) {
  bytes = std::max(bytes, kLine * 8);
  const int log2 = std::bit_width(bytes) - 1;
  const std::size_t step = std::size_t{1} << (log2 - 3);
  const std::size_t rounded = (bytes + step - 1) / step * step;
  const int rounded_log2 = std::bit_width(rounded) - 1;
  const auto eighth = static_cast<int>((rounded >> (rounded_log2 - 3)) & 7);
  return {8 * rounded_log2 + eighth, rounded};
}

struct Pool {
  std::mutex mutex;
  std::vector<void*> free[kClasses];
  std::size_t in_use = 0;
  std::size_t cached = 0;
  std::size_t limit = std::size_t{2} << 30;
  bool poison = false;

  void drop_all() {
    for (auto& blocks : free) {
      for (void* block : blocks) std::free(block);
      blocks.clear();
    }
    cached = 0;
  }
};

// Never destroyed: arrays may outlive the static objects at interpreter exit.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

}  // namespace

void* allocate(std::size_t bytes) {
  if (bytes > (std::size_t{1} << 50)) throw std::bad_alloc();
  const SizeClass c = size_class(bytes);
  Pool& p = pool();
  void* block = nullptr;
  bool poison;
  {
    const std::lock_guard lock(p.mutex);
    poison = p.poison;
    auto& blocks = p.free[c.index];
    if (!blocks.empty()) {
      block = blocks.back();
      blocks.pop_back();
      p.cached -= c.bytes;
      p.in_use += c.bytes;
    }
  }
  if (block == nullptr) {
    const std::size_t alignment = c.bytes >= kHugePage ? kHugePage : kLine;
    const std::size_t size = (c.bytes + alignment - 1) / alignment * alignment;
    block = std::aligned_alloc(alignment, size);
    if (block == nullptr) {
      empty_cache();
      block = std::aligned_alloc(alignment, size);
      if (block == nullptr) throw std::bad_alloc();
    }
    if (alignment == kHugePage) madvise(block, size, MADV_HUGEPAGE);  // advice: may fail harmlessly
    const std::lock_guard lock(p.mutex);
    p.in_use += c.bytes;
  }
  // What the class rounds up is out of bounds.
  ASAN_UNPOISON_MEMORY_REGION(block, bytes);
  ASAN_POISON_MEMORY_REGION(static_cast<char*>(block) + bytes, c.bytes - bytes);
  if (poison) std::memset(block, 0xff, bytes);
  return block;
}

void release(void* block, std::size_t bytes) noexcept {
  const SizeClass c = size_class(bytes);
  ASAN_UNPOISON_MEMORY_REGION(block, c.bytes);
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  p.in_use -= c.bytes;
  if (c.bytes > p.limit) {
    std::free(block);
    return;
  }
  // A full cache holds the sizes of earlier work: start again with those of now.
  if (p.cached + c.bytes > p.limit) p.drop_all();
  try {
    p.free[c.index].push_back(block);
    p.cached += c.bytes;
  } catch (const std::bad_alloc&) {
    std::free(block);
  }
}

Info info() {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  return {p.in_use, p.cached, p.limit};
}

void set_limit(std::size_t bytes) {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  p.limit = bytes;
  if (p.cached > bytes) p.drop_all();
}

void empty_cache() {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  p.drop_all();
}

void set_poison(bool on) {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  p.poison = on;
}

bool poisoned() {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  return p.poison;
}

}  // namespace lec7::memory
