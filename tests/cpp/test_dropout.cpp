// Philox against its published vectors, and the masks made from it.
#include "lec7/dropout.h"

#include <array>

#include "kernels.h"

namespace lec7::test {
namespace {

using Words = std::array<std::uint32_t, 4>;

// Salmon, Moraes, Dror, Shaw 2011: two multiplications and two xors a round, the key grows by Weyl constants.
Words philox_naive(std::uint64_t seed, std::uint64_t offset, std::uint64_t block) {
  const auto low = [](std::uint64_t v) { return static_cast<std::uint32_t>(v); };
  const auto high = [](std::uint64_t v) { return static_cast<std::uint32_t>(v >> 32); };
  Words c = {low(block), high(block), low(offset), high(offset)};
  std::uint32_t key[2] = {low(seed), high(seed)};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xd2511f53} * c[0], product1 = std::uint64_t{0xcd9e8d57} * c[2];
    c = {high(product1) ^ c[1] ^ key[0], low(product1), high(product0) ^ c[3] ^ key[1], low(product0)};
    key[0] += 0x9e3779b9;
    key[1] += 0xbb67ae85;
  }
  return c;
}

struct Vector {
  std::uint64_t seed, offset, block;
  Words words;
};
const Vector kPublished[] = {
    {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {~0ull, ~0ull, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

// The kernel writes whole vectors of counters, at most 8.
Array<std::uint32_t> blocks(std::uint64_t seed, std::uint64_t offset, std::uint64_t first, Index count) {
  Array<std::uint32_t> words(4 * ((count + 7) / 8 * 8));
  LEC7_PICK(philox)(seed, offset, first, count, words.data());
  return words;
}

TEST(philox_gives_the_published_words) {
  for (const auto& [seed, offset, block, words] : kPublished) {
    CHECK(philox_naive(seed, offset, block) == words);
    on_every_isa([&] {
      const Array<std::uint32_t> got = blocks(seed, offset, block, 1);
      for (int i = 0; i < 4; ++i) check_equal(got[i], words[i]);
    });
  }
}

TEST(philox_counts_in_64_bits) {
  for (const std::uint64_t first : {std::uint64_t{0}, (std::uint64_t{1} << 32) - 5, ~std::uint64_t{0} - 3}) {
    on_every_isa([&] {
      const Array<std::uint32_t> got = blocks(11, 22, first, 21);
      for (Index i = 0; i < 21; ++i) {
        const Words want = philox_naive(11, 22, first + static_cast<std::uint64_t>(i));
        for (int w = 0; w < 4; ++w) check_equal(got[4 * i + w], want[w]);
      }
    });
  }
}

template <class T>
void check_dropout(Random& random, const Shape& x_shape, double p, bool whole_channels) {
  const Trying what(text("x ", x_shape.str(), ", p=", p, whole_channels ? ", channels" : ""));
  constexpr std::uint64_t seed = 0x123456789abcdef0, offset = 0xfedcba9876543210;
  const Array<T> x = random.array<T>(x_shape.size());
  const Dropout shape = dropout_shape(x_shape, p, seed, offset, whole_channels);
  const auto threshold = static_cast<std::uint64_t>(std::floor(p * 4294967296.0));
  const T scale = static_cast<T>(1 / (1 - p));
  std::vector<double> y;
  for (Index i = 0; i < x.size(); ++i) {
    const Index channels = x_shape.back(), example = i / (x.size() / x_shape[0]);
    const Index e = whole_channels ? example * channels + i % channels : i;
    const std::uint32_t r = philox_naive(seed, offset, static_cast<std::uint64_t>(e / 4))[e % 4];
    y.push_back(r >= threshold ? static_cast<T>(x[i] * scale) : T{0});
  }
  on_every_isa([&] {
    const Array<T> got(x.size());
    LEC7_PICK(dropout<T>)(shape, x.data(), got.data());
    check_same(got, y);
  });
}

TEST(masks) {
  with_types([]<class T> {
    Random random;
    for (const double p : {0.0, 0.25, 0.5, 0.999}) {
      for (const Index n : {0, 1, 3, 4, 5, 15, 16, 17, 35, 1023, 1024, 1025, 70001}) {
        if (n < 2000 || p == 0.5) check_dropout<T>(random, {n}, p, false);
      }
      for (const Index channels : {1, 3, 16, 17, 33}) {
        for (const Index repeats : {1, 2, 5}) {
          check_dropout<T>(random, {3, repeats, channels}, p, true);
          check_dropout<T>(random, {2, 2, repeats, channels}, p, true);
        }
      }
    }
    check_dropout<T>(random, {5, 31, 37, 7}, 0.3, true);
    check_dropout<T>(random, {4, 5}, 0.5, true);
    check_dropout<T>(random, {0, 3, 5}, 0.5, true);
    check_dropout<T>(random, {2, 0, 5}, 0.5, true);
  });
}

}  // namespace
}  // namespace lec7::test
