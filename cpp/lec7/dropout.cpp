#include "lec7/dropout.h"

namespace lec7 {

Dropout dropout_shape(const Shape& x, double p, Number<std::uint64_t> seed, Number<std::uint64_t> offset,
                      bool whole_channels) {
  if (!(p >= 0 && p < 1)) fail("dropout", "p is in [0, 1); got " + std::to_string(p));
  if (!whole_channels) return {1, 1, x.size(), p, seed, offset};
  if (x.rank() < 2)
    fail("dropout", "whole_channels needs an axis of examples and one of channels", {{"x (N, ..., C)", x}});
  return {x[0], x.size(1, x.rank() - 1), x.back(), p, seed, offset};
}

}  // namespace lec7
