// What the kernels of attention share: what they need of the shape and the parameters, and which keys a query sees.
// attention.cu has those of float32, and of a few queries in every type; attention_half.cu those of tensor cores.
#pragma once

#include "lec7/attention.h"

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "kernel.h"
#include "lengths.h"

namespace lec7::cuda {
namespace attention {

constexpr Index kFewQueries = 4;  // up to which a tile would be mostly empty
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Problem {
  Index heads, queries, keys;
  int d, dv;
  float scale;
  bool causal;
  bool aligned;  // rows of all arrays begin on a boundary of four numbers
  const bool* keep;
  const float* add;
  Index stride[4];
  const Index* key_lengths;  // null: all keys
};

// Does each row of these arrays (null: there is none) begin on a boundary of `numbers`?
template <class T>
bool on_boundaries(const AttentionShape& s, Index numbers, std::initializer_list<const T*> arrays) {
  const auto apart = static_cast<std::uintptr_t>(numbers) * sizeof(T);
  return s.d % numbers == 0 && s.dv % numbers == 0 && std::all_of(arrays.begin(), arrays.end(), [&](const T* array) {
           return reinterpret_cast<std::uintptr_t>(array) % apart == 0;
         });
}

inline Problem problem_of(const AttentionShape& s, const AttentionParams<float>& params, Lengths& lengths,
                          bool aligned) {
  Problem p{s.heads,      s.queries,     s.keys,  static_cast<int>(s.d), static_cast<int>(s.dv),
            params.scale, params.causal, aligned, params.mask.keep,      params.mask.add,
            {},           lengths.data()};
  std::copy_n(params.mask.stride, 4, p.stride);
  return p;
}

inline unsigned blocks_of(Index count) { return static_cast<unsigned>(std::min<Index>(count, 0xffffffff)); }

__device__ inline int least(Index a, Index b) { return static_cast<int>(a < b ? a : b); }

// One head of one batch entry: what its queries see.
struct Head {
  const Problem& p;
  Index length, mask_at;

  // Each of them has a block at least: their numbers fit in 32 bits, which are divided faster.
  __device__ Head(const Problem& problem, Index index) : p(problem) {
    const auto heads = static_cast<unsigned>(p.heads), i = static_cast<unsigned>(index);
    length = p.key_lengths == nullptr ? p.keys : p.key_lengths[i / heads];
    mask_at = i / heads * p.stride[0] + i % heads * p.stride[1];
  }

  // Query i may see the keys before this one.
  __device__ Index visible(Index i) const {
    const Index limit = p.causal ? i + 1 + p.keys - p.queries : length;
    return limit < 0 ? 0 : limit < length ? limit : length;
  }
  // Do the queries from i on see all of the keys before `end`, without a mask?
  __device__ bool sees_all(Index i, Index end) const {
    return p.keep == nullptr && p.add == nullptr && end <= visible(i);
  }
};

// For up to kFewQueries queries; `T` float, float16 or bfloat16.
template <class T>
void few_forward(const AttentionShape& s, const AttentionParams<float>& params, const T* q, const T* k, const T* v,
                 T* y, float* lse);
template <class T>
void few_backward(const AttentionShape& s, const AttentionParams<float>& params, const T* dy, const T* q, const T* k,
                  const T* v, const T* y, const float* lse, T* dq, T* dk, T* dv);

}  // namespace attention

template <>
void attention_forward(const AttentionShape&, const AttentionParams<float>&, const float* q, const float* k,
                       const float* v, float* y, float* lse, float* weights);
template <>
void attention_backward(const AttentionShape&, const AttentionParams<float>&, const float* dy, const float* q,
                        const float* k, const float* v, const float* y, const float* lse, float* dq, float* dk,
                        float* dv);

}  // namespace lec7::cuda
