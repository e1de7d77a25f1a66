#include "lec7/recurrent.h"

namespace lec7 {
namespace {

struct Rule {
  const char* argument;
  const Shape* given;
  Shape wanted;
};

}  // namespace

RecurrentShape recurrent_shape(std::string_view op, Cell cell, bool step, const RecurrentArguments& a) {
  const Named named[] = {{step ? "x (N, D)" : "x (T, N, D)", *a.x},
                         {step ? "h (N, H)" : "h0 (N, H)", *a.h0},
                         {"weight_x (D, G*H)", *a.weight_x},
                         {"weight_h (H, G*H)", *a.weight_h}};
  const auto fail_with = [&](const std::string& rule) { fail(op, rule, std::span<const Named>(named)); };

  if (a.x->rank() != (step ? 2 : 3)) {
    fail_with("x has " + std::string(step ? "2" : "3") + " axes, not " + std::to_string(a.x->rank()));
  }
  if (a.h0->rank() != 2) fail_with("the state has 2 axes, not " + std::to_string(a.h0->rank()));
  if (a.weight_x->rank() != 2 || a.weight_h->rank() != 2) fail_with("weight_x and weight_h have 2 axes");

  const Shape& x = *a.x;
  RecurrentShape s{cell, step ? 1 : x[0], x[step ? 0 : 1], x.back(), (*a.h0)[1]};
  if (s.hidden == 0) fail_with("the hidden size is 0");
  if (!step && s.steps == 0) fail_with("the sequence has no steps");
  const Shape state{s.batch, s.hidden};
  const Shape sequence = step ? state : Shape{s.steps, s.batch, s.hidden};
  const Index gates = checked_multiply(op, gate_count(cell), s.hidden);
  const Rule rules[] = {
      {step ? "h" : "h0", a.h0, state},
      {step ? "c" : "c0", a.c0, state},
      {"weight_x", a.weight_x, {s.inputs, gates}},
      {"weight_h", a.weight_h, {s.hidden, gates}},
      {"bias", a.bias, {gates}},
      {step ? "h_next" : "hs", a.hs, sequence},
      {step ? "dh_next" : "dhs", a.dhs, sequence},
      {"dh_T", a.dh_last, state},
      {step ? "dc_next" : "dc_T", a.dc_last, state},
      {"saved gates", a.saved_gates, s.saved_gates()},
      {"saved cells", a.saved_cells, s.saved_cells()},
  };
  for (const Rule& rule : rules) {
    if (rule.given != nullptr && *rule.given != rule.wanted) {
      fail_with(std::string(rule.argument) + " has shape " + rule.given->str() + ", not " + rule.wanted.str());
    }
  }
  checked_size(op, s.saved_gates());
  return s;
}

std::vector<Index> recurrent_lengths(std::string_view op, const RecurrentShape& shape, const Shape& lengths,
                                     const Indices& values) {
  const Named named{"lengths (N,)", lengths};
  if (lengths != Shape{shape.batch}) {
    fail(op, "lengths has one number for each of the " + std::to_string(shape.batch) + " rows", {named});
  }
  return checked_on_host(op, named, values, 0, shape.steps + 1);
}

}  // namespace lec7
