#include "lec7/indices.h"

namespace lec7 {

std::vector<Index> Indices::copy() const {
  std::vector<Index> result(static_cast<std::size_t>(count));
  for (Index i = 0; i < count; ++i) result[static_cast<std::size_t>(i)] = (*this)[i];
  return result;
}

void fail_at(std::string_view op, const Named& array, Index position, const std::string& value,
             const std::string& what) {
  Shape at = array.shape;
  for (int axis = array.shape.rank() - 1; axis >= 0; --axis) {
    at[axis] = position % array.shape[axis];
    position /= array.shape[axis];
  }
  const std::string name(array.name.substr(0, array.name.find(' ')));
  fail(op, name + " is " + value + " at " + at.str() + ", " + what, {array});
}

void check_indices(std::string_view op, const Named& array, const Indices& indices, Index begin, Index end,
                   std::optional<Index> ignored) {
  const Index bad = LEC7_PICK(first_outside)(indices, begin, end, ignored ? &*ignored : nullptr);
  if (bad < 0) return;
  fail_at(op, array, bad, std::to_string(indices[bad]),
          "outside [" + std::to_string(begin) + ", " + std::to_string(end) + ")");
}

}  // namespace lec7
