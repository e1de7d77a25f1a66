// The memory of a block: first the dynamic array, then one for each LEC7_SHARED in the order in which they are met,
// with a gap in front of and behind each.
#include <algorithm>
#include <cstring>
#include <new>

#include "block.h"
#include "sanitizers.h"

namespace lec7::host {
namespace {

constexpr std::size_t kMost = std::size_t{227} << 10;       // a block of an H100
constexpr std::size_t kMostStatic = std::size_t{48} << 10;  // a block of any GPU, without asking for more
constexpr std::size_t kGap = 128;
constexpr std::size_t kMemory = kMost + 64 * kGap;
constexpr unsigned char kUnwritten = 0xff;

const SharedArray& add_array(Block& block, const void* site, std::size_t bytes, std::size_t alignment) {
  std::size_t together = bytes, fixed = site == nullptr ? 0 : bytes;
  for (const SharedArray& array : block.arrays) {
    together += array.bytes;
    if (array.site != nullptr) fixed += array.bytes;
  }
  const std::size_t offset = (block.used + kGap + alignment - 1) / alignment * alignment;
  if (fixed > kMostStatic) die("has more than 48 KiB of static shared memory", Where::current());
  if (together > kMost || offset + bytes + kGap > kMemory) {
    die("has more than 227 KiB of shared memory", Where::current());
  }
  block.used = offset + bytes;
  unpoison(block.memory.get() + offset, bytes);
  return block.arrays.emplace_back(site, offset, bytes);
}

}  // namespace

void begin_shared_memory(Block& block, std::size_t dynamic) {
  if (!block.memory) {
    block.memory.reset(static_cast<unsigned char*>(std::aligned_alloc(128, kMemory)));
    if (!block.memory) throw std::bad_alloc();
    std::memset(block.memory.get(), kUnwritten, kMemory);
  }
  block.arrays.clear();
  block.used = 0;
  poison(block.memory.get(), kMemory);
  if (dynamic > 0) add_array(block, nullptr, dynamic, 128);
}

void end_shared_memory(const Block& block) {
  const unsigned char* const memory = block.memory.get();
  unpoison(memory, kMemory);
  const unsigned char* gap = memory;
  const auto untouched = [&](const unsigned char* end) {
    return std::all_of(gap, end, [](unsigned char byte) { return byte == kUnwritten; });
  };
  bool intact = true;
  for (const SharedArray& array : block.arrays) {
    intact = intact && untouched(memory + array.offset);
    gap = memory + array.offset + array.bytes;
  }
  if (!intact || !untouched(memory + block.used + kGap)) {
    current = &worker->threads[block.first];
    die("or another thread of its block wrote outside an array in shared memory", Where::current());
  }
  std::memset(block.memory.get(), kUnwritten, block.used);
}

void* shared_memory(const void* site, std::size_t bytes, std::size_t alignment) {
  Block& block = *current->block;
  for (const SharedArray& array : block.arrays) {
    if (array.site == site) return block.memory.get() + array.offset;
  }
  return block.memory.get() + add_array(block, site, bytes, alignment).offset;
}

void* dynamic_shared_memory() {
  Block& block = *current->block;
  if (worker->launch->dynamic_shared == 0) die("uses dynamic shared memory that its launch does not have", {});
  return block.memory.get() + block.arrays.front().offset;
}

void begin_copy(void* shared, const void* global, std::size_t bytes, std::size_t valid, Where where) {
  FiberThread& me = self();
  for (const void* const address : {static_cast<const void*>(shared), global}) {
    if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
      die("begins a copy between addresses that are not aligned to its size", where);
    }
  }
  std::memset(shared, kUnwritten, bytes);
  poison(shared, bytes);
  me.copies.push_back({shared, global, bytes, valid, me.group, where});
}

void commit_copies() { ++self().group; }

void wait_for_copies(unsigned groups_left, Where where) {
  if (left_out(where)) return;
  FiberThread& me = self();
  const auto done = [&](const Copy& copy) {
    if (copy.group + groups_left >= me.group) return false;
    unpoison(copy.to, copy.bytes);
    std::memcpy(copy.to, copy.from, copy.valid);
    std::memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
    return true;
  };
  std::erase_if(me.copies, done);
}

}  // namespace lec7::host
