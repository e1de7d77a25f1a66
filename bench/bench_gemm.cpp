// c = a b, with either factor stored transposed: a large product, the products of AlexNet's and VGG's first linear
// layer, of LSTMs (a step, the sequence) and of their gradients.
#include "bench.h"
#include "lec7/linear.h"

namespace lec7::bench {
namespace {

void gemm(Index m, Index n, Index k, bool transpose_a = false, bool transpose_b = false) {
  const std::string op = std::string("gemm/") + (transpose_a ? 'T' : 'N') + (transpose_b ? 'T' : 'N');
  add(op, {{"M", m}, {"N", n}, {"K", k}}, [=](benchmark::State& state) {
    const Shape a_shape = transpose_a ? Shape{k, m} : Shape{m, k}, b_shape = transpose_b ? Shape{n, k} : Shape{k, n};
    Array a(a_shape), b(b_shape), c({m, n});
    const MatmulShape shape = matmul_shape(a_shape, b_shape, transpose_a, transpose_b);
    measure(state, {2.0 * m * n * k, 4.0 * (m * k + k * n + m * n)},
            [&] { LEC7_PICK(matmul<float>)(shape, a.data(), transpose_a, b.data(), transpose_b, c.data()); });
  });
}

const Rows rows([] {
  gemm(4096, 4096, 4096);
  gemm(2048, 2048, 2048);
  gemm(512, 512, 512);
  gemm(64, 4096, 9216);
  gemm(64, 9216, 4096, false, true);
  gemm(9216, 4096, 64, true);
  gemm(3136, 256, 2304);
  gemm(50, 2048, 512);
  gemm(2500, 512, 128);
  gemm(2500, 128, 512, false, true);
  gemm(128, 512, 2500, true);
  gemm(1, 4096, 4096);
  gemm(1, 2048, 512);
  gemm(1, 512, 2048, false, true);
});

}  // namespace
}  // namespace lec7::bench
