#include "lec7/indices.h"

namespace lec7 {

void check_indices(std::string_view op, const Named& array, const Indices& indices, Index begin, Index end,
                   std::optional<Index> ignored) {
  const Index bad = LEC7_PICK(first_outside)(indices, begin, end, ignored ? &*ignored : nullptr);
  if (bad < 0) return;
  fail_at(op, array, bad, std::to_string(indices[bad]),
          "outside [" + std::to_string(begin) + ", " + std::to_string(end) + ")");
}

template <class T>
void check_probabilities(std::string_view op, const Named& array, const T* values) {
  const Index bad = LEC7_PICK(first_improbable<T>)(array.shape.size(), values);
  if (bad >= 0) fail_at(op, array, bad, std::to_string(values[bad]), "outside [0, 1]");
}
template void check_probabilities(std::string_view, const Named&, const float*);
template void check_probabilities(std::string_view, const Named&, const double*);

}  // namespace lec7
