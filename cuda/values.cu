#include "values.h"

#include <mutex>
#include <new>
#include <set>
#include <string>

#include "kernel.h"
#include "lec7/indices.h"
#include "reduce.h"

namespace lec7::cuda {
namespace {

// What a message says of a check. It travels with the kernel and comes back with the note, so that nothing of it is
// kept here for a graph that may be replayed later.
struct Rule {
  const char *op, *name;  // of Notes::names
  Shape shape;
  Index begin, end;  // [begin, end) of whole numbers, [begin, end] of others
  bool whole_numbers;
};

// Written by the device, read by the host: in memory of the host that both can address.
struct Note {
  int noted;  // 0: nothing was
  Rule rule;
  Index position;  // of the first bad value
  double value;    // or `whole`, of an integer
  Index whole;
};

struct Notes {
  std::mutex mutex;
  std::set<std::string, std::less<>> names;  // of ops and their arguments: as many as there are in the code
  Note* note = nullptr;
};

Notes& notes() {
  static Notes all;  // never destroyed before the driver is
  const std::lock_guard lock(all.mutex);
  if (all.note == nullptr) {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, sizeof(Note), cudaHostAllocMapped), "cudaHostAlloc");
    all.note = new (memory) Note{};
  }
  return all;
}

const char* kept(std::string_view name) {
  Notes& all = notes();
  const std::lock_guard lock(all.mutex);
  auto found = all.names.find(name);
  if (found == all.names.end()) found = all.names.emplace(name).first;
  return found->c_str();
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
__device__ void note_bad(const T* values, Index position, const Rule& rule, Note* note) {
  if (note->noted != 0) return;  // by an earlier check
  note->rule = rule;
  note->position = position;
  if constexpr (std::is_integral_v<T>) note->whole = values[position];
  else note->value = values[position];
  __threadfence_system();  // who sees this sees the rest
  note->noted = 1;
}

// Where there is one block, it notes the first bad value; otherwise firsts (blocks) has that of each block, or n.
template <class T, class Bad>
__global__ void __launch_bounds__(kThreads)
    find_bad_kernel(const T* values, Index n, Bad bad, Index* firsts, Rule rule, Note* note) {
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
    note_first_kernel(const T* values, Index n, const Index* firsts, Index blocks, Rule rule, Note* note) {
  Index mine = n;
  for (Index i = threadIdx.x; i < blocks; i += kThreads) mine = firsts[i] < mine ? firsts[i] : mine;
  const Index first = first_of(mine);
  if (threadIdx.x == 0 && first < n) note_bad(values, first, rule, note);
}

template <class T, class Bad>
void note_first(const T* values, Index n, Bad bad, const Rule& rule) {
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
  if (all.note->noted == 0) return;
  const Note bad = *all.note;
  *all.note = {};
  lock.unlock();
  const Rule& rule = bad.rule;
  const std::string range = "outside [" + std::to_string(rule.begin) + ", " + std::to_string(rule.end);
  if (rule.whole_numbers) {
    fail_at(rule.op, {rule.name, rule.shape}, bad.position, std::to_string(bad.whole), range + ")");
  }
  fail_at(rule.op, {rule.name, rule.shape}, bad.position, std::to_string(bad.value), range + "]");
}

}  // namespace lec7::cuda

namespace lec7 {

using namespace cuda;

void check_indices(std::string_view op, const Named& array, const Indices& indices, Index begin, Index end,
                   std::optional<Index> ignored) {
  const Rule rule{kept(op), kept(array.name), array.shape, begin, end, true};
  const OutsideRange bad{begin, end, ignored.value_or(0), ignored.has_value()};
  if (indices.wide) note_first(static_cast<const std::int64_t*>(indices.data), indices.count, bad, rule);
  else note_first(static_cast<const std::int32_t*>(indices.data), indices.count, bad, rule);
}

template <class T>
void check_probabilities(std::string_view op, const Named& array, const T* values) {
  note_first(values, array.shape.size(), Improbable{}, Rule{kept(op), kept(array.name), array.shape, 0, 1, false});
}
template void check_probabilities(std::string_view, const Named&, const float*);

}  // namespace lec7
