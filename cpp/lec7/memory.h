// A bounded caching allocator for results and scratch.
//
// A large fresh array costs a page fault for each 4 KiB (2 x 40 MB: 35 ms fresh, 4 ms reused), so freed
// blocks are kept and given out again. Small ones wait by size class. Large ones are cut from one range of
// addresses, advised to use huge pages, where neighbors that are free become one: what the forward pass
// leaves in many sizes serves the backward pass in others.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lec7/array.h"

namespace lec7::memory {

struct Info {
  std::size_t in_use;  // bytes handed out
  std::size_t cached;  // bytes kept for reuse
  std::size_t limit;   // most bytes that are kept
};

// Throws std::bad_alloc. The block is aligned to 64 bytes at least.
void* allocate(std::size_t bytes);
void release(void* block, std::size_t bytes) noexcept;  // bytes as allocated

Info info();
void set_limit(std::size_t bytes);
void empty_cache();

// Fill blocks with 0xff (NaN, -1) before they are handed out: a kernel that leaves a hole in its
// result, or reads scratch that it did not write, shows in the tests.
void set_poison(bool on);
bool poisoned();

// Scratch for a kernel: allocated before a parallel region starts, given back at its end.
template <class T>
class Buffer {
 public:
  explicit Buffer(Index count)
      : bytes_(static_cast<std::size_t>(count) * sizeof(T)), data_(static_cast<T*>(allocate(bytes_))) {}
  ~Buffer() { release(data_, bytes_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return data_; }
  T& operator[](Index i) { return data_[i]; }

 private:
  std::size_t bytes_;
  T* data_;
};

}  // namespace lec7::memory
