#include "lec7/optimizer.h"

#include <cmath>
#include <initializer_list>

namespace lec7 {
namespace {

struct Given {
  const char* name;
  double value;
};

[[noreturn]] void refuse(std::string_view op, const Given& number, const char* wanted) {
  fail(op, std::string(number.name) + " is " + wanted + "; got " + std::to_string(number.value));
}

void check_finite(std::string_view op, std::initializer_list<Given> numbers) {
  for (const Given& number : numbers) {
    if (!std::isfinite(number.value)) refuse(op, number, "a finite number");
  }
}

// Rates of moving averages: at 1 nothing new would ever count.
void check_rates(std::string_view op, std::initializer_list<Given> numbers) {
  for (const Given& number : numbers) {
    if (!(number.value >= 0 && number.value < 1)) refuse(op, number, "in [0, 1)");
  }
}

void check_eps(std::string_view op, double eps) {
  if (!(eps >= 0)) refuse(op, {"eps", eps}, "not negative");
}

}  // namespace

void check(const Sgd& sgd, bool has_buffer) {
  constexpr std::string_view op = "sgd_update_";
  check_finite(op, {{"lr", sgd.lr.value},
                    {"momentum", sgd.momentum},
                    {"weight_decay", sgd.weight_decay},
                    {"grad_scale", sgd.grad_scale.value}});
  if (sgd.momentum != 0 && !has_buffer) fail(op, "momentum needs a momentum_buffer");
  if (sgd.nesterov && sgd.momentum == 0) fail(op, "nesterov needs a momentum that is not 0");
}

void check(const RmsProp& rmsprop) {
  constexpr std::string_view op = "rmsprop_update_";
  check_finite(op, {{"lr", rmsprop.lr.value},
                    {"eps", rmsprop.eps},
                    {"weight_decay", rmsprop.weight_decay},
                    {"grad_scale", rmsprop.grad_scale.value}});
  check_rates(op, {{"decay", rmsprop.decay}});
  check_eps(op, rmsprop.eps);
}

void check(const Adam& adam) {
  constexpr std::string_view op = "adam_update_";
  check_finite(op, {{"lr", adam.lr.value},
                    {"eps", adam.eps},
                    {"weight_decay", adam.weight_decay},
                    {"grad_scale", adam.grad_scale.value}});
  check_rates(op, {{"beta1", adam.beta1}, {"beta2", adam.beta2}});
  check_eps(op, adam.eps);
  if (adam.step.value < 1) fail(op, "step is 1 at the first update; got " + std::to_string(adam.step.value));
}

Index update_shape(std::string_view op, std::span<const Named> arrays) {
  for (const Named& array : arrays) {
    if (array.shape != arrays[0].shape) {
      fail(op, std::string(array.name) + " has the shape of " + std::string(arrays[0].name), arrays);
    }
  }
  return arrays[0].shape.size();
}

}  // namespace lec7
