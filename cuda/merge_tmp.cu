#include "kernel.h"
#include "lec7/merge.h"
namespace lec7::cuda {
namespace {
__global__ void add_kernel(Index n, float* y, const float* x) { LEC7_STRIDED(i, n) y[i] += x[i]; }
}  // namespace
template <>
void add(Index n, float* y, const float* x) {
  launch("add_kernel", add_kernel, strided_grid(n), n, y, x);
}
}  // namespace lec7::cuda
