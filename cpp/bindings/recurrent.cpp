#include "lec7/recurrent.h"

#include <optional>
#include <vector>

#include "arrays.h"
#include "module.h"
#include "parse.h"

namespace lec7::bindings {
namespace {

Cell rnn_cell(std::string_view op, py::handle activation) {
  const std::string text = py::str(activation);
  if (text == "tanh") return Cell::rnn_tanh;
  if (text == "relu") return Cell::rnn_relu;
  fail(op, "activation is \"tanh\" or \"relu\"; got \"" + text + "\"");
}

std::optional<std::vector<Index>> read_lengths(std::string_view op, const RecurrentShape& shape, py::handle value) {
  if (value.is_none()) return std::nullopt;
  const Array array = host_integer_array(op, "lengths", value);
  return recurrent_lengths(op, shape, array.shape(), indices_of(array));
}

// What forward hands to backward: (), (gates, cells).
py::tuple saved_tuple(Cell cell, const Array& gates, const Array& cells) {
  return gate_count(cell) == 1 ? py::tuple() : py::make_tuple(gates.object(), cells.object());
}

// All results: (h[, c], saved) of a step, (hs, h_T[, c_T], saved) of a sequence.
py::tuple forward(std::string_view op, Cell cell, bool step, py::handle x_, py::handle h0_, py::handle c0_,
                  py::handle weight_x_, py::handle weight_h_, py::handle bias_, py::handle lengths_, bool reverse) {
  const Array x = any_float_array(op, "x", x_), h0 = any_float_array(op, step ? "h" : "h0", h0_);
  const bool lstm = cell == Cell::lstm;
  const Array c0 = lstm ? any_float_array(op, step ? "c" : "c0", c0_) : Array();
  const Array weight_x = any_float_array(op, "weight_x", weight_x_),
              weight_h = any_float_array(op, "weight_h", weight_h_);
  const Array bias = any_float_array(op, "bias", bias_);
  const DType dtype = common_dtype(
      op, {{"x", x}, {"h", h0}, {"c", c0}, {"weight_x", weight_x}, {"weight_h", weight_h}, {"bias", bias}});
  const RecurrentShape shape = recurrent_shape(op, cell, step,
                                               {.x = &x.shape(),
                                                .h0 = &h0.shape(),
                                                .c0 = c0.shape_or_null(),
                                                .weight_x = &weight_x.shape(),
                                                .weight_h = &weight_h.shape(),
                                                .bias = &bias.shape()});
  const auto lengths = read_lengths(op, shape, lengths_);
  const bool gated = gate_count(cell) > 1;
  const Shape state{shape.batch, shape.hidden};
  const Array hs = new_array(dtype, step ? state : shape.saved_cells());
  const Array h_last = new_array_if(!step, dtype, state), c_last = new_array_if(lstm, dtype, state);
  const Array gates = new_array_if(gated, dtype, shape.saved_gates());
  const Array cells = new_array_if(gated, dtype, shape.saved_cells());
  with_any_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(recurrent_forward<T>)
    (shape, RecurrentForward<T>{x.data<T>(), h0.data<T>(), c0.data<T>(), weight_x.data<T>(), weight_h.data<T>(),
                                bias.data<T>(), lengths ? lengths->data() : nullptr, reverse, hs.data<T>(),
                                h_last.data<T>(), c_last.data<T>(), gates.data<T>(), cells.data<T>()});
  });
  const py::tuple saved = saved_tuple(cell, gates, cells);
  if (step && lstm) return py::make_tuple(hs.object(), c_last.object(), saved);
  if (step) return py::make_tuple(hs.object(), saved);
  if (lstm) return py::make_tuple(hs.object(), h_last.object(), c_last.object(), saved);
  return py::make_tuple(hs.object(), h_last.object(), saved);
}

