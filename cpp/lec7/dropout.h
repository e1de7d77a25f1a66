// dropout: y[e] = x[e] / (1 - p) if r[e] >= floor(p 2^32) else 0; backward is the same on dy.
//
// r[e] is word e mod 4 of Philox4x32-10 (Salmon et al. 2011) with the counter (e div 4, offset) and the key seed, each
// of them two 32-bit words, the low one first: the mask is drawn again instead of stored, and every backend draws the
// same one. With whole_channels e = n C + c for x (N, ..., C).
#pragma once

#include <cstdint>

#include "lec7/array.h"
#include "lec7/isa.h"
#include "lec7/number.h"

namespace lec7 {

struct Dropout {
  Index rows, repeats, channels;  // the mask is (rows, channels), each row of it used `repeats` times
  double p;
  Number<std::uint64_t> seed, offset;

  std::uint32_t threshold() const { return static_cast<std::uint32_t>(p * 4294967296.0); }
};
Dropout dropout_shape(const Shape& x, double p, Number<std::uint64_t> seed, Number<std::uint64_t> offset,
                      bool whole_channels);

}  // namespace lec7

LEC7_KERNELS(template <class T> void dropout(const Dropout& shape, const T* x, T* y);

             // Blocks [first, first + count) of the stream (seed, offset), four words each. Also for the tests.
             void philox(std::uint64_t seed, std::uint64_t offset, std::uint64_t first, Index count,
                         std::uint32_t* words);)
