// Attention with the whole matrix of scores written out; the tape differentiates it.
#include "lec7/attention.h"

#include "tape.h"

namespace lec7::test {
namespace {

enum class Mask { none, keep, add };

struct Case {
  Index n, heads, queries, keys, d, dv;
  bool causal = false;
  std::vector<Index> key_lengths = {};
  Mask mask = Mask::none;
  Shape mask_shape = {};

  std::string str() const {
    return text("q (", n, ", ", heads, ", ", queries, ", ", d, "), keys=", keys, ", dv=", dv, causal ? ", causal" : "",
                key_lengths.empty() ? "" : ", lengths", ", mask ", static_cast<int>(mask), " ", mask_shape.str());
  }
};

// The mask's element for (n, head, i, j): its axes are the last ones, and one of size 1 stands for all.
Index mask_index(const Shape& mask, const Index (&at)[4]) {
  Index index = 0;
  for (int axis = 0; axis < mask.rank(); ++axis) {
    index = index * mask[axis] + (mask[axis] == 1 ? 0 : at[4 - mask.rank() + axis]);
  }
  return index;
}

constexpr double kHidden = -std::numeric_limits<double>::infinity();

template <class T>
void check_attention(Random& random, const Case& test) {
  const Trying what(test.str());
  const auto& [N, heads, Tq, Tk, d, dv, causal, key_lengths, mask, mask_shape] = test;
  const AttentionShape shape = attention_shape({N, heads, Tq, d}, {N, heads, Tk, d}, {N, heads, Tk, dv}, true);
  const Array<T> q = random.array<T>(N * heads * Tq * d, -2, 2), k = random.array<T>(N * heads * Tk * d, -2, 2);
  const Array<T> v = random.array<T>(N * heads * Tk * dv), dy = random.array<T>(shape.y.size());
  const T scale = static_cast<T>(attention_scale(shape, {}));
  const Index mask_size = mask == Mask::none ? 0 : mask_shape.size();
  const Array<bool> keep(mask_size);
  std::vector<double> added(static_cast<std::size_t>(mask_size));
  std::vector<double> kept(static_cast<std::size_t>(mask_size));
  for (Index i = 0; i < mask_size; ++i) {
    kept[i] = random.below(3) > 0;
    added[i] = random.below(4) == 0 ? kHidden : static_cast<T>(random.uniform(-2, 2));
  }
  const Array<bool> keep_given(kept);
  const Array<T> add_given(added);

  Tape tape;
  const Vars q_var = tape.variables(q), k_var = tape.variables(k), v_var = tape.variables(v);
  Vars y;
  std::vector<double> lse, weights;
  for (Index row = 0; row < shape.rows(); ++row) {
    const Index n = row / (heads * Tq), head = row / Tq % heads, i = row % Tq;
    Vars p;
    std::vector<Index> seen;
    Var sum;
    for (Index j = 0; j < Tk; ++j) {
      const Index at[] = {n, head, i, j};
      double added_here = 0;
      if (mask == Mask::keep && kept[mask_index(mask_shape, at)] == 0) added_here = kHidden;
      if (mask == Mask::add) added_here = added[mask_index(mask_shape, at)];
      if (causal && j > i + Tk - Tq) added_here = kHidden;
      if (!key_lengths.empty() && j >= key_lengths[n]) added_here = kHidden;
      if (added_here == kHidden) continue;
      Var s;
      for (Index e = 0; e < d; ++e) s += q_var[row * d + e] * k_var[((n * heads + head) * Tk + j) * d + e];
      p.push_back(exp(static_cast<double>(scale) * s + added_here));
      seen.push_back(j);
      sum += p.back();
    }
    lse.push_back(std::log(sum.value));
    std::vector<double> row_weights(static_cast<std::size_t>(Tk));
    Vars row_y(static_cast<std::size_t>(dv));
    for (std::size_t m = 0; m < p.size(); ++m) {
      const Var share = p[m] / sum;
      row_weights[seen[m]] = share.value;
      for (Index e = 0; e < dv; ++e) row_y[e] += share * v_var[((n * heads + head) * Tk + seen[m]) * dv + e];
    }
    weights.insert(weights.end(), row_weights.begin(), row_weights.end());
    y.insert(y.end(), row_y.begin(), row_y.end());
  }
  tape.add(y, dy);
  tape.differentiate();

  const Array<T> y_given(values(y)), lse_given(lse);
  on_every_isa([&] {
    AttentionParams<T> params{scale, causal, {}, key_lengths};
    if (mask != Mask::none) attention_mask_strides(shape, mask_shape, params.mask.stride);
    if (mask == Mask::keep) params.mask.keep = keep_given.data();
    if (mask == Mask::add) params.mask.add = add_given.data();
    const Array<T> got(shape.y.size()), got_lse(shape.lse.size()), got_weights(shape.weights().size());
    LEC7_PICK(attention_forward<T>)
    (shape, params, q.data(), k.data(), v.data(), got.data(), got_lse.data(), got_weights.data());
    check_close(got, values(y), 32);
    check_close(got_lse, lse, 32);
    check_close(got_weights, weights, 32);
    const Array<T> alone(shape.y.size()), alone_lse(shape.lse.size());
    LEC7_PICK(attention_forward<T>)
    (shape, params, q.data(), k.data(), v.data(), alone.data(), alone_lse.data(), nullptr);
    check_close(alone, values(y), 32);
    check_close(alone_lse, lse, 32);
    for (const int wanted : {7, 1, 2, 4}) {
      const Array<T> dq(q.size()), dk(k.size()), dv_(v.size());
      LEC7_PICK(attention_backward<T>)
      (shape, params, dy.data(), q.data(), k.data(), v.data(), y_given.data(), lse_given.data(),
       wanted & 1 ? dq.data() : nullptr, wanted & 2 ? dk.data() : nullptr, wanted & 4 ? dv_.data() : nullptr);
      if (wanted & 1) check_close(dq, tape.gradient(q_var), 128);
      if (wanted & 2) check_close(dk, tape.gradient(k_var), 128);
      if (wanted & 4) check_close(dv_, tape.gradient(v_var), 128);
    }
  });
}

TEST(sizes_around_vectors) {
  with_types([]<class T> {
    Random random;
    for (const Index queries : {1, 3, 5, 7}) {
      for (const Index keys : {1, 4, 15, 16, 17, 33}) {
        for (const Index d : {1, 5, 16, 19}) check_attention<T>(random, {1, 2, queries, keys, d, 36 - d});
      }
    }
    check_attention<T>(random, {2, 3, 13, 11, 8, 8});
    check_attention<T>(random, {1, 1, 100, 131, 3, 2});  // across the blocks of backward
    check_attention<T>(random, {1, 1, 195, 5, 2, 3});    // and those of forward
    check_attention<T>(random, {1, 1, 3, 515, 2, 3});
    check_attention<T>(random, {2, 9, 40, 41, 3, 4});  // heads are tasks
  });
}

TEST(masks) {
  with_types([]<class T> {
    Random random;
    for (const Mask mask : {Mask::keep, Mask::add}) {
      for (const Shape& shape : {Shape{2, 3, 5, 17}, Shape{2, 1, 5, 17}, Shape{1, 3, 1, 17}, Shape{5, 17}, Shape{17},
                                 Shape{3, 5, 1}, Shape{2, 1, 1, 1}, Shape{1}, Shape{}}) {
        check_attention<T>(random, {2, 3, 5, 17, 4, 3, false, {}, mask, shape});
      }
      check_attention<T>(random, {2, 3, 5, 17, 4, 3, true, {9, 17}, mask, {5, 17}});
      check_attention<T>(random, {1, 1, 1, 33, 4, 3, false, {}, mask, {1, 33}});
      check_attention<T>(random, {1, 1, 97, 130, 2, 2, false, {}, mask, {97, 130}});
    }
  });
}

TEST(lengths_and_causality) {
  with_types([]<class T> {
    Random random;
    for (const bool causal : {false, true}) {
      check_attention<T>(random, {3, 2, 7, 7, 4, 5, causal});
      check_attention<T>(random, {3, 2, 5, 9, 4, 5, causal});
      check_attention<T>(random, {3, 2, 9, 5, 4, 5, causal});  // with causal, the first queries see nothing
      check_attention<T>(random, {4, 2, 6, 18, 4, 5, causal, {0, 1, 17, 18}});
      check_attention<T>(random, {3, 1, 1, 20, 3, 3, causal, {0, 20, 7}});
    }
    check_attention<T>(random, {1, 1, 200, 200, 2, 2, true});
  });
}

TEST(empty_arrays) {
  with_types([]<class T> {
    Random random;
    check_attention<T>(random, {0, 2, 3, 4, 5, 6});
    check_attention<T>(random, {2, 0, 3, 4, 5, 6});
    check_attention<T>(random, {2, 2, 0, 4, 5, 6});
    check_attention<T>(random, {2, 2, 3, 0, 5, 6});  // no keys: y = 0, lse = -inf
  });
}

}  // namespace
}  // namespace lec7::test