py::tuple backward(std::string_view op, Cell cell, bool step, py::handle dhs_, py::handle dh_last_, py::handle dc_last_,
                   py::handle x_, py::handle h0_, py::handle c0_, py::handle weight_x_, py::handle weight_h_,
                   py::handle hs_, py::handle saved_, py::handle lengths_, bool reverse, py::handle needs_) {
  const bool lstm = cell == Cell::lstm;
  const Array dhs = optional_any_float_array(op, step ? "dh_next" : "dhs", dhs_);
  const Array dh_last = optional_any_float_array(op, "dh_T", dh_last_);
  const Array dc_last = optional_any_float_array(op, step ? "dc_next" : "dc_T", dc_last_);
  const Array x = any_float_array(op, "x", x_), h0 = any_float_array(op, step ? "h" : "h0", h0_);
  const Array c0 = lstm ? any_float_array(op, step ? "c" : "c0", c0_) : Array();
  const Array weight_x = any_float_array(op, "weight_x", weight_x_),
              weight_h = any_float_array(op, "weight_h", weight_h_);
  const Array hs = any_float_array(op, step ? "h_next" : "hs", hs_);
  const bool gated = gate_count(cell) > 1;
  if (!py::isinstance<py::tuple>(saved_) || py::len(saved_) != (gated ? 2u : 0u)) {
    throw py::type_error(std::string(op) + ": saved is what this backend's forward returned, a tuple of " +
                         (gated ? "2 arrays" : "no arrays"));
  }
  const auto saved = py::reinterpret_borrow<py::tuple>(saved_);
  const Array gates = gated ? any_float_array(op, "saved gates", saved[0]) : Array();
  const Array cells = gated ? any_float_array(op, "saved cells", saved[1]) : Array();
  const DType dtype = common_dtype(op, {{"x", x},
                                        {"dhs", dhs},
                                        {"dh_T", dh_last},
                                        {"dc_T", dc_last},
                                        {"h0", h0},
                                        {"c0", c0},
                                        {"weight_x", weight_x},
                                        {"weight_h", weight_h},
                                        {"hs", hs},
                                        {"saved gates", gates},
                                        {"saved cells", cells}});
  const RecurrentShape shape = recurrent_shape(op, cell, step,
                                               {.x = &x.shape(),
                                                .h0 = &h0.shape(),
                                                .c0 = c0.shape_or_null(),
                                                .weight_x = &weight_x.shape(),
                                                .weight_h = &weight_h.shape(),
                                                .hs = &hs.shape(),
                                                .dhs = dhs.shape_or_null(),
                                                .dh_last = dh_last.shape_or_null(),
                                                .dc_last = dc_last.shape_or_null(),
                                                .saved_gates = gates.shape_or_null(),
                                                .saved_cells = cells.shape_or_null()});
  const auto lengths = read_lengths(op, shape, lengths_);

  const char* const dh_name = step ? "dh" : "dh0";
  const std::initializer_list<py::handle> inputs = {
      dhs_, dh_last_, dc_last_, x_, h0_, c0_, weight_x_, weight_h_, hs_, to_python(gates), to_python(cells)};
  std::array<Wanted, 6> needs;
  if (lstm) {
    needs = parse_needs<6>(op, needs_, {"dx", "dweight_x", "dweight_h", "dbias", dh_name, step ? "dc" : "dc0"}, inputs);
  } else {
    const auto five = parse_needs<5>(op, needs_, {"dx", "dweight_x", "dweight_h", "dbias", dh_name}, inputs);
    std::copy(five.begin(), five.end(), needs.begin());
  }
  const Array dx = gradient_array(needs[0], dtype, x.shape());
  const Array dweight_x = gradient_array(needs[1], dtype, weight_x.shape());
  const Array dweight_h = gradient_array(needs[2], dtype, weight_h.shape());
  const Array dbias = gradient_array(needs[3], dtype, Shape{shape.gates()});
  const Array dh0 = gradient_array(needs[4], dtype, h0.shape()), dc0 = gradient_array(needs[5], dtype, h0.shape());
  with_any_float(dtype, [&]<class T> {
    const py::gil_scoped_release unlocked;
    LEC7_PICK(recurrent_backward<T>)
    (shape,
     RecurrentBackward<T>{dhs.data<T>(), dh_last.data<T>(), dc_last.data<T>(), x.data<T>(), h0.data<T>(), c0.data<T>(),
                          weight_x.data<T>(), weight_h.data<T>(), hs.data<T>(), gates.data<T>(), cells.data<T>(),
                          lengths ? lengths->data() : nullptr, reverse, dx.data<T>(), dh0.data<T>(), dc0.data<T>(),
                          dweight_x.data<T>(), dweight_h.data<T>(), dbias.data<T>()});
  });
  if (lstm) return to_tuple(dx, dh0, dc0, dweight_x, dweight_h, dbias);
  return to_tuple(dx, dh0, dweight_x, dweight_h, dbias);
}

