// The caching allocator.
#include "lec7/memory.h"

#include <array>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "check.h"

namespace lec7::test {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

// Sizes on both sides of the limits between size classes, and of the one to huge pages.
std::vector<std::size_t> interesting_sizes() {
  std::vector<std::size_t> sizes = {0, 1, 63, 64, 65};
  for (const std::size_t power : {std::size_t{512}, std::size_t{4096}, kMiB, 2 * kMiB, 4 * kMiB}) {
    for (std::size_t eighth = 8; eighth < 16; ++eighth) {
      for (const std::size_t near : {-1, 0, 1}) sizes.push_back(power * eighth / 8 + near);
    }
  }
  return sizes;
}

// An empty cache with this limit; the one before comes back at the end.
class Limit {
 public:
  explicit Limit(std::size_t bytes) : before_(memory::info().limit) {
    memory::empty_cache();
    memory::set_limit(bytes);
  }
  ~Limit() {
    memory::set_limit(before_);
    memory::empty_cache();
  }

 private:
  std::size_t before_;
};

TEST(blocks_are_large_enough_aligned_and_apart) {
  const Limit limit(64 * kMiB);
  struct Block {
    unsigned char* data;
    std::size_t bytes;
  };
  std::vector<Block> blocks;
  for (const std::size_t bytes : interesting_sizes()) {
    const Trying size(text(bytes, " bytes"));
    auto* const data = static_cast<unsigned char*>(memory::allocate(bytes));
    const std::size_t alignment = bytes >= kMiB / 2 ? 4096 : 64;
    CHECK(reinterpret_cast<std::uintptr_t>(data) % alignment == 0);
    std::memset(data, static_cast<int>(blocks.size()), bytes);
    blocks.push_back({data, bytes});
  }
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const auto [data, bytes] = blocks[i];
    for (std::size_t at = 0; at < bytes; at += 509) CHECK(data[at] == static_cast<unsigned char>(i));
    if (bytes > 0) CHECK(data[bytes - 1] == static_cast<unsigned char>(i));
    memory::release(data, bytes);
  }
}

TEST(a_freed_block_is_given_out_again) {
  const Limit limit(64 * kMiB);
  for (const std::size_t bytes : interesting_sizes()) {
    void* const first = memory::allocate(bytes);
    memory::release(first, bytes);
    void* const second = memory::allocate(bytes);
    CHECK(second == first);
    void* const other = memory::allocate(bytes);
    CHECK(other != second);
    memory::release(second, bytes);
    memory::release(other, bytes);
  }
}

TEST(neighbors_that_are_free_become_one) {
  const Limit limit(64 * kMiB);
  const std::size_t sizes[] = {kMiB, 3 * kMiB / 2, kMiB / 2};
  for (const auto& order : {std::array{0, 1, 2}, std::array{0, 2, 1}, std::array{2, 1, 0}, std::array{1, 0, 2}}) {
    void* blocks[3];
    for (int i = 0; i < 3; ++i) blocks[i] = memory::allocate(sizes[i]);
    for (const int i : order) memory::release(blocks[i], sizes[i]);
    void* const whole = memory::allocate(3 * kMiB);
    CHECK(whole == blocks[0]);
    check_equal(memory::info().cached, std::size_t{0});
    memory::release(whole, 3 * kMiB);
  }
}

TEST(a_hole_is_used_up_from_its_start) {
  const Limit limit(64 * kMiB);
  void* const low = memory::allocate(2 * kMiB);
  void* const high = memory::allocate(kMiB);
  memory::release(low, 2 * kMiB);
  auto* const first = static_cast<char*>(memory::allocate(kMiB / 2));
  CHECK(first == low);
  check_equal(memory::info().cached, 3 * kMiB / 2);
  void* const large = memory::allocate(2 * kMiB);  // more than the rest of the hole
  CHECK(large > high);
  void* const rest = memory::allocate(3 * kMiB / 2);
  CHECK(rest == first + kMiB / 2);
  check_equal(memory::info().cached, std::size_t{0});
  memory::release(first, kMiB / 2);
  memory::release(rest, 3 * kMiB / 2);
  memory::release(high, kMiB);
  memory::release(large, 2 * kMiB);
  check_equal(memory::info().cached, 5 * kMiB);
}

