#include "lec7/indices.h"

namespace lec7 {

namespace {

std::string outside(Index begin, Index end) {
  return "outside [" + std::to_string(begin) + ", " + std::to_string(end) + ")";
}

}  // namespace

std::vector<Index> checked_on_host(std::string_view op, const Named& array, const Indices& indices, Index begin,
                                   Index end) {
  std::vector<Index> result(static_cast<std::size_t>(indices.count));
  for (Index i = 0; i < indices.count; ++i) {
    const Index value = indices[i];
    if (value < begin || value >= end) fail_at(op, array, i, std::to_string(value), outside(begin, end));
    result[static_cast<std::size_t>(i)] = value;
  }
  return result;
}

#if !defined(LEC7_BACKEND_CUDA)  // whose values are on the device: cuda/values.cu

void check_indices(std::string_view op, const Named& array, const Indices& indices, Index begin, Index end,
                   std::optional<Index> ignored) {
  const Index bad = LEC7_PICK(first_outside)(indices, begin, end, ignored ? &*ignored : nullptr);
  if (bad < 0) return;
  fail_at(op, array, bad, std::to_string(indices[bad]), outside(begin, end));
}

template <class T>
void check_probabilities(std::string_view op, const Named& array, const T* values) {
  const Index bad = LEC7_PICK(first_improbable<T>)(array.shape.size(), values);
  if (bad >= 0) fail_at(op, array, bad, std::to_string(values[bad]), "outside [0, 1]");
}
template void check_probabilities(std::string_view, const Named&, const float*);
template void check_probabilities(std::string_view, const Named&, const double*);

#endif

}  // namespace lec7