using H = py::handle;

void bind_rnn(py::module_& m) {
  m.def(
      "rnn_step_forward",
      [](H x, H h, H wx, H wh, H b, H activation) {
        return forward("rnn_step", rnn_cell("rnn_step", activation), true, x, h, py::none(), wx, wh, b, py::none(),
                       false);
      },
      py::arg("x"), py::arg("h"), py::arg("weight_x"), py::arg("weight_h"), py::arg("bias"), py::kw_only(),
      py::arg("activation") = "tanh");
  m.def(
      "rnn_step_backward",
      [](H dh, H x, H h, H wx, H wh, H h_next, H saved, H activation, H needs) {
        return backward("rnn_step", rnn_cell("rnn_step", activation), true, dh, py::none(), py::none(), x, h,
                        py::none(), wx, wh, h_next, saved, py::none(), false, needs);
      },
      py::arg("dh_next"), py::arg("x"), py::arg("h"), py::arg("weight_x"), py::arg("weight_h"), py::arg("h_next"),
      py::arg("saved"), py::kw_only(), py::arg("activation") = "tanh", py::arg("needs") = py::none());
  m.def(
      "rnn_forward",
      [](H x, H h0, H wx, H wh, H b, H activation, H lengths, bool reverse) {
        return forward("rnn", rnn_cell("rnn", activation), false, x, h0, py::none(), wx, wh, b, lengths, reverse);
      },
      py::arg("x"), py::arg("h0"), py::arg("weight_x"), py::arg("weight_h"), py::arg("bias"), py::kw_only(),
      py::arg("activation") = "tanh", py::arg("lengths") = py::none(), py::arg("reverse") = false);
  m.def(
      "rnn_backward",
      [](H dhs, H dh_T, H x, H h0, H wx, H wh, H hs, H saved, H activation, H lengths, bool reverse, H needs) {
        return backward("rnn", rnn_cell("rnn", activation), false, dhs, dh_T, py::none(), x, h0, py::none(), wx, wh, hs,
                        saved, lengths, reverse, needs);
      },
      py::arg("dhs"), py::arg("dh_T"), py::arg("x"), py::arg("h0"), py::arg("weight_x"), py::arg("weight_h"),
      py::arg("hs"), py::arg("saved"), py::kw_only(), py::arg("activation") = "tanh", py::arg("lengths") = py::none(),
      py::arg("reverse") = false, py::arg("needs") = py::none());
}

