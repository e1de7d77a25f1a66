// One compare a number: the pass is bound by reading them.
#include "lec7/indices.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "lec7/memory.h"
#include "lec7/parallel.h"

namespace lec7::cpu::LEC7_ISA {
namespace {

constexpr Index kGrain = 1 << 15;
constexpr Index kBlock = 1 << 10;

template <class I>
Index first_outside_of(const I* values, Index count, Index begin, Index end, const Index* ignored) {
  using U = std::make_unsigned_t<I>;
  // What no I can reach cannot be exceeded by one either; then end - begin fits U.
  const Index most = std::numeric_limits<I>::max();
  const U first = static_cast<U>(begin);
  const U size = static_cast<U>(end) - first;
  const bool unbounded = end > most;
  const bool can_ignore = ignored != nullptr && *ignored <= most && *ignored >= std::numeric_limits<I>::min();
  const I skipped = can_ignore ? static_cast<I>(*ignored) : I{};
  const auto outside = [&](I v) {
    const bool beyond = unbounded ? v < static_cast<I>(begin) : static_cast<U>(v) - first >= size;
    return beyond & !(can_ignore & (v == skipped));
  };
  std::atomic<Index> found{count};
  parallel_ranges(count, kGrain, [&](Index from, Index to) {
    for (Index block = from; block < to; block += kBlock) {
      const Index stop = std::min(block + kBlock, to);
      // No early exit inside a block, so that it vectorizes.
      int any = 0;
      for (Index i = block; i < stop; ++i) any |= outside(values[i]);
      if (any == 0) continue;
      const Index at = std::find_if(values + block, values + stop, outside) - values;
      Index earliest = found.load();
      while (at < earliest && !found.compare_exchange_weak(earliest, at)) {
      }
      return;
    }
  });
  return found < count ? found.load() : -1;
}

}  // namespace

Index first_outside(const Indices& indices, Index begin, Index end, const Index* ignored) {
  return indices.wide
             ? first_outside_of(static_cast<const std::int64_t*>(indices.data), indices.count, begin, end, ignored)
             : first_outside_of(static_cast<const std::int32_t*>(indices.data), indices.count, begin, end, ignored);
}

template <class T>
Index first_improbable(Index n, const T* values) {
  const auto improbable = [](T v) { return !(v >= 0 && v <= 1); };
  const Index chunks = (n + kGrain - 1) / kGrain;
  memory::Buffer<Index> found(chunks);
  parallel_ranges(n, kGrain, [&](Index begin, Index end) {
    const T* const at = std::find_if(values + begin, values + end, improbable);
    found[begin / kGrain] = at == values + end ? -1 : at - values;
  });
  for (Index i = 0; i < chunks; ++i) {
    if (found[i] >= 0) return found[i];
  }
  return -1;
}
template Index first_improbable(Index, const float*);
template Index first_improbable(Index, const double*);

}  // namespace lec7::cpu::LEC7_ISA
