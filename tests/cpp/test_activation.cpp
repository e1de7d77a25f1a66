// Elementwise activations and their gradients.
#include "lec7/activation.h"

#include "kernels.h"

namespace lec7::test {
namespace {

struct Case {
  Activation activation;
  const char* name;
  double (*f)(double);
  double (*derivative)(double y);
};
const Case kCases[] = {
    {Activation::none, "none", [](double x) { return x; }, [](double) { return 1.0; }},
    {Activation::relu, "relu", [](double x) { return x < 0 ? 0 : x; }, [](double y) { return y > 0 ? 1.0 : 0.0; }},
    {Activation::sigmoid, "sigmoid", [](double x) { return 1 / (1 + std::exp(-x)); },
     [](double y) { return y * (1 - y); }},
    {Activation::tanh, "tanh", [](double x) { return std::tanh(x); }, [](double y) { return 1 - y * y; }},
};

// Whole vectors of 4, 8 and 16 numbers and all rests; more than one task.
std::vector<Index> sizes() {
  std::vector<Index> all = {100003};
  for (Index n = 0; n <= 35; ++n) all.push_back(n);
  return all;
}

TEST(values_and_gradients) {
  with_types([]<class T> {
    Random random;
    for (const auto& [activation, name, f, derivative] : kCases) {
      for (const Index n : sizes()) {
        const Trying what(text(name, ", n=", n));
        const Array<T> x = random.array<T>(n, -6, 6), dy = random.array<T>(n);
        std::vector<double> y, dx;
        for (Index i = 0; i < n; ++i) {
          y.push_back(static_cast<T>(f(x[i])));
          dx.push_back(dy[i] * derivative(y[i]));
        }
        const Array<T> y_given(y);
        on_every_isa([&] {
          const Array<T> got(n), gradient(n), in_place(x.values()), dy_in_place(dy.values());
          LEC7_PICK(activation_forward<T>)(activation, n, x.data(), got.data());
          check_close(got, y, 8);
          LEC7_PICK(activation_backward<T>)(activation, n, dy.data(), y_given.data(), gradient.data());
          check_close(gradient, dx, 8);
          LEC7_PICK(activation_forward<T>)(activation, n, in_place.data(), in_place.data());
          check_same(in_place, got.values());
          LEC7_PICK(activation_backward<T>)(activation, n, dy_in_place.data(), y_given.data(), dy_in_place.data());
          check_same(dy_in_place, gradient.values());
        });
      }
    }
  });
}

TEST(extreme_numbers) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<double> given = {0, -0.0, 1e-20, -1e-20, 88, -88, 104, -104, 1000, -1000, infinity, -infinity, nan};
  with_types([&]<class T> {
    for (const auto& [activation, name, f, derivative] : kCases) {
      const Trying what(name);
      for (std::size_t i = 0; i < given.size(); ++i) {
        // Alone at each place of a vector, and every number at once: a NaN must not leak into its neighbours.
        const Array<T> x(std::vector<double>(17, given[i])), one(std::vector<double>{given[i]});
        const double y = static_cast<T>(f(one[0]));
        on_every_isa([&] {
          const Array<T> got(17), got_one(1);
          LEC7_PICK(activation_forward<T>)(activation, 17, x.data(), got.data());
          check_close(got, std::vector<double>(17, y), 8);
          LEC7_PICK(activation_forward<T>)(activation, 1, one.data(), got_one.data());
          check_close(got_one, {y}, 8);
        });
      }
      std::vector<double> mixed, mixed_y;
      for (int place = 0; place < 40; ++place) {
        mixed.push_back(place % 5 == 2 ? given[place % given.size()] : 0.25 * place - 5);
        mixed_y.push_back(f(mixed.back()));
      }
      const Array<T> x(mixed);
      on_every_isa([&] {
        const Array<T> got(40);
        LEC7_PICK(activation_forward<T>)(activation, 40, x.data(), got.data());
        check_close(got, mixed_y, 8);
      });
    }
  });
}

}  // namespace
}  // namespace lec7::test
