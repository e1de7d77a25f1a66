#include "lec7/embedding.h"

namespace lec7 {

namespace {
constexpr std::string_view kOp = "embedding";
}

EmbeddingShape embedding_shape(const Shape& tokens, const Indices& values, const Shape& weight) {
  const Named arrays[] = {{"tokens (...)", tokens}, {"weight (V, D)", weight}};
  if (weight.rank() != 2) fail(kOp, "weight has 2 axes, not " + std::to_string(weight.rank()), arrays);
  if (tokens.rank() == Shape::kMaxRank) fail(kOp, "tokens have too many axes", arrays);
  EmbeddingShape shape{weight[0], weight[1], tokens};
  shape.y.append(weight[1]);
  checked_size(kOp, shape.y);
  check_indices(kOp, arrays[0], values, 0, weight[0]);
  return shape;
}

EmbeddingShape embedding_backward_shape(const Shape& dy, const Shape& tokens, const Indices& values,
                                        Index num_embeddings) {
  const Named arrays[] = {{"dy (..., D)", dy}, {"tokens (...)", tokens}};
  if (num_embeddings < 0) fail(kOp, "num_embeddings is not negative; got " + std::to_string(num_embeddings), arrays);
  if (dy.rank() < 1) fail(kOp, "dy needs an axis of features", arrays);
  const EmbeddingShape shape = embedding_shape(tokens, values, Shape{num_embeddings, dy.back()});
  if (dy != shape.y) fail(kOp, "dy has the shape of y, " + shape.y.str(), arrays);
  checked_size(kOp, Shape{num_embeddings});  // backward counts each, even where D is 0
  checked_size(kOp, Shape{num_embeddings, dy.back()});
  return shape;
}

}  // namespace lec7
