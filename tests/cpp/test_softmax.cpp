// softmax over the last axis, its logarithm, and the losses.
#include "lec7/softmax.h"

#include "tape.h"

namespace lec7::test {
namespace {

const Index kClasses[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 65};
const Index kRows[] = {0, 1, 2, 9};

Var log_sum_exp(const Var* x, Index classes) {
  Var sum;
  for (Index k = 0; k < classes; ++k) sum += exp(x[k]);
  return log(sum);
}

template <class T>
struct Kernels {
  const char* name;
  void (*forward)(const SoftmaxShape&, const T*, T*);
  void (*backward)(const SoftmaxShape&, const T*, const T*, T*);
};
template <class T>
Kernels<T> kernels(bool logarithm) {
  if (logarithm) return {"log_softmax", LEC7_PICK(log_softmax_forward<T>), LEC7_PICK(log_softmax_backward<T>)};
  return {"softmax", LEC7_PICK(softmax_forward<T>), LEC7_PICK(softmax_backward<T>)};
}

template <class T>
void check_softmax(Random& random, bool logarithm, Index rows, Index classes) {
  const Trying what(text(kernels<T>(logarithm).name, ", rows=", rows, ", classes=", classes));
  const Array<T> x = random.array<T>(rows * classes, -4, 4), dy = random.array<T>(rows * classes);
  Tape tape;
  const Vars x_var = tape.variables(x);
  Vars y;
  for (Index i = 0; i < rows; ++i) {
    const Var lse = log_sum_exp(x_var.data() + i * classes, classes);
    for (Index k = 0; k < classes; ++k) {
      const Var log_p = x_var[i * classes + k] - lse;
      y.push_back(logarithm ? log_p : exp(log_p));
    }
  }
  tape.add(y, dy);
  tape.differentiate();
  const Array<T> y_given(values(y));
  on_every_isa([&] {
    const Array<T> got(rows * classes), dx(rows * classes);
    kernels<T>(logarithm).forward({rows, classes}, x.data(), got.data());
    check_close(got, values(y), 8);
    kernels<T>(logarithm).backward({rows, classes}, dy.data(), y_given.data(), dx.data());
    check_close(dx, tape.gradient(x_var), 16);
  });
}

TEST(values_and_gradients) {
  with_types([]<class T> {
    Random random;
    for (const bool logarithm : {false, true}) {
      for (const Index classes : kClasses) {
        for (const Index rows : kRows) check_softmax<T>(random, logarithm, rows, classes);
      }
      check_softmax<T>(random, logarithm, 2000, 5);
      check_softmax<T>(random, logarithm, 3, 4099);
    }
  });
}

TEST(extreme_rows) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  const double ln2 = std::log(2);
  struct Case {
    std::vector<double> x, y, log_y;
  };
  const Case cases[] = {
      {{1000, 1000, -1000}, {0.5, 0.5, 0}, {-ln2, -ln2, -2000 - ln2}},
      {{-1000, -1000, -1000, -1000}, {0.25, 0.25, 0.25, 0.25}, {-2 * ln2, -2 * ln2, -2 * ln2, -2 * ln2}},
      {{-infinity, 3, -infinity}, {0, 1, 0}, {-infinity, 0, -infinity}},
      {{-infinity, -infinity}, {nan, nan}, {nan, nan}},
      {{nan, 1}, {nan, nan}, {nan, nan}},
      {{infinity, 1}, {nan, nan}, {nan, nan}},
  };
  with_types([&]<class T> {
    for (const auto& [x_values, y, log_y] : cases) {
      const Trying what(text("x[0]=", x_values[0], ", ", y.size(), " classes"));
      const Array<T> x(x_values);
      on_every_isa([&] {
        const SoftmaxShape shape{1, x.size()};
        const Array<T> got(x.size()), got_log(x.size());
        LEC7_PICK(softmax_forward<T>)(shape, x.data(), got.data());
        check_close(got, y, 4);
        LEC7_PICK(log_softmax_forward<T>)(shape, x.data(), got_log.data());
        check_close(got_log, log_y, 4);
      });
    }
  });
}

// ---- losses ----

constexpr Reduction kReductions[] = {Reduction::none, Reduction::sum, Reduction::mean};

// The reduced loss of terms (rows); what the mean divides by, 0 for a mean over nothing.
Vars reduce(Reduction reduction, const Vars& terms, double divisor) {
  if (reduction == Reduction::none) return terms;
  Var sum;
  for (const Var& term : terms) sum += term;
  if (reduction == Reduction::sum) return {sum};
  return {divisor == 0 ? Var(0) : sum / divisor};
}

template <class I>
void check_cross_entropy(Random& random, Index rows, Index classes, bool weighted, bool ignoring, double smoothing) {
  with_types([&]<class T> {
    const Array<T> logits = random.array<T>(rows * classes, -4, 4), class_weight = random.array<T>(classes, 0.25, 2);
    constexpr I kIgnored = -100;
    std::vector<I> values_of_labels;
    for (Index i = 0; i < rows; ++i) {
      values_of_labels.push_back(ignoring && i % 3 != 1 ? kIgnored : static_cast<I>(random.below(classes)));
    }
    const Array<I> labels(values_of_labels);
    for (const Reduction reduction : kReductions) {
      const Trying what(text("rows=", rows, ", classes=", classes, weighted ? ", weights" : "",
                             ignoring ? ", ignore" : "", ", smoothing=", smoothing, ", reduction ",
                             static_cast<int>(reduction), ", int", 8 * sizeof(I)));
      const Array<T> dy = random.array<T>(reduction == Reduction::none ? rows : 1);
      Tape tape;
      const Vars x = tape.variables(logits);
      Vars terms, lse;
      double divisor = 0;
      for (Index i = 0; i < rows; ++i) {
        lse.push_back(log_sum_exp(x.data() + i * classes, classes));
        Var loss;
        if (labels[i] != kIgnored) {
          for (Index k = 0; k < classes; ++k) {
            const double w = weighted ? static_cast<double>(class_weight[k]) : 1;
            const double t = w * ((k == labels[i] ? 1 - smoothing : 0) + smoothing / static_cast<double>(classes));
            loss += t * (lse.back() - x[i * classes + k]);
            if (k == labels[i]) divisor += w;
          }
        }
        terms.push_back(loss);
      }
      const Vars loss = reduce(reduction, terms, divisor);
      tape.add(loss, dy);
      tape.differentiate();
      const CrossEntropy shape{rows, classes, smoothing, ignoring ? std::optional<Index>(kIgnored) : std::nullopt,
                               reduction};
      on_every_isa([&] {
        const Indices given{labels.data(), sizeof(I) == 8, rows};
        const T* const w = weighted ? class_weight.data() : nullptr;
        const Array<T> got(static_cast<Index>(loss.size())), saved(rows), dx(rows * classes);
        LEC7_PICK(softmax_cross_entropy_forward<T>)(shape, logits.data(), given, w, got.data(), saved.data());
        check_close(got, values(loss), 16);
        check_close(saved, values(lse), 8);
        LEC7_PICK(softmax_cross_entropy_backward<T>)
        (shape, dy.data(), logits.data(), given, saved.data(), w, dx.data());
        check_close(dx, tape.gradient(x), 16);
      });
    }
  });
}

TEST(softmax_cross_entropy) {
  Random random;
  for (const bool weighted : {false, true}) {
    for (const bool ignoring : {false, true}) {
      for (const double smoothing : {0.0, 0.1}) {
        for (const Index classes : {1, 3, 16, 33}) {
          check_cross_entropy<std::int32_t>(random, 7, classes, weighted, ignoring, smoothing);
        }
        check_cross_entropy<std::int64_t>(random, 13, 17, weighted, ignoring, smoothing);
      }
    }
  }
  check_cross_entropy<std::int64_t>(random, 0, 5, false, false, 0);
  check_cross_entropy<std::int32_t>(random, 1, 5, true, true, 0);  // nothing counts
  check_cross_entropy<std::int32_t>(random, 1500, 11, true, true, 0.1);
}

template <class T>
struct PointwiseKernels {
  void (*forward)(Index, const T*, const T*, Reduction, T*);
  void (*backward)(Index, const T*, const T*, const T*, Reduction, T*);
};

template <class T>
PointwiseKernels<T> pointwise_kernels(bool binary) {
  if (binary) return {LEC7_PICK(binary_cross_entropy_forward<T>), LEC7_PICK(binary_cross_entropy_backward<T>)};
  return {LEC7_PICK(mean_squared_error_forward<T>), LEC7_PICK(mean_squared_error_backward<T>)};
}

TEST(binary_cross_entropy_and_squared_error) {
  with_types([]<class T> {
    Random random;
    for (const bool binary : {true, false}) {
      for (const Index n : {0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 5000}) {
        const Array<T> x = random.array<T>(n, -5, 5), targets = random.array<T>(n, 0, 1);
        for (const Reduction reduction : kReductions) {
          const Trying what(
              text(binary ? "binary" : "squared", ", n=", n, ", reduction ", static_cast<int>(reduction)));
          const Array<T> dy = random.array<T>(reduction == Reduction::none ? n : 1);
          Tape tape;
          const Vars x_var = tape.variables(x);
          Vars terms;
          for (Index i = 0; i < n; ++i) {
            const Var a = x_var[i], t = static_cast<double>(targets[i]);
            terms.push_back(binary ? log(1.0 + exp(a)) - a * t : (a - t) * (a - t));
          }
          const Vars loss = reduce(reduction, terms, static_cast<double>(n));
          tape.add(loss, dy);
          tape.differentiate();
          on_every_isa([&] {
            const Array<T> got(static_cast<Index>(loss.size())), dx(n);
            const PointwiseKernels<T> kernels = pointwise_kernels<T>(binary);
            kernels.forward(n, x.data(), targets.data(), reduction, got.data());
            check_close(got, values(loss), 64);
            kernels.backward(n, dy.data(), x.data(), targets.data(), reduction, dx.data());
            check_close(dx, tape.gradient(x_var), 16);
          });
        }
      }
    }
  });
}

TEST(binary_cross_entropy_of_extreme_logits) {
  with_types([]<class T> {
    const Array<T> x(std::vector<double>{1000, -1000, 1000, -1000, 0}), t(std::vector<double>{1, 0, 0, 1, 0.5});
    const Array<T> dy(std::vector<double>(5, 0.5));
    on_every_isa([&] {
      const Array<T> got(5), dx(5);
      LEC7_PICK(binary_cross_entropy_forward<T>)(5, x.data(), t.data(), Reduction::none, got.data());
      check_close(got, {0, 0, 1000, 1000, std::log(2)}, 4);
      LEC7_PICK(binary_cross_entropy_backward<T>)(5, dy.data(), x.data(), t.data(), Reduction::none, dx.data());
      check_close(dx, {0, 0, 0.5, -0.5, 0}, 4);
    });
  });
}

TEST(improbable_targets_are_found) {
  with_types([]<class T> {
    for (const double bad : {-1e-6, 1.0001, std::numeric_limits<double>::infinity(), std::nan("")}) {
      for (const Index n : {1, 5, 16, 17, 40, 100000}) {
        for (const Index at : {Index{0}, n / 2, n - 1}) {
          std::vector<double> values(static_cast<std::size_t>(n), 1.0);
          const Array<T> fine(values);
          values[at] = bad;
          const Array<T> targets(values);
          on_every_isa([&] {
            check_equal(LEC7_PICK(first_improbable<T>)(n, fine.data()), -1);
            check_equal(LEC7_PICK(first_improbable<T>)(n, targets.data()), at);
          });
        }
      }
    }
  });
}

}  // namespace
}  // namespace lec7::test
