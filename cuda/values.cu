#include "values.h"

#include <stdexcept>
#include <vector>

#include "kernel.h"
#include "lec7/indices.h"

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
  std::vector<Rule> rules;
  Note* note = nullptr;
};

Notes& notes() {
  static Notes all;  // never destroyed before the driver is
  if (all.note == nullptr) {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, sizeof(Note), cudaHostAllocMapped), "cudaHostAlloc");
    all.note = static_cast<Note*>(memory);
    *all.note = {};
  }
  return all;
}

int rule_number(std::string_view op, const Named& array, const std::string& what, bool whole_numbers) {
  std::vector<Rule>& rules = notes().rules;
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

// One block, so that the first bad value is found whatever the order: thread t looks at t, t + kThreads, ...
template <class T, class Bad>
__global__ void __launch_bounds__(kThreads) note_first_kernel(const T* values, Index n, Bad bad, int rule, Note* note) {
  LEC7_SHARED(first, Index[kThreads]);
  Index mine = n;
  for (Index i = threadIdx.x; i < n && mine == n; i += kThreads) {
    if (bad(values[i])) mine = i;
  }
  first[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int t = 1; t < kThreads; ++t) mine = first[t] < mine ? first[t] : mine;
  if (mine < n && note->rule == 0) {
    note->position = mine;
    note->value = static_cast<double>(values[mine]);
    note->whole = static_cast<Index>(values[mine]);
    note->rule = rule;
  }
}

template <class T, class Bad>
void note_first(const T* values, Index n, Bad bad, int rule) {
  launch("note_first_kernel", note_first_kernel<T, Bad>, {n > 0 ? 1u : 0u, kThreads}, values, n, bad, rule,
         notes().note);
}

}  // namespace

void throw_bad_values() {
  Note* const note = notes().note;
  if (note->rule == 0) return;
  const Note bad = *note;
  *note = {};
  const Rule& rule = notes().rules[static_cast<std::size_t>(bad.rule - 1)];
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
