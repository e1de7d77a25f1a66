// Scaled dot-product attention. Forward is two products of T x T x d for each head, backward five (the scores are
// computed again); causal attention needs half of each.
#include "bench.h"
#include "lec7/attention.h"

namespace lec7::bench {
namespace {

// On a GPU also of float16 and bfloat16: `T`, whose name comes after the op's.
template <class T = float>
void attention(Index n, Index heads, Index queries, Index keys, Index d, bool causal, const std::string& type = "") {
  const std::string kind = type + (causal ? "/causal" : "/full");
  const Shape q_shape{n, heads, queries, d}, kv_shape{n, heads, keys, d};
  Numbers numbers{{"N", n}, {"heads", heads}, {"T", keys}, {"d", d}};
  if (queries != keys) numbers.emplace_back("queries", queries);
  const double product = 2.0 * n * heads * queries * keys * d / (causal ? 2 : 1);
  const auto size = static_cast<double>(sizeof(T));
  const double q_bytes = size * q_shape.size(), kv_bytes = size * kv_shape.size();
  const AttentionShape shape = attention_shape(q_shape, kv_shape, kv_shape, false);
  const AttentionParams<float> params{
      .scale = static_cast<float>(attention_scale(shape, {})), .causal = causal, .mask = {}, .key_lengths = {}};
  add("attention_forward" + kind, numbers, [=](benchmark::State& state) {
    ArrayOf<T> q(q_shape), k(kv_shape), v(kv_shape), y(shape.y);
    Array lse(shape.lse);
    measure(state, {2 * product, 2 * q_bytes + 2 * kv_bytes, is_half<T>}, [&] {
      LEC7_PICK(attention_forward<T>)
      (shape, params, q.data(), k.data(), v.data(), y.data(), lse.data(), nullptr);
    });
  });
  if (queries != keys) return;
  add("attention_backward" + kind, numbers, [=](benchmark::State& state) {
    ArrayOf<T> q(q_shape), k(kv_shape), v(kv_shape), y(shape.y), dy(shape.y), dq(q_shape), dk(kv_shape), dv(kv_shape);
    Array lse(shape.lse);
    LEC7_PICK(attention_forward<T>)
    (shape, params, q.data(), k.data(), v.data(), y.data(), lse.data(), nullptr);
    measure(state, {5 * product, 4 * q_bytes + 4 * kv_bytes, is_half<T>}, [&] {
      LEC7_PICK(attention_backward<T>)
      (shape, params, dy.data(), q.data(), k.data(), v.data(), y.data(), lse.data(), dq.data(), dk.data(), dv.data());
    });
  });
}

const Rows rows([] {
  attention(8, 8, 256, 256, 64, true);
  attention(2, 12, 1024, 1024, 64, true);
  attention(4, 16, 2048, 2048, 64, true);
  attention(1, 8, 4096, 4096, 64, false);
  attention(4, 16, 1, 2048, 64, false);  // the next word's query
#if defined(LEC7_BACKEND_CUDA)
  attention<float16>(4, 16, 2048, 2048, 64, true, "/float16");
  attention<bfloat16>(4, 16, 2048, 2048, 64, true, "/bfloat16");
  attention<bfloat16>(2, 4, 32, 32, 64, true, "/bfloat16");  // small enough for the host
#endif
});

}  // namespace
}  // namespace lec7::bench
