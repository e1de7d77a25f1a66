// embedding: y[..., :] = weight[tokens[...], :], weight (V, D).
//
// Backward:  dweight[v, :] = the sum of dy[..., :] where tokens[...] = v.
#pragma once

#include "lec7/array.h"
#include "lec7/indices.h"
#include "lec7/isa.h"

namespace lec7 {

struct EmbeddingShape {
  Index embeddings, features;  // V, D
  Shape y;
};

// Both read the tokens: each is in [0, V).
EmbeddingShape embedding_shape(const Shape& tokens, const Indices& values, const Shape& weight);
EmbeddingShape embedding_backward_shape(const Shape& dy, const Shape& tokens, const Indices& values,
                                        Index num_embeddings);

}  // namespace lec7

LEC7_KERNELS(template <class T>
             void embedding_forward(const EmbeddingShape& shape, const Indices& tokens, const T* weight, T* y);
             template <class T>
             void embedding_backward(const EmbeddingShape& shape, const T* dy, const Indices& tokens, T* dweight);)
