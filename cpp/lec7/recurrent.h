// Recurrent cells over a whole sequence (one step is a sequence of length 1). z = x Wx + h Wh + b, gate by gate:
//
//   RNN   h' = act(z)                                                        act: tanh or relu
//   LSTM  i, f, o = sigmoid(z_i, z_f, z_o), g = tanh(z_g);  c' = f c + i g;  h' = o tanh(c')
//   GRU   r, z = sigmoid(z_r, z_z), n = tanh(x Wx_n + b_n + r (h Wh_n));     h' = (1 - z) n + z h
//
// Backward, from the last step to the first, with dh the sum of dhs[t] and what step t + 1 sent back:
//
//   LSTM  dc += dh o (1 - tanh^2 c');  dz_i = dc g i (1-i), dz_f = dc c f (1-f), dz_o = dh tanh(c') o (1-o),
//         dz_g = dc i (1 - g^2);  dc <- dc f
//   GRU   dz_n = dh (1-z) (1 - n^2), dz_r = dz_n (h Wh_n) r (1-r), dz_z = dh (h - n) z (1-z);  dh <- dh z
//         (towards Wh and h, dz_n is multiplied by r)
//   all   dh <- dh + dz Wh^T,  dx = dz Wx^T,  dWx = sum_t x^T dz,  dWh = sum_t h^T dz,  db = sum_t dz
//
// Sources: Elman 1990; Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; Cho et al. 2014.
#pragma once

#include <vector>

#include "lec7/indices.h"

namespace lec7 {

enum class Cell { rnn_tanh, rnn_relu, lstm, gru };

inline int gate_count(Cell cell) { return cell == Cell::lstm ? 4 : cell == Cell::gru ? 3 : 1; }

struct RecurrentShape {
  Cell cell;
  Index steps, batch, inputs, hidden;

  Index gates() const { return gate_count(cell) * hidden; }  // columns of the weights
  // What forward saves: the gates, and c' of each step (LSTM) or h Wh_n (GRU). The RNN needs only hs.
  Shape saved_gates() const { return {steps, batch, gates()}; }
  Shape saved_cells() const { return {steps, batch, hidden}; }
};

// Validates every shape that is given (null: the op has no such argument, or it is None). `step`: x is (N, D), not
// (T, N, D), in the messages and the rule.
struct RecurrentArguments {
  const Shape* x = nullptr;
  const Shape* h0 = nullptr;
  const Shape* c0 = nullptr;
  const Shape* weight_x = nullptr;
  const Shape* weight_h = nullptr;
  const Shape* bias = nullptr;
  const Shape* hs = nullptr;
  const Shape* dhs = nullptr;
  const Shape* dh_last = nullptr;
  const Shape* dc_last = nullptr;
  const Shape* saved_gates = nullptr;
  const Shape* saved_cells = nullptr;
};
RecurrentShape recurrent_shape(std::string_view op, Cell cell, bool step, const RecurrentArguments& arguments);

// The lengths as Index: one for each row, each in [0, steps].
std::vector<Index> recurrent_lengths(std::string_view op, const RecurrentShape& shape, const Shape& lengths,
                                     const Indices& values);

template <class T>
struct RecurrentForward {
  const T *x, *h0, *c0, *weight_x, *weight_h, *bias;
  const Index* lengths;  // null: all rows live for all steps
  bool reverse;
  T *hs, *h_last, *c_last, *gates, *cells;  // h_last may be null: one step, where hs is it
};

template <class T>
struct RecurrentBackward {
  const T *dhs, *dh_last, *dc_last;  // null: zero
  const T *x, *h0, *c0, *weight_x, *weight_h, *hs, *gates, *cells;
  const Index* lengths;
  bool reverse;
  T *dx, *dh0, *dc0, *dweight_x, *dweight_h, *dbias;  // null: not wanted
};

}  // namespace lec7

LEC7_KERNELS(template <class T> void recurrent_forward(const RecurrentShape& shape, const RecurrentForward<T>& arrays);
             template <class T>
             void recurrent_backward(const RecurrentShape& shape, const RecurrentBackward<T>& arrays);)
