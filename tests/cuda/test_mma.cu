// Tensor cores against a plain product. Where an element lies is written down here a second time, in the words of the
// PTX ISA (8.7, 9.7.14.5.7 and 9.7.14.5.8), not as mma.h has it.
#include "mma.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "device.h"

namespace lec7::test {
namespace {

using namespace cuda;

struct Place2 {
  int row, column;
};

// c0 ... c3 of both shapes: "row = groupID for c0 and c1, groupID + 8 for c2 and c3; col = (threadID_in_group * 2) +
// (i & 0x1)".
__host__ __device__ inline Place2 place_of_c(int lane, int i) {
  return {(lane >> 2) + (i < 2 ? 0 : 8), (lane % 4) * 2 + (i & 1)};
}
// tf32: "row = groupID for a0 and a2, groupID + 8 for a1 and a3; col = threadID_in_group for a0 and a1,
// threadID_in_group + 4 for a2 and a3".
__host__ __device__ inline Place2 place_of_tf32_a(int lane, int i) {
  return {(lane >> 2) + (i == 0 || i == 2 ? 0 : 8), lane % 4 + (i < 2 ? 0 : 4)};
}
// "row = threadID_in_group for b0, threadID_in_group + 4 for b1; col = groupID".
__host__ __device__ inline Place2 place_of_tf32_b(int lane, int i) { return {lane % 4 + (i == 0 ? 0 : 4), lane >> 2}; }
// bf16 and f16: "row = groupID for ai where 0 <= i < 2 || 4 <= i < 6, groupID + 8 otherwise; col = (threadID_in_group *
// 2) + (i & 0x1) for ai where i < 4, (threadID_in_group * 2) + (i & 0x1) + 8 for ai where i >= 4".
__host__ __device__ inline Place2 place_of_16bit_a(int lane, int i) {
  return {(lane >> 2) + ((0 <= i && i < 2) || (4 <= i && i < 6) ? 0 : 8), (lane % 4) * 2 + (i & 1) + (i < 4 ? 0 : 8)};
}
// "row = (threadID_in_group * 2) + (i & 0x1) for bi where i < 2, (threadID_in_group * 2) + (i & 0x1) + 8 for bi where
// i >= 2; col = groupID".
__host__ __device__ inline Place2 place_of_16bit_b(int lane, int i) {
  return {(lane % 4) * 2 + (i & 1) + (i < 2 ? 0 : 8), lane >> 2};
}

// One product for each warp: a (16, K), b (K, 8), d (16, 8), row by row.
__global__ void tf32_kernel(const float* a, const float* b, float* d) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float x[4], y[2], sum[4];
  for (int i = 0; i < 4; ++i) {
    const Place2 p = place_of_tf32_a(lane, i), c = place_of_c(lane, i);
    x[i] = round_to_tf32(a[128 * warp + 8 * p.row + p.column]);
    sum[i] = d[128 * warp + 8 * c.row + c.column];
  }
  for (int i = 0; i < 2; ++i) {
    const Place2 p = place_of_tf32_b(lane, i);
    y[i] = round_to_tf32(b[64 * warp + 8 * p.row + p.column]);
  }
  mma_tf32(sum, x, y);
  for (int i = 0; i < 4; ++i) {
    const Place2 c = place_of_c(lane, i);
    d[128 * warp + 8 * c.row + c.column] = sum[i];
  }
}

template <class T>
__global__ void kernel_of_16bit(const float* a, const float* b, float* d) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  unsigned x[4], y[2];
  float sum[4];
  const auto at = [&](const float* matrix, int columns, Place2 p) { return matrix[columns * p.row + p.column]; };
  for (int i = 0; i < 4; ++i) {
    x[i] = pack<T>(at(a + 256 * warp, 16, place_of_16bit_a(lane, 2 * i)),
                   at(a + 256 * warp, 16, place_of_16bit_a(lane, 2 * i + 1)));
    const Place2 c = place_of_c(lane, i);
    sum[i] = d[128 * warp + 8 * c.row + c.column];
  }
  for (int i = 0; i < 2; ++i) {
    y[i] = pack<T>(at(b + 128 * warp, 8, place_of_16bit_b(lane, 2 * i)),
                   at(b + 128 * warp, 8, place_of_16bit_b(lane, 2 * i + 1)));
  }
  mma<T>(sum, x, y);
  for (int i = 0; i < 4; ++i) {
    const Place2 c = place_of_c(lane, i);
    d[128 * warp + 8 * c.row + c.column] = sum[i];
  }
}

// The nearest number with `bits` of fraction, computed otherwise than by the bits: ties away from zero or to even.
double nearest(float x, int bits, bool to_even) {
  int exponent;
  const double fraction = std::frexp(static_cast<double>(x), &exponent) * std::exp2(bits + 1);
  const double whole = to_even ? std::nearbyint(fraction) : std::round(fraction);
  return std::ldexp(whole, exponent - bits - 1);
}

