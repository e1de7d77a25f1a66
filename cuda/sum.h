// One number from many: each block sums a range of kRange, then one block sums the ranges; where there is one range,
// that is all. Both orders depend on the number of terms alone.
#pragma once

#include "elementwise.h"
#include "reduce.h"

namespace lec7::cuda {

inline constexpr Index kRange = 1 << 12;

template <int width, class Sum, class Term, class Finish>
__global__ void __launch_bounds__(kThreads) sum_ranges_kernel(Index n, Term term, Sum* partial, Finish finish) {
  const Index begin = blockIdx.x * kRange, end = begin + kRange < n ? begin + kRange : n;
  Sum sum{};
  const Index whole = begin + (end - begin) / width * width;
#pragma unroll 4
  for (Index i = begin + static_cast<Index>(threadIdx.x) * width; i < whole; i += kThreads * width) {
    sum = sum + term.template operator()<width>(i);
  }
  if (const Index i = whole + threadIdx.x; width > 1 && i < end) sum = sum + term.template operator()<1>(i);
  sum = block_reduce<kThreads>(sum, Add{});
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) finish(sum);
  else partial[blockIdx.x] = sum;
}

template <class Sum, class Finish>
__global__ void __launch_bounds__(kThreads) sum_partials_kernel(Index n, const Sum* partial, Finish finish) {
  Sum sum{};
  for (Index i = threadIdx.x; i < n; i += kThreads) sum = sum + partial[i];
  sum = block_reduce<kThreads>(sum, Add{});
  if (threadIdx.x == 0) finish(sum);
}

// Calls finish(the sum over [0, n) of the terms) in one thread; Sum is double or Pair<double>. A term is
//
//   template <int width> __device__ Sum operator()(Index i) const;    // the sum of i ... i + width - 1
template <class Sum, int width = 1, class Term, class Finish>
void sum_all(const KernelName& name, Index n, const Term& term, const Finish& finish) {
  const Index ranges = n > kRange ? ceil_div(n, kRange) : 1;
  Buffer<Sum> partial(ranges > 1 ? ranges : 0);
  launch(name, sum_ranges_kernel<width, Sum, Term, Finish>, {static_cast<unsigned>(ranges), kThreads}, n, term,
         partial.data(), finish);
  if (ranges == 1) return;
  launch("sum_partials_kernel", sum_partials_kernel<Sum, Finish>, {1, kThreads}, ranges, partial.data(), finish);
}

}  // namespace lec7::cuda
