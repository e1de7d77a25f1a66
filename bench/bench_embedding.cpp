// Rows of a table, and their gradient: bound by memory.
#include "bench.h"
#include "lec7/embedding.h"

namespace lec7::bench {
namespace {

void embedding(Index tokens, Index vocabulary, Index features) {
  const EmbeddingShape shape{.embeddings = vocabulary, .features = features, .y = {tokens, features}};
  const double bytes = 8.0 * shape.y.size();
  const Numbers numbers{{"N", tokens}, {"V", vocabulary}, {"D", features}};
  add("embedding_forward", numbers, [=](benchmark::State& state) {
    Integers indices(tokens, vocabulary);
    Array weight({vocabulary, features}), y(shape.y);
    measure(state, {0, bytes}, [&] {
      LEC7_PICK(embedding_forward<float>)(shape, {indices.data(), false, tokens}, weight.data(), y.data());
    });
  });
  add("embedding_backward", numbers, [=](benchmark::State& state) {
    Integers indices(tokens, vocabulary);
    Array dy(shape.y), dweight({vocabulary, features});
    measure(state, {0, bytes / 2 + 4.0 * vocabulary * features}, [&] {
      LEC7_PICK(embedding_backward<float>)(shape, dy.data(), {indices.data(), false, tokens}, dweight.data());
    });
  });
}

const Rows rows([] {
  embedding(2500, 65, 128);
  embedding(10'000, 10'000, 512);
});

}  // namespace
}  // namespace lec7::bench
