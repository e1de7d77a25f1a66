// attention: softmax(scale q k^T + mask) v for every batch entry and head, without the Tq x Tk matrix in memory
// (Dao, Fu, Ermon, Rudra, Re 2022, FlashAttention).
//
//   s[i,j] = scale sum_e q[i,e] k[j,e] + mask[i,j], -inf where key j is hidden from query i
//   lse[i] = log sum_j exp(s[i,j]),  p = exp(s - lse),  y[i] = sum_j p[i,j] v[j]
//
// Backward recomputes p from lse:  ds[i,j] = p[i,j] (dy[i] . v[j] - dy[i] . y[i]),
// dq = scale ds k,  dk = scale ds^T q,  dv = p^T dy. A query that sees no key has y = 0, lse = -inf, gradients 0.
//
// Of float16 and bfloat16, lse and an added mask are float32; where tensor cores multiply, p and ds are rounded to the
// arrays' type first, as the arrays themselves are.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "lec7/half.h"
#include "lec7/indices.h"

namespace lec7 {

struct AttentionShape {
  Index n, heads, queries, keys, d, dv;
  Shape y, lse;

  Index rows() const { return n * heads * queries; }
  Shape weights() const { return {n, heads, queries, keys}; }
};

// k and v follow q; weights: the matrix of probabilities is wanted too.
AttentionShape attention_shape(const Shape& q, const Shape& k, const Shape& v, bool weights);
// Also checks dy, y and lse.
AttentionShape attention_backward_shape(const Shape& dy, const Shape& q, const Shape& k, const Shape& v, const Shape& y,
                                        const Shape& lse);

// A mask that broadcasts to (N, heads, Tq, Tk): at most one of the two is given.
template <class T>
struct AttentionMask {
  const bool* keep = nullptr;  // keys are seen where it is true
  const T* add = nullptr;      // added to the scores
  Index stride[4] = {};        // in elements; 0 on an axis that it is broadcast over
};

// Fills the strides of a mask of this shape.
void attention_mask_strides(const AttentionShape& shape, const Shape& mask, Index (&stride)[4]);

// The lengths as Index, each in [0, Tk].
std::vector<Index> attention_key_lengths(const AttentionShape& shape, const Shape& lengths, const Indices& values);

template <class T>
struct AttentionParams {
  T scale;
  bool causal = false;
  AttentionMask<T> mask;
  std::vector<Index> key_lengths;  // empty: all keys
};

// 1/sqrt(d) where none is given; refuses a scale that is not finite.
double attention_scale(const AttentionShape& shape, std::optional<double> scale);

// The keys that query i of batch entry n may see are the first ones (a mask hides more).
template <class T>
inline Index visible_keys(const AttentionShape& s, const AttentionParams<T>& params, Index n, Index i) {
  Index limit = params.key_lengths.empty() ? s.keys : params.key_lengths[n];
  if (params.causal) limit = std::min(limit, i + 1 + s.keys - s.queries);
  return std::max<Index>(limit, 0);
}

}  // namespace lec7

LEC7_KERNELS(
    // weights (N, heads, Tq, Tk) may be null: not wanted.
    template <class T>
    void attention_forward(const AttentionShape& shape, const AttentionParams<Accumulator<T>>& params, const T* q,
                           const T* k, const T* v, T* y, Accumulator<T>* lse, T* weights);

    // dq, dk and dv may be null: not wanted.
    template <class T>
    void attention_backward(const AttentionShape& shape, const AttentionParams<Accumulator<T>>& params, const T* dy,
                            const T* q, const T* k, const T* v, const T* y, const Accumulator<T>* lse, T* dq, T* dk,
                            T* dv);)
