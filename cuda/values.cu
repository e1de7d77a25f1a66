#include "values.h"

#include <mutex>
#include <stdexcept>
#include <vector>

#include "kernel.h"
#include "lec7/indices.h"
#include "reduce.h"

namespace lec7::cuda {
namespace {

// Written by the device, read by the host: in memory of the host that both can address.
struct Note {
  int rule;        // 0: nothing was noted
  Index position;  // of the first bad value
  double value;    // or `whole`, of an integer
  Index whole;
};

struct Rule {
  std::string op, name, what;
  Shape shape;
  bool whole_numbers;
};

// Rules are kept, one for each op and shape: a captured graph refers to them again.
struct Notes {
  std::mutex mutex;
  std::vector<Rule> rules;
  Note* note = nullptr;
};

Notes& notes() {
  static Notes all;  // never destroyed before the driver is
  const std::lock_guard lock(all.mutex);
  if (all.note == nullptr) {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, sizeof(Note), cudaHostAllocMapped), "cudaHostAlloc");
    all.note = static_cast<Note*>(memory);
    *all.note = {};
  }
  return all;
}

int rule_number(std::string_view op, const Named& array, const std::string& what, bool whole_numbers) {
  Notes& all = notes();
  const std::lock_guard lock(all.mutex);
  std::vector<Rule>& rules = all.rules;
  for (std::size_t i = 0; i < rules.size(); ++i) {
    const Rule& rule = rules[i];
    if (rule.op == op && rule.name == array.name && rule.what == what && rule.shape == array.shape) {
      return static_cast<int>(i + 1);
    }
  }
  rules.push_back({std::string(op), std::string(array.name), what, array.shape, whole_numbers});
  return static_cast<int>(rules.size());
}

struct OutsideRange {
  Index begin, end, ignored;
  bool can_ignore;
  __device__ bool operator()(Index v) const { return (v < begin || v >= end) && !(can_ignore && v == ignored); }
};
struct Improbable {
  __device__ bool operator()(float v) const { return !(v >= 0 && v <= 1); }
};

constexpr Index kRange = 1 << 14;  // values of a block

// The smallest of the threads' positions.
__device__ Index first_of(Index mine) {
  return block_reduce<kThreads>(mine, [](Index a, Index b) { return a < b ? a : b; });
}

template <class T>
__device__ void note_bad(const T* values, Index position, int rule, Note* note) {
  if (note->rule != 0) return;  // of an earlier check
  note->position = position;
  if constexpr (std::is_integral_v<T>) note->whole = values[position];
  else note->value = values[position];
  __threadfence_system();  // who sees the rule sees the rest
  note->rule = rule;
}

// Where there is one block, it notes the first bad value; otherwise firsts (blocks) has that of each block, or n.
template <class T, class Bad>
__global__ void __launch_bounds__(kThreads)
    find_bad_kernel(const T* values, Index n, Bad bad, Index* firsts, int rule, Note* note) {
  const Index begin = blockIdx.x * kRange, end = begin + kRange < n ? begin + kRange : n;
  Index mine = n;
#pragma unroll 4
  for (Index i = begin + threadIdx.x; i < end; i += kThreads) {
    if (bad(values[i]) && i < mine) mine = i;
  }
  const Index first = first_of(mine);
  if (threadIdx.x != 0) return;
  if (gridDim.x > 1) firsts[blockIdx.x] = first;
  else if (first < n) note_bad(values, first, rule, note);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    note_first_kernel(const T* values, Index n, const Index* firsts, Index blocks, int rule, Note* note) {
  Index mine = n;
  for (Index i = threadIdx.x; i < blocks; i += kThreads) mine = firsts[i] < mine ? firsts[i] : mine;
  const Index first = first_of(mine);
  if (threadIdx.x == 0 && first < n) note_bad(values, first, rule, note);
}

template <class T, class Bad>
void note_first(const T* values, Index n, Bad bad, int rule) {
  const Index blocks = ceil_div(n, kRange);
  Buffer<Index> firsts(blocks > 1 ? blocks : 0);
  launch("find_bad_kernel", find_bad_kernel<T, Bad>, {static_cast<unsigned>(blocks), kThreads}, values, n, bad,
         firsts.data(), rule, notes().note);
  if (blocks <= 1) return;
  launch("note_first_kernel", note_first_kernel<T>, {1, kThreads}, values, n, firsts.data(), blocks, rule,
         notes().note);
}

}  // namespace

void throw_bad_values() {
  Notes& all = notes();
  std::unique_lock lock(all.mutex);
  if (all.note->rule == 0) return;
  const Note bad = *all.note;
  *all.note = {};
  const Rule rule = all.rules[static_cast<std::size_t>(bad.rule - 1)];
  lock.unlock();
  const std::string value = rule.whole_numbers ? std::to_string(bad.whole) : std::to_string(bad.value);
  fail_at(rule.op, {rule.name, rule.shape}, bad.position, value, rule.what);
}

}  // namespace lec7::cuda

namespace lec7 {

using namespace cuda;

void check_indices(std::string_view op, const Named& array, const Indices& indices, Index begin, Index end,
                   std::optional<Index> ignored) {
  const int rule = rule_number(op, array, "outside [" + std::to_string(begin) + ", " + std::to_string(end) + ")", true);
  const OutsideRange bad{begin, end, ignored.value_or(0), ignored.has_value()};
  if (indices.wide) note_first(static_cast<const std::int64_t*>(indices.data), indices.count, bad, rule);
  else note_first(static_cast<const std::int32_t*>(indices.data), indices.count, bad, rule);
}

template <class T>
void check_probabilities(std::string_view op, const Named& array, const T* values) {
  note_first(values, array.shape.size(), Improbable{}, rule_number(op, array, "outside [0, 1]", false));
}
template void check_probabilities(std::string_view, const Named&, const float*);

}  // namespace lec7