void bind_gru(py::module_& m) {
  m.def(
      "gru_step_forward",
      [](H x, H h, H wx, H wh, H b) {
        return forward("gru_step", Cell::gru, true, x, h, py::none(), wx, wh, b, py::none(), false);
      },
      py::arg("x"), py::arg("h"), py::arg("weight_x"), py::arg("weight_h"), py::arg("bias"));
  m.def(
      "gru_step_backward",
      [](H dh, H x, H h, H wx, H wh, H h_next, H saved, H needs) {
        return backward("gru_step", Cell::gru, true, dh, py::none(), py::none(), x, h, py::none(), wx, wh, h_next,
                        saved, py::none(), false, needs);
      },
      py::arg("dh_next"), py::arg("x"), py::arg("h"), py::arg("weight_x"), py::arg("weight_h"), py::arg("h_next"),
      py::arg("saved"), py::kw_only(), py::arg("needs") = py::none());
  m.def(
      "gru_forward",
      [](H x, H h0, H wx, H wh, H b, H lengths, bool reverse) {
        return forward("gru", Cell::gru, false, x, h0, py::none(), wx, wh, b, lengths, reverse);
      },
      py::arg("x"), py::arg("h0"), py::arg("weight_x"), py::arg("weight_h"), py::arg("bias"), py::kw_only(),
      py::arg("lengths") = py::none(), py::arg("reverse") = false);
  m.def(
      "gru_backward",
      [](H dhs, H dh_T, H x, H h0, H wx, H wh, H hs, H saved, H lengths, bool reverse, H needs) {
        return backward("gru", Cell::gru, false, dhs, dh_T, py::none(), x, h0, py::none(), wx, wh, hs, saved, lengths,
                        reverse, needs);
      },
      py::arg("dhs"), py::arg("dh_T"), py::arg("x"), py::arg("h0"), py::arg("weight_x"), py::arg("weight_h"),
      py::arg("hs"), py::arg("saved"), py::kw_only(), py::arg("lengths") = py::none(), py::arg("reverse") = false,
      py::arg("needs") = py::none());
}

void bind_lstm(py::module_& m) {
  m.def(
      "lstm_step_forward",
      [](H x, H h, H c, H wx, H wh, H b) {
        return forward("lstm_step", Cell::lstm, true, x, h, c, wx, wh, b, py::none(), false);
      },
      py::arg("x"), py::arg("h"), py::arg("c"), py::arg("weight_x"), py::arg("weight_h"), py::arg("bias"));
  m.def(
      "lstm_step_backward",
      [](H dh, H dc, H x, H h, H c, H wx, H wh, H h_next, H saved, H needs) {
        return backward("lstm_step", Cell::lstm, true, dh, py::none(), dc, x, h, c, wx, wh, h_next, saved, py::none(),
                        false, needs);
      },
      py::arg("dh_next"), py::arg("dc_next"), py::arg("x"), py::arg("h"), py::arg("c"), py::arg("weight_x"),
      py::arg("weight_h"), py::arg("h_next"), py::arg("saved"), py::kw_only(), py::arg("needs") = py::none());
  m.def(
      "lstm_forward",
      [](H x, H h0, H c0, H wx, H wh, H b, H lengths, bool reverse) {
        return forward("lstm", Cell::lstm, false, x, h0, c0, wx, wh, b, lengths, reverse);
      },
      py::arg("x"), py::arg("h0"), py::arg("c0"), py::arg("weight_x"), py::arg("weight_h"), py::arg("bias"),
      py::kw_only(), py::arg("lengths") = py::none(), py::arg("reverse") = false);
  m.def(
      "lstm_backward",
      [](H dhs, H dh_T, H dc_T, H x, H h0, H c0, H wx, H wh, H hs, H saved, H lengths, bool reverse, H needs) {
        return backward("lstm", Cell::lstm, false, dhs, dh_T, dc_T, x, h0, c0, wx, wh, hs, saved, lengths, reverse,
                        needs);
      },
      py::arg("dhs"), py::arg("dh_T"), py::arg("dc_T"), py::arg("x"), py::arg("h0"), py::arg("c0"), py::arg("weight_x"),
      py::arg("weight_h"), py::arg("hs"), py::arg("saved"), py::kw_only(), py::arg("lengths") = py::none(),
      py::arg("reverse") = false, py::arg("needs") = py::none());
}

}  // namespace

void bind_recurrent(py::module_& m) {
  bind_rnn(m);
  bind_lstm(m);
  bind_gru(m);
}

}  // namespace lec7::bindings
