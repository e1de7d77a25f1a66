// Compiled once for each ISA, as the kernels are.
#include "cpu/simd.h"
#include "peak.h"

namespace lec7::cpu::LEC7_ISA {

Index fma_rounds(Index rounds) {
  // Latency 4 on 2 ports needs 8 in flight, 5 on 2 needs 10; 12 fit the 16 registers of AVX2 and the baseline.
  constexpr int kChains = 12;
  Vec<float> chain[kChains];
  const Vec<float> a = broadcast(0.999f), b = broadcast(0.001f);
  for (int i = 0; i < kChains; ++i) {
    chain[i] = broadcast(static_cast<float>(i));
    asm volatile("" : "+x"(chain[i]));  // GCC would see that 1 * 0.999 + 0.001 stays 1, and leave that chain out
  }
  for (Index r = 0; r < rounds; ++r) {
    LEC7_UNROLL
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * a + b;
  }
  for (int i = 0; i < kChains; ++i) asm volatile("" : : "x"(chain[i]));  // the results are wanted
  return rounds * kChains * W<float> * 2;
}

}  // namespace lec7::cpu::LEC7_ISA