// The nearest float16: 11 bits, but nothing finer than 2^-24.
double nearest_f16(float x) {
  int exponent;
  std::frexp(static_cast<double>(x), &exponent);
  const double step = std::exp2(std::max(exponent - 11, -24));
  const double whole = std::nearbyint(static_cast<double>(x) / step) * step;
  return std::abs(whole) < 65536 ? whole : std::copysign(INFINITY, whole);
}
// What 16 bits mean, by the format's definition.
double value_of_f16(unsigned bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31), fraction = static_cast<int>(bits & 1023);
  const double magnitude = exponent == 31  ? (fraction == 0 ? INFINITY : NAN)
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(1024 + fraction, exponent - 25);
  return (bits & 0x8000u) == 0 ? magnitude : -magnitude;
}

float low_half(unsigned pair) { return std::bit_cast<float>(pair << 16); }
float high_half(unsigned pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

using Kernel = void (*)(const float*, const float*, float*);

void compare(Kernel kernel, int depth, double (*rounded)(float)) {
  constexpr int kWarps = 3;
  const std::vector<float> a = random_floats(static_cast<std::size_t>(kWarps * 16 * depth), 1),
                           b = random_floats(static_cast<std::size_t>(kWarps * 8 * depth), 2),
                           c = random_floats(kWarps * 128, 3);
  Device<float> da(a), db(b), dd(c);
  launch("mma_kernel", kernel, {1, 32 * kWarps}, static_cast<const float*>(da.data()),
         static_cast<const float*>(db.data()), dd.data());
  const std::vector<float> d = dd.host();
  for (int i = 0; i < kWarps * 128; ++i) {
    const int warp = i / 128, row = i % 128 / 8, column = i % 8;
    double sum = c[static_cast<std::size_t>(i)];
    for (int k = 0; k < depth; ++k) {
      sum += rounded(a[static_cast<std::size_t>((16 * warp + row) * depth + k)]) *
             rounded(b[static_cast<std::size_t>((warp * depth + k) * 8 + column)]);
    }
    const Trying scope(text("warp=", warp, ", row=", row, ", column=", column));
    check(std::abs(d[static_cast<std::size_t>(i)] - sum) < 3e-6,
          text("got ", d[static_cast<std::size_t>(i)], ", want ", sum));
  }
}

TEST(tf32_products_are_those_of_the_rounded_matrices) {
  if (properties().compute_capability < 80) return;
  in_several_orders([] { compare(tf32_kernel, 8, [](float x) { return nearest(x, 10, false); }); });
}
TEST(bf16_products_are_those_of_the_rounded_matrices) {
  if (properties().compute_capability < 80) return;
  in_several_orders([] { compare(kernel_of_16bit<bfloat16>, 16, [](float x) { return nearest(x, 7, true); }); });
}
TEST(f16_products_are_those_of_the_rounded_matrices) {
  if (properties().compute_capability < 80) return;
  in_several_orders([] { compare(kernel_of_16bit<float16>, 16, nearest_f16); });
}

__global__ void round_kernel(int n, const float* x, float* tf32, unsigned* bf16) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    tf32[i] = round_to_tf32(x[i]);
    bf16[i] = pack_bf16(x[i], -x[i]);
  }
}

TEST(rounding_takes_the_nearest_and_keeps_what_is_not_finite) {
  std::vector<float> x = random_floats(1000, 4);
  for (std::size_t i = 0; i < 500; ++i) x[i] = std::ldexp(x[i], static_cast<int>(i % 240) - 120);
  // Ties: a fraction of ten bits and a half, of seven and a half, odd and even.
  for (const float tie : {1 + 0x1p-11f, 1 + 0x3p-11f, 1 + 0x1p-8f, 1 + 0x3p-8f, -1 - 0x1p-11f, -1 - 0x1p-8f}) {
    x.push_back(tie);
  }
  for (const float edge : {0.0f, -0.0f, 0x1p-126f, 0x1.ffcp127f}) x.push_back(edge);
  const std::size_t finite = x.size();
  for (const float special : {INFINITY, -INFINITY, NAN, 0x1.fffffep127f}) x.push_back(special);
  const int n = static_cast<int>(x.size());
  Device<float> from(x), tf32(x.size());
  Device<unsigned> bf16(x.size());
  launch("round_kernel", round_kernel, {1, 64}, n, static_cast<const float*>(from.data()), tf32.data(), bf16.data());
  const std::vector<float> t = tf32.host();
  const std::vector<unsigned> b = bf16.host();
  for (std::size_t i = 0; i < finite; ++i) {
    const Trying scope(text("x=", x[i]));
    check_equal(static_cast<double>(t[i]), nearest(x[i], 10, false));
    if (std::abs(x[i]) < 0x1p127f) {
      check_equal(static_cast<double>(low_half(b[i])), nearest(x[i], 7, true));
      check_equal(static_cast<double>(high_half(b[i])), nearest(-x[i], 7, true));
    }
  }
  CHECK(t[finite] == INFINITY && t[finite + 1] == -INFINITY && std::isnan(t[finite + 2]) && t[finite + 3] == INFINITY);
  CHECK(low_half(b[finite]) == INFINITY && low_half(b[finite + 1]) == -INFINITY);
  CHECK(std::isnan(low_half(b[finite + 2])) && low_half(b[finite + 3]) == INFINITY);
}

