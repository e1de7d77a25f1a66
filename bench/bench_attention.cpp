// Scaled dot-product attention. Forward is two products of T x T x d for each head, backward five (the scores are
// computed again); causal attention needs half of each.
#include "bench.h"
#include "lec7/attention.h"

namespace lec7::bench {
namespace {

void attention(Index n, Index heads, Index steps, Index d, bool causal) {
  const std::string kind = causal ? "/causal" : "/full";
  const Numbers numbers{{"N", n}, {"heads", heads}, {"T", steps}, {"d", d}};
  const Shape qkv{n, heads, steps, d};
  const double product = 2.0 * n * heads * steps * steps * d / (causal ? 2 : 1);
  const AttentionShape shape = attention_shape(qkv, qkv, qkv, false);
  const AttentionParams<float> params{
      .scale = static_cast<float>(attention_scale(shape, {})), .causal = causal, .mask = {}, .key_lengths = {}};
  add("attention_forward" + kind, numbers, [=](benchmark::State& state) {
    Array q(qkv), k(qkv), v(qkv), y(shape.y), lse(shape.lse);
    measure(state, {2 * product}, [&] {
      LEC7_PICK(attention_forward<float>)
      (shape, params, q.data(), k.data(), v.data(), y.data(), lse.data(), nullptr);
    });
  });
  add("attention_backward" + kind, numbers, [=](benchmark::State& state) {
    Array q(qkv), k(qkv), v(qkv), y(shape.y), lse(shape.lse), dy(shape.y), dq(qkv), dk(qkv), dv(qkv);
    LEC7_PICK(attention_forward<float>)
    (shape, params, q.data(), k.data(), v.data(), y.data(), lse.data(), nullptr);
    measure(state, {5 * product}, [&] {
      LEC7_PICK(attention_backward<float>)
      (shape, params, dy.data(), q.data(), k.data(), v.data(), y.data(), lse.data(), dq.data(), dk.data(), dv.data());
    });
  });
}

}  // namespace

void add_benchmarks() {
  attention(8, 8, 256, 64, true);
  attention(2, 12, 1024, 64, true);
  attention(1, 8, 4096, 64, false);
}

}  // namespace lec7::bench
