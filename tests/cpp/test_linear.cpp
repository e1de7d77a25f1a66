// The matrix product on all its paths, and the linear layer.
#include "lec7/linear.h"

#include "kernels.h"

namespace lec7::test {
namespace {

// C (m, n) = A B with A's element (i, p) at a[i * ai + p * ap], and so on.
template <class T>
std::vector<double> product(Index m, Index n, Index k, const Array<T>& a, Index ai, Index ap, const Array<T>& b,
                            Index bp, Index bj) {
  std::vector<double> c(static_cast<std::size_t>(m * n));
  for (Index i = 0; i < m; ++i) {
    for (Index p = 0; p < k; ++p) {
      const double s = a[i * ai + p * ap];
      for (Index j = 0; j < n; ++j) c[i * n + j] += s * b[p * bp + j * bj];
    }
  }
  return c;
}

template <class T>
void check_matmul(Random& random, Index m, Index n, Index k, bool transpose_a, bool transpose_b) {
  const Trying sizes(text("m=", m, ", n=", n, ", k=", k, transpose_a ? ", A^T" : "", transpose_b ? ", B^T" : ""));
  const Array<T> a = random.array<T>(m * k), b = random.array<T>(k * n);
  const std::vector<double> c =
      product(m, n, k, a, transpose_a ? 1 : k, transpose_a ? m : 1, b, transpose_b ? 1 : n, transpose_b ? k : 1);
  on_every_isa([&] {
    const Array<T> got(m * n);
    LEC7_PICK(matmul<T>)({m, n, k}, a.data(), transpose_a, b.data(), transpose_b, got.data());
    check_close(got, c, 32);
  });
}

constexpr bool kBoth[] = {false, true};

TEST(small_products) {
  with_types([]<class T> {
    Random random;
    for (const Index m : {0, 1, 2, 4, 5, 6, 7, 12, 13}) {
      for (const Index n : {0, 1, 3, 7, 16, 17, 35, 65}) {
        for (const Index k : {0, 1, 2, 5, 17, 33}) {
          for (const bool ta : kBoth) {
            for (const bool tb : kBoth) check_matmul<T>(random, m, n, k, ta, tb);
          }
        }
      }
    }
  });
}

// Across the limits between the paths: rows that are not packed, that are packed once, blocks of A and B, tasks.
TEST(large_products) {
  struct Sizes {
    Index m, n, k;
  };
  with_types([]<class T> {
    Random random;
    for (const auto& [m, n, k] : {Sizes{1, 1030, 9}, Sizes{1, 70, 800}, Sizes{3, 1100, 100}, Sizes{12, 300, 85},
                                  Sizes{13, 129, 200}, Sizes{64, 65, 385}, Sizes{121, 70, 40}, Sizes{256, 35, 33},
                                  Sizes{257, 66, 20}, Sizes{300, 130, 8}, Sizes{7, 64, 770}}) {
      for (const bool ta : kBoth) {
        for (const bool tb : kBoth) check_matmul<T>(random, m, n, k, ta, tb);
      }
    }
  });
}

double activate(Activation activation, double z) {
  switch (activation) {
    case Activation::relu: return z > 0 ? z : 0;
    case Activation::sigmoid: return 1 / (1 + std::exp(-z));
    case Activation::tanh: return std::tanh(z);
    default: return z;
  }
}

double derivative(Activation activation, double y) {
  switch (activation) {
    case Activation::relu: return y > 0;
    case Activation::sigmoid: return y * (1 - y);
    case Activation::tanh: return 1 - y * y;
    default: return 1;
  }
}

template <class T>
void check_linear(Random& random, Index rows, Index in, Index out, Activation activation, bool has_bias) {
  const Trying sizes(text("rows=", rows, ", in=", in, ", out=", out, ", activation ", static_cast<int>(activation)));
  const LinearShape shape = linear_shape({rows, in}, {in, out}, nullptr);
  const Array<T> x = random.array<T>(rows * in), weight = random.array<T>(in * out), bias = random.array<T>(out);
  const Array<T> dy = random.array<T>(rows * out);
  std::vector<double> y = product(rows, out, in, x, in, 1, weight, out, 1), dz = dy.values(), dbias(out);
  for (Index i = 0; i < rows * out; ++i) {
    y[i] = static_cast<T>(activate(activation, y[i] + (has_bias ? bias[i % out] : 0)));
    dz[i] *= derivative(activation, y[i]);
    dbias[i % out] += dz[i];
  }
  const Array<T> y_given(y);
  const Array<double> dz_given(dz), x_wide(x.values()), weight_wide(weight.values());
  const std::vector<double> dx = product(rows, in, out, dz_given, out, 1, weight_wide, 1, out);
  const std::vector<double> dweight = product(in, out, rows, x_wide, 1, in, dz_given, out, 1);

  on_every_isa([&] {
    const Array<T> got(rows * out);
    LEC7_PICK(linear_forward<T>)
    (shape, x.data(), weight.data(), has_bias ? bias.data() : nullptr, activation, got.data());
    check_close(got, y, 32);
    for (const int wanted : {7, 1, 2, 4, 0}) {  // each gradient, alone and together
      const Array<T> got_dx(rows * in), got_dweight(in * out), got_dbias(out);
      LEC7_PICK(linear_backward<T>)
      (shape, dy.data(), x.data(), weight.data(), activation == Activation::none ? nullptr : y_given.data(), activation,
       wanted & 1 ? got_dx.data() : nullptr, wanted & 2 ? got_dweight.data() : nullptr,
       wanted & 4 ? got_dbias.data() : nullptr);
      if (wanted & 1) check_close(got_dx, dx, 32);
      if (wanted & 2) check_close(got_dweight, dweight, 32);
      if (wanted & 4) check_close(got_dbias, dbias, 32);
    }
  });
}

TEST(linear_layer) {
  with_types([]<class T> {
    Random random;
    for (const Activation activation : {Activation::none, Activation::relu, Activation::sigmoid, Activation::tanh}) {
      for (const Index rows : {0, 1, 5, 13}) {
        for (const Index in : {0, 1, 17}) {
          for (const Index out : {0, 1, 15, 33}) check_linear<T>(random, rows, in, out, activation, rows != 5);
        }
      }
      check_linear<T>(random, 270, 20, 67, activation, true);
      check_linear<T>(random, 70, 130, 40, activation, false);
    }
  });
}

}  // namespace
}  // namespace lec7::test
