// Local response, batch and layer normalization against the formulas, differentiated by the tape.
#include "lec7/norm.h"

#include "tape.h"

namespace lec7::test {
namespace {

const Index kChannels[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 67};

Var power(Var x, double exponent) { return exp(exponent * log(x)); }

template <class T>
void check_response(Random& random, Index rows, Index channels, Index size, double beta) {
  const Trying what(text("rows=", rows, ", channels=", channels, ", size=", size, ", beta=", beta));
  const double alpha = 0.8, k = 1.25;
  const Array<T> x = random.array<T>(rows * channels, -2, 2), dy = random.array<T>(rows * channels);
  Tape tape;
  const Vars x_var = tape.variables(x);
  Vars y, d;
  for (Index row = 0; row < rows; ++row) {
    for (Index c = 0; c < channels; ++c) {
      Var sum;
      for (Index j = std::max<Index>(0, c - size / 2); j <= std::min(channels - 1, c + size / 2); ++j) {
        sum += x_var[row * channels + j] * x_var[row * channels + j];
      }
      d.push_back(k + alpha / static_cast<double>(size) * sum);
      y.push_back(x_var[row * channels + c] * power(d.back(), -beta));
    }
  }
  tape.add(y, dy);
  tape.differentiate();
  const Shape shape{rows, channels};
  const Array<T> d_given(values(d));
  on_every_isa([&] {
    const Array<T> got(x.size()), saved(x.size()), dx(x.size());
    LEC7_PICK(local_response_norm_forward<T>)
    (local_response_norm_shape(shape, size, alpha, beta, k), x.data(), got.data(), saved.data());
    check_close(got, values(y), 8);
    check_close(saved, values(d), 8);
    LEC7_PICK(local_response_norm_backward<T>)
    (local_response_norm_backward_shape(shape, shape, shape, size, alpha, beta), dy.data(), x.data(), d_given.data(),
     dx.data());
    check_close(dx, tape.gradient(x_var), 16);
  });
}

TEST(local_response) {
  with_types([]<class T> {
    Random random;
    for (const double beta : {0.75, 0.5, 1.0, 0.3}) {
      for (const Index channels : kChannels) {
        for (const Index size : {1, 3, 5, 7}) check_response<T>(random, 3, channels, size, beta);
      }
    }
    check_response<T>(random, 2, 5, 101, 0.75);  // every window holds every channel, and more
    check_response<T>(random, 0, 5, 5, 0.75);
    check_response<T>(random, 4, 0, 5, 0.75);
    check_response<T>(random, 1500, 24, 5, 0.75);  // several tasks, the last block is not full
    check_response<T>(random, 3, 3001, 3, 0.75);
  });
}

// y = gamma xhat + beta on numbers that share their statistics.
struct Normalized {
  Var mean, inverse;
  Var operator()(Var x) const { return (x - mean) * inverse; }
};
Normalized normalize(const Vars& x, double eps) {
  const double n = static_cast<double>(x.size());
  Var sum, squares;
  for (const Var& v : x) sum += v;
  const Var mean = sum / n;
  for (const Var& v : x) squares += (v - mean) * (v - mean);
  return {mean, power(squares / n + eps, -0.5)};
}

template <class T>
void check_batch(Random& random, bool training, Index rows, Index channels) {
  const Trying what(text(training ? "training" : "frozen", ", rows=", rows, ", channels=", channels));
  const BatchNormOptions options{training, 0.25, 0.125};
  const Array<T> x = random.array<T>(rows * channels, -2, 2), dy = random.array<T>(rows * channels);
  const Array<T> gamma = random.array<T>(channels), beta = random.array<T>(channels);
  const Array<T> mean_before = random.array<T>(channels), var_before = random.array<T>(channels, 0.25, 2);
  Tape tape;
  const Vars x_var = tape.variables(x), gamma_var = tape.variables(gamma), beta_var = tape.variables(beta);
  Vars y(rows * channels), saved(2 * channels);
  std::vector<double> running_mean = mean_before.values(), running_var = var_before.values();
  for (Index c = 0; c < channels; ++c) {
    Vars column;
    for (Index row = 0; row < rows; ++row) column.push_back(x_var[row * channels + c]);
    Normalized xhat{running_mean[c], 1 / std::sqrt(running_var[c] + options.eps)};
    if (training) {
      xhat = normalize(column, options.eps);
      const double n = static_cast<double>(rows), inverse = xhat.inverse.value;
      running_mean[c] = 0.75 * running_mean[c] + 0.25 * xhat.mean.value;
      running_var[c] = 0.75 * running_var[c] + 0.25 * (1 / (inverse * inverse) - options.eps) * n / (n - 1);
    }
    saved[c] = xhat.mean;
    saved[channels + c] = xhat.inverse;
    for (Index row = 0; row < rows; ++row) {
      y[row * channels + c] = gamma_var[c] * xhat(column[row]) + beta_var[c];
    }
  }
  tape.add(y, dy);
  tape.differentiate();
  const Shape array{rows, channels}, vector{channels};
  const Array<T> saved_given(values(saved));
  on_every_isa([&] {
    const Array<T> got(x.size()), got_saved(2 * channels), dx(x.size()), dgamma(channels), dbeta(channels);
    const Array<T> mean(mean_before.values()), var(var_before.values());
    LEC7_PICK(batch_norm_forward<T>)
    (batch_norm_shape(array, vector, vector, vector, vector, options), options, x.data(), gamma.data(), beta.data(),
     mean.data(), var.data(), got.data(), got_saved.data());
    check_close(got, values(y), 8);
    check_close(got_saved, values(saved), 8);
    check_close(mean, running_mean, 4);
    check_close(var, running_var, 8);
    const NormShape shape = batch_norm_backward_shape(array, array, vector, {2, channels}, training);
    const auto backward = [&](T* dx_out, T* dgamma_out, T* dbeta_out) {
      LEC7_PICK(batch_norm_backward<T>)
      (shape, training, dy.data(), x.data(), gamma.data(), saved_given.data(), dx_out, dgamma_out, dbeta_out);
    };
    backward(dx.data(), dgamma.data(), dbeta.data());
    check_close(dx, tape.gradient(x_var), 16);
    check_close(dgamma, tape.gradient(gamma_var), 32);
    check_close(dbeta, tape.gradient(beta_var), 16);
    const Array<T> dx_alone(x.size()), dgamma_alone(channels);
    backward(dx_alone.data(), nullptr, nullptr);
    check_same(dx_alone, dx.values());
    backward(nullptr, dgamma_alone.data(), nullptr);
    check_same(dgamma_alone, dgamma.values());
  });
}

TEST(batch) {
  with_types([]<class T> {
    Random random;
    for (const bool training : {true, false}) {
      for (const Index channels : kChannels) {
        for (const Index rows : {2, 7, 8, 9, 31}) check_batch<T>(random, training, rows, channels);
      }
      check_batch<T>(random, training, 5, 0);
      check_batch<T>(random, training, 2500, 29);  // several chunks, the last one is not full
      check_batch<T>(random, training, 37, 2100);  // of the fewest rows
    }
    check_batch<T>(random, false, 0, 5);
    check_batch<T>(random, false, 1, 5);
  });
}

template <class T>
void check_layer(Random& random, Index rows, Index channels) {
  const Trying what(text("rows=", rows, ", channels=", channels));
  const double eps = 0.125;
  const Array<T> x = random.array<T>(rows * channels, -2, 2), dy = random.array<T>(rows * channels);
  const Array<T> gamma = random.array<T>(channels), beta = random.array<T>(channels);
  Tape tape;
  const Vars x_var = tape.variables(x), gamma_var = tape.variables(gamma), beta_var = tape.variables(beta);
  Vars y, saved(2 * rows);
  for (Index row = 0; row < rows; ++row) {
    const Vars numbers(x_var.begin() + row * channels, x_var.begin() + (row + 1) * channels);
    const Normalized xhat = normalize(numbers, eps);
    saved[row] = xhat.mean;
    saved[rows + row] = xhat.inverse;
    for (Index c = 0; c < channels; ++c) y.push_back(gamma_var[c] * xhat(numbers[c]) + beta_var[c]);
  }
  tape.add(y, dy);
  tape.differentiate();
  const Shape array{rows, channels}, vector{channels};
  const Array<T> saved_given(values(saved));
  on_every_isa([&] {
    const Array<T> got(x.size()), got_saved(2 * rows), dx(x.size()), dgamma(channels), dbeta(channels);
    LEC7_PICK(layer_norm_forward<T>)
    (layer_norm_shape(array, vector, vector, eps), eps, x.data(), gamma.data(), beta.data(), got.data(),
     got_saved.data());
    check_close(got, values(y), 8);
    check_close(got_saved, values(saved), 8);
    const NormShape shape = layer_norm_backward_shape(array, array, vector, {2, rows});
    const auto backward = [&](T* dx_out, T* dgamma_out, T* dbeta_out) {
      LEC7_PICK(layer_norm_backward<T>)
      (shape, dy.data(), x.data(), gamma.data(), saved_given.data(), dx_out, dgamma_out, dbeta_out);
    };
    backward(dx.data(), dgamma.data(), dbeta.data());
    check_close(dx, tape.gradient(x_var), 16);
    check_close(dgamma, tape.gradient(gamma_var), 32);
    check_close(dbeta, tape.gradient(beta_var), 16);
    const Array<T> dx_alone(x.size()), dbeta_alone(channels);
    backward(dx_alone.data(), nullptr, nullptr);
    check_same(dx_alone, dx.values());
    backward(nullptr, nullptr, dbeta_alone.data());
    check_same(dbeta_alone, dbeta.values());
  });
}

TEST(layer) {
  with_types([]<class T> {
    Random random;
    for (const Index channels : kChannels) {
      for (const Index rows : {0, 1, 7}) check_layer<T>(random, rows, channels);
    }
    check_layer<T>(random, 3, 1031);
    check_layer<T>(random, 3000, 19);
  });
}

}  // namespace
}  // namespace lec7::test
