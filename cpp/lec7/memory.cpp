#include "lec7/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
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

constexpr std::size_t kLine = 64;
constexpr std::size_t kPage = std::size_t{64} << 10;    // AArch64's largest: a whole number of any system's pages
constexpr std::size_t kLarge = std::size_t{512} << 10;  // from here on blocks are whole pages of the arena
constexpr int kClasses = 8 * 64;

// Small sizes are rounded up to a class: eight to each power of two, so that at most 1/8 is wasted.
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

// The bytes that a block of this size takes.
std::size_t taken(std::size_t bytes) {
  return bytes < kLarge ? size_class(bytes).bytes : (bytes + kPage - 1) / kPage * kPage;
}

// Blocks cut from one reserved range of addresses, each from the lowest hole that is large enough.
class Arena {
 public:
  // The range takes no memory before it is written to. Twice what the machine has leaves room for holes.
  Arena() {
    const auto pages = static_cast<std::size_t>(std::max(1L, sysconf(_SC_PHYS_PAGES)));
    const std::size_t size = 2 * pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) / kPage * kPage;
    void* const range = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return;      // the process is limited to fewer addresses: there is no hole
    madvise(range, size, MADV_HUGEPAGE);  // advice: may fail harmlessly
    start_ = static_cast<char*>(range);
    size_ = size;
    holes_[start_] = {size, 0};
  }

  bool owns(const void* block) const { return block >= start_ && block < start_ + size_; }
  std::size_t cached() const { return cached_; }

  // Null where no hole is large enough, or the system gives no more memory. Sizes are whole pages.
  void* allocate(std::size_t size) {
    const auto at = std::find_if(holes_.begin(), holes_.end(), [&](const auto& h) { return h.second.size >= size; });
    if (at == holes_.end()) return nullptr;
    const auto [start, hole] = *at;
    if (hole.used < size && mprotect(start, size, PROT_READ | PROT_WRITE) != 0) return nullptr;
    const std::size_t reused = std::min(size, hole.used);
    if (hole.size > size) holes_[start + size] = {hole.size - size, hole.used - reused};
    holes_.erase(start);
    cached_ -= reused;
    return start;
  }

  void release(void* block, std::size_t size) {
    auto* const start = static_cast<char*>(block);
    const auto at = holes_.emplace(start, Hole{size, size}).first;
    cached_ += size;
    if (const auto next = std::next(at); next != holes_.end() && next->first == start + size) join(at, next);
    if (at == holes_.begin()) return;
    if (const auto last = std::prev(at); last->first + last->second.size == start) join(last, at);
  }

  void give_back() {
    for (auto& [start, hole] : holes_) {
      if (hole.used > 0) madvise(start, hole.size, MADV_DONTNEED);
      hole.used = 0;
    }
    cached_ = 0;
  }

 private:
  // Of a hole's bytes, `used` may still hold memory: taken to be its first, as in the last hole they are.
  struct Hole {
    std::size_t size, used;
  };
  using Holes = std::map<char*, Hole>;

  void join(Holes::iterator low, Holes::iterator high) {
    low->second.size += high->second.size;
    low->second.used += high->second.used;
    holes_.erase(high);
  }

  char* start_ = nullptr;
  std::size_t size_ = 0;
  Holes holes_;
  std::size_t cached_ = 0;
};

struct Pool {
  std::mutex mutex;
  std::vector<void*> free[kClasses];
  Arena arena;
  std::size_t in_use = 0;
  std::size_t cached_small = 0;
  std::size_t limit = std::size_t{2} << 30;
  bool poison = false;

  std::size_t cached() const { return cached_small + arena.cached(); }

  void* reuse_small(const SizeClass& c) {
    auto& blocks = free[c.index];
    if (blocks.empty()) return nullptr;
    void* const block = blocks.back();
    blocks.pop_back();
    cached_small -= c.bytes;
    return block;
  }

  void drop_all() {
    for (auto& blocks : free) {
      for (void* block : blocks) std::free(block);
      blocks.clear();
    }
    cached_small = 0;
    arena.give_back();
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
  const std::size_t size = taken(bytes);
  Pool& p = pool();
  void* block = nullptr;
  bool poison;
  {
    const std::lock_guard lock(p.mutex);
    poison = p.poison;
    block = bytes < kLarge ? p.reuse_small(size_class(bytes)) : p.arena.allocate(size);
    if (block == nullptr) block = std::aligned_alloc(bytes < kLarge ? kLine : kPage, size);
    if (block == nullptr) throw std::bad_alloc();
    p.in_use += size;
  }
  // What is rounded up is out of bounds.
  ASAN_UNPOISON_MEMORY_REGION(block, bytes);
  ASAN_POISON_MEMORY_REGION(static_cast<char*>(block) + bytes, size - bytes);
  if (poison) std::memset(block, 0xff, bytes);
  return block;
}

void release(void* block, std::size_t bytes) noexcept {
  const std::size_t size = taken(bytes);
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  try {
    if (bytes < kLarge) {
      ASAN_UNPOISON_MEMORY_REGION(block, size);
      p.free[size_class(bytes).index].push_back(block);
      p.cached_small += size;
    } else if (p.arena.owns(block)) {
      ASAN_POISON_MEMORY_REGION(block, size);
      p.arena.release(block, size);
    } else {
      ASAN_UNPOISON_MEMORY_REGION(block, size);
      std::free(block);
    }
  } catch (const std::bad_alloc&) {
    return;  // no memory to keep the books: the block stays in use
  }
  p.in_use -= size;
  // A full cache holds the sizes of earlier work: start again with those of now.
  if (p.cached() > p.limit) p.drop_all();
}

Info info() {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  return {p.in_use, p.cached(), p.limit};
}

void set_limit(std::size_t bytes) {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  p.limit = bytes;
  if (p.cached() > bytes) p.drop_all();
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