TEST(what_is_given_back_reads_as_zeros) {
  const Limit limit(64 * kMiB);
  void* const below = memory::allocate(kMiB);
  auto* const block = static_cast<unsigned char*>(memory::allocate(kMiB));
  std::memset(block, 1, kMiB);
  memory::release(block, kMiB);
  memory::empty_cache();
  check_equal(memory::info().cached, std::size_t{0});
  const bool poisoned = memory::poisoned();
  memory::set_poison(false);
  auto* const again = static_cast<unsigned char*>(memory::allocate(kMiB));
  CHECK(again == block);
  for (std::size_t at = 0; at < kMiB; at += 509) CHECK(again[at] == 0);
  memory::set_poison(poisoned);
  memory::release(again, kMiB);
  memory::release(below, kMiB);
}

TEST(bytes_are_counted) {
  const Limit limit(64 * kMiB);
  const std::size_t in_use = memory::info().in_use;
  check_equal(memory::info().cached, std::size_t{0});
  for (const std::size_t bytes : interesting_sizes()) {
    const Trying size(text(bytes, " bytes"));
    void* const block = memory::allocate(bytes);
    const std::size_t taken = memory::info().in_use - in_use;
    CHECK(taken >= bytes);
    CHECK(taken <= bytes + bytes / 8 + 512);
    memory::release(block, bytes);
    check_equal(memory::info().in_use, in_use);
    check_equal(memory::info().cached, taken);
    memory::empty_cache();
    check_equal(memory::info().cached, std::size_t{0});
  }
}

TEST(the_cache_is_bounded) {
  for (const std::size_t most : {std::size_t{0}, kMiB, 8 * kMiB}) {
    const Limit limit(most);
    check_equal(memory::info().limit, most);
    for (const std::size_t bytes : interesting_sizes()) {
      memory::release(memory::allocate(bytes), bytes);
      CHECK(memory::info().cached <= most);
    }
  }
  const Limit limit(8 * kMiB);
  memory::release(memory::allocate(kMiB), kMiB);
  CHECK(memory::info().cached >= kMiB);
  memory::set_limit(kMiB - 1);
  check_equal(memory::info().cached, std::size_t{0});
}

TEST(poison_fills_fresh_and_reused_blocks) {
  const Limit limit(64 * kMiB);
  const bool before = memory::poisoned();
  memory::set_poison(true);
  CHECK(memory::poisoned());
  for (int use = 0; use < 2; ++use) {
    memory::Buffer<float> buffer(1000);
    for (Index i = 0; i < 1000; ++i) CHECK(buffer[i] != buffer[i]);
    std::memset(buffer.data(), 0, 4000);
  }
  memory::set_poison(false);
  CHECK(!memory::poisoned());
  {
    memory::Buffer<float> buffer(1000);
    CHECK(buffer[999] == 0);  // the same block, as it was left
  }
  memory::set_poison(before);
}

TEST(what_no_memory_holds_is_refused) {
  for (const std::size_t bytes :
       {std::size_t{1} << 47, std::size_t{1} << 49, (std::size_t{1} << 50) + 1, ~std::size_t{0}}) {
    const std::size_t in_use = memory::info().in_use;
    const Trying size(text(bytes, " bytes"));
    check_equal(thrown<std::bad_alloc>([&] { memory::allocate(bytes); }), std::bad_alloc().what());
    check_equal(memory::info().in_use, in_use);
  }
}

TEST(threads_share_it) {
  const Limit limit(4 * kMiB);
  const std::size_t in_use = memory::info().in_use;
  std::vector<std::thread> threads;
  std::vector<int> spoiled(4);  // one place for each thread
  for (std::size_t t = 0; t < spoiled.size(); ++t) {
    threads.emplace_back([t, &spoiled] {
      for (std::size_t i = 0; i < 300; ++i) {
        memory::Buffer<unsigned char> buffer(static_cast<Index>(1 + (i * 7919 + t) % 20000));
        const std::size_t last = (i * 7919 + t) % 20000;
        std::memset(buffer.data(), static_cast<int>(t), last + 1);
        std::this_thread::yield();
        spoiled[t] += buffer[0] != t || buffer[static_cast<Index>(last)] != t;
        if (i % 100 == 0) memory::empty_cache();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int count : spoiled) check_equal(count, 0);
  check_equal(memory::info().in_use, in_use);
}

}  // namespace
}  // namespace lec7::test
