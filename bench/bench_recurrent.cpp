// LSTM and GRU: one step, and the whole sequence forward and backward (every gradient but those of the first state).
#include "bench.h"
#include "lec7/recurrent.h"

namespace lec7::bench {
namespace {

std::string cell_name(Cell cell) { return cell == Cell::lstm ? "lstm" : cell == Cell::gru ? "gru" : "rnn"; }

// All arrays of one layer. A step is a sequence of length 1.
struct Layer {
  Layer(Cell cell, Index steps, Index batch, Index inputs, Index hidden)
      : shape{cell, steps, batch, inputs, hidden},
        x({steps, batch, inputs}),
        state({batch, hidden}),
        weight_x({inputs, shape.gates()}, kScale),
        weight_h({hidden, shape.gates()}, kScale),
        bias({shape.gates()}),
        hs({steps, batch, hidden}),
        h_last({batch, hidden}),
        c_last({batch, hidden}),
        gates(shape.saved_gates()),
        cells(shape.saved_cells()) {}

  double flops() const { return 2.0 * shape.steps * shape.batch * shape.gates() * (shape.inputs + shape.hidden); }
  double weight_bytes() const { return 4.0 * shape.gates() * (shape.inputs + shape.hidden + 1); }
  // Of x, hs, and what forward saves and backward reads.
  double step_bytes() const {
    return 4.0 * shape.steps * shape.batch * (shape.inputs + 2 * shape.hidden + shape.gates());
  }

  void forward() {
    LEC7_PICK(recurrent_forward<float>)
    (shape, {x.data(), state.data(), state.data(), weight_x.data(), weight_h.data(), bias.data(), nullptr, false,
             hs.data(), h_last.data(), c_last.data(), gates.data(), cells.data()});
  }

  // A state that neither dies nor saturates, as in training.
  static constexpr float kScale = 0.1f;

  RecurrentShape shape;
  Array x, state, weight_x, weight_h, bias, hs, h_last, c_last, gates, cells;
};

void step(Cell cell, Index batch, Index inputs, Index hidden) {
  add(cell_name(cell) + "_step", {{"N", batch}, {"D", inputs}, {"H", hidden}}, [=](benchmark::State& state) {
    Layer layer(cell, 1, batch, inputs, hidden);
    measure(state, {layer.flops(), layer.weight_bytes()}, [&] { layer.forward(); });
  });
}

void sequence(Cell cell, Index steps, Index batch, Index inputs, Index hidden) {
  const Numbers numbers{{"T", steps}, {"N", batch}, {"D", inputs}, {"H", hidden}};
  add(cell_name(cell) + "_forward", numbers, [=](benchmark::State& state) {
    Layer layer(cell, steps, batch, inputs, hidden);
    measure(state, {layer.flops(), layer.weight_bytes() + layer.step_bytes()}, [&] { layer.forward(); });
  });
  add(cell_name(cell) + "_backward", numbers, [=](benchmark::State& state) {
    Layer layer(cell, steps, batch, inputs, hidden);
    layer.forward();
    Array dhs({steps, batch, hidden}), dx({steps, batch, inputs}), dweight_x({inputs, layer.shape.gates()}),
        dweight_h({hidden, layer.shape.gates()}), dbias({layer.shape.gates()});
    const double gradients = 4.0 * steps * batch * (inputs + hidden);
    measure(state, {2 * layer.flops(), 2 * layer.weight_bytes() + layer.step_bytes() + gradients}, [&] {
      LEC7_PICK(recurrent_backward<float>)
      (layer.shape,
       {dhs.data(), nullptr, nullptr, layer.x.data(), layer.state.data(), layer.state.data(), layer.weight_x.data(),
        layer.weight_h.data(), layer.hs.data(), layer.gates.data(), layer.cells.data(), nullptr, false, dx.data(),
        nullptr, nullptr, dweight_x.data(), dweight_h.data(), dbias.data()});
    });
  });
}

const Rows rows([] {
  step(Cell::lstm, 1, 64, 100);
  step(Cell::lstm, 1, 512, 512);
  step(Cell::lstm, 64, 512, 512);
  sequence(Cell::lstm, 25, 1, 64, 100);
  sequence(Cell::lstm, 50, 50, 128, 128);
  sequence(Cell::lstm, 100, 16, 256, 256);
  sequence(Cell::lstm, 50, 64, 512, 512);
  sequence(Cell::gru, 50, 50, 128, 128);
  sequence(Cell::rnn_tanh, 50, 50, 128, 128);
});

}  // namespace
}  // namespace lec7::bench