__global__ void f16_kernel(int n, const float* x, unsigned* pairs, float* low, float* high) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    pairs[i] = pack_f16(x[i], -x[i]);
    const float2 both = unpack<float16>(pairs[i]);
    low[i] = both.x, high[i] = both.y;
  }
}

TEST(f16_pairs_hold_the_nearest_and_what_is_not_finite) {
  std::vector<float> x = random_floats(1000, 5);
  for (std::size_t i = 0; i < 500; ++i) x[i] = std::ldexp(x[i], static_cast<int>(i % 48) - 30);
  // Ties, odd and even; the ends of the finite, normal and subnormal numbers; halfway to the next.
  for (const float edge : {1 + 0x1p-11f, 1 + 0x3p-11f, -1 - 0x1p-11f, 0.0f,       0x1p-14f, 0x1.ffcp-15f, 0x1.ffep-15f,
                           0x1p-24f,     0x1p-25f,     0x3p-25f,      0x1.8p-24f, 0x1p-26f, 0x1p-149f,    65504.0f,
                           65519.0f,     65520.0f,     65536.0f,      1e30f,      INFINITY, -INFINITY}) {
    x.push_back(edge);
  }
  x.push_back(NAN);
  const int n = static_cast<int>(x.size());
  Device<float> from(x), low(x.size()), high(x.size());
  Device<unsigned> pairs(x.size());
  launch("f16_kernel", f16_kernel, {1, 64}, n, static_cast<const float*>(from.data()), pairs.data(), low.data(),
         high.data());
  const std::vector<unsigned> p = pairs.host();
  const std::vector<float> l = low.host(), h = high.host();
  for (std::size_t i = 0; i + 1 < x.size(); ++i) {
    const Trying scope(text("x=", x[i]));
    check_equal(value_of_f16(p[i] & 0xffffu), nearest_f16(x[i]));
    check_equal(value_of_f16(p[i] >> 16), nearest_f16(-x[i]));
    check_equal(static_cast<double>(l[i]), nearest_f16(x[i]));
    check_equal(static_cast<double>(h[i]), nearest_f16(-x[i]));
    check_equal(std::signbit(l[i]), std::signbit(x[i]));
  }
  CHECK(std::isnan(value_of_f16(p.back() & 0xffffu)) && std::isnan(l.back()) && std::isnan(h.back()));
}

// Lane 8i + r gives the address of row r of matrix i. "Each thread t of the warp receives the elements 2t and 2t + 1 of
// the matrix" in row t / 4; with .trans the matrix is read column by column.
__global__ void matrices_kernel(const std::uint16_t* x, unsigned* y, unsigned* transposed) {
  LEC7_SHARED(tile, std::uint16_t[4][8][24]);  // rows are 48 bytes apart
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 4 * 8 * 24; i += 32) {
    tile[i / 192][i / 24 % 8][i % 24] = i % 24 < 8 ? x[i / 24 * 8 + i % 24] : 0xdead;
  }
  __syncthreads();
  unsigned r[4];
  load_matrices(r, tile[lane / 8][lane % 8]);
  for (int i = 0; i < 4; ++i) y[4 * lane + i] = r[i];
  load_transposed_matrices(r, tile[lane / 8][lane % 8]);
  for (int i = 0; i < 4; ++i) transposed[4 * lane + i] = r[i];
}

TEST(matrices_are_loaded_into_fragments) {
  in_several_orders([] {
    std::vector<std::uint16_t> x(4 * 64);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<std::uint16_t>(i * 40503 + 7);
    Device<std::uint16_t> from(x);
    Device<unsigned> plain(128), transposed(128);
    launch("matrices_kernel", matrices_kernel, {1, 32}, static_cast<const std::uint16_t*>(from.data()), plain.data(),
           transposed.data());
    const std::vector<unsigned> y = plain.host(), z = transposed.host();
    for (unsigned lane = 0; lane < 32; ++lane) {
      for (unsigned i = 0; i < 4; ++i) {
        const auto element = [&](unsigned row, unsigned column) -> unsigned { return x[64 * i + 8 * row + column]; };
        const unsigned at = lane / 4, pair = 2 * (lane % 4);
        check_equal(y[4 * lane + i], element(at, pair) | element(at, pair + 1) << 16);
        check_equal(z[4 * lane + i], element(pair, at) | element(pair + 1, at) << 16);
      }
    }
  });
}

}  // namespace
}  // namespace lec7::test
