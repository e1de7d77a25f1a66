// Embedding, and the search for indices that are out of range.
#include "lec7/embedding.h"

#include "kernels.h"

namespace lec7::test {
namespace {

template <class I>
void check_search(Index n) {
  Random random;
  for (const Index bad : {Index{-1}, Index{10}, static_cast<Index>(std::numeric_limits<I>::min()),
                          static_cast<Index>(std::numeric_limits<I>::max())}) {
    for (const Index at : {Index{0}, n / 3, n - 1}) {
      const Trying what(text("int", 8 * sizeof(I), ", n=", n, ", ", bad, " at ", at));
      std::vector<I> values(static_cast<std::size_t>(n));
      for (I& v : values) v = static_cast<I>(random.below(10));
      const Array<I> fine(values);
      values[at] = static_cast<I>(bad);
      const Array<I> wrong(values);
      const Index ignored = bad;
      on_every_isa([&] {
        const auto search = [&](const Array<I>& a, const Index* i) {
          return LEC7_PICK(first_outside)({a.data(), sizeof(I) == 8, n}, 0, 10, i);
        };
        check_equal(search(fine, nullptr), -1);
        check_equal(search(wrong, nullptr), at);
        check_equal(search(wrong, &ignored), -1);
        check_equal(search(fine, &ignored), -1);
      });
    }
  }
}

TEST(indices_out_of_range_are_found) {
  for (const Index n : {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 1000, 70000}) {
    check_search<std::int32_t>(n);
    check_search<std::int64_t>(n);
  }
  on_every_isa([] { check_equal(LEC7_PICK(first_outside)({nullptr, true, 0}, 0, 0, nullptr), -1); });
}

template <class I, class T>
void check_embedding(Random& random, Index count, Index embeddings, Index features) {
  const Trying what(text("int", 8 * sizeof(I), ", tokens=", count, ", V=", embeddings, ", D=", features));
  std::vector<I> tokens;
  for (Index i = 0; i < count; ++i) tokens.push_back(static_cast<I>(random.below(embeddings)));
  const Array<I> given(tokens);
  const Array<T> weight = random.array<T>(embeddings * features), dy = random.array<T>(count * features);
  std::vector<double> y, dweight(static_cast<std::size_t>(embeddings * features));
  for (Index i = 0; i < count; ++i) {
    for (Index d = 0; d < features; ++d) {
      y.push_back(weight[tokens[i] * features + d]);
      dweight[tokens[i] * features + d] += dy[i * features + d];
    }
  }
  on_every_isa([&] {
    const Indices indices{given.data(), sizeof(I) == 8, count};
    const Array<T> got(count * features), gradient(embeddings * features);
    const EmbeddingShape shape = embedding_shape({count}, indices, {embeddings, features});
    LEC7_PICK(embedding_forward<T>)(shape, indices, weight.data(), got.data());
    check_same(got, y);
    LEC7_PICK(embedding_backward<T>)(shape, dy.data(), indices, gradient.data());
    check_close(gradient, dweight, 16);
  });
}

TEST(values_and_gradients) {
  with_types([]<class T> {
    Random random;
    for (const Index features : {0, 1, 3, 8, 15, 16, 17, 35}) {
      for (const Index count : {0, 1, 5, 40}) {
        for (const Index embeddings : {1, 7, 100}) {
          check_embedding<std::int32_t, T>(random, count, embeddings, features);
          check_embedding<std::int64_t, T>(random, count, embeddings, features);
        }
      }
    }
    check_embedding<std::int64_t, T>(random, 3000, 65, 33);
    check_embedding<std::int32_t, T>(random, 2000, 5000, 9);
  });
}

}  // namespace
}  // namespace lec7::test
