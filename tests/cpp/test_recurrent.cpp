// Recurrent cells, one step at a time in the formulas' own words; the tape differentiates them.
#include "lec7/recurrent.h"

#include <optional>

#include "tape.h"

namespace lec7::test {
namespace {

struct Case {
  Cell cell;
  Index steps, batch, inputs, hidden;
  std::vector<Index> lengths = {};  // empty: all rows live for all steps
  bool reverse = false;

  RecurrentShape shape() const { return {cell, steps, batch, inputs, hidden}; }
  bool lives(Index t, Index n) const { return lengths.empty() || t < lengths[n]; }
  std::string str() const {
    constexpr const char* names[] = {"rnn_tanh", "rnn_relu", "lstm", "gru"};
    return text(names[static_cast<int>(cell)], ", T=", steps, ", N=", batch, ", D=", inputs, ", H=", hidden,
                lengths.empty() ? "" : ", lengths", reverse ? ", reverse" : "");
  }
};

// x (D) W[:, column] + sum b.
Var dot(const Var* x, Index size, const Vars& weight, Index columns, Index column, Var start) {
  for (Index i = 0; i < size; ++i) start += x[i] * weight[i * columns + column];
  return start;
}

struct Weights {
  Vars x, h, bias;
};

// One step of one row: h (H) and c (H) become the next ones.
void step(const Case& test, const Weights& w, const Var* x, Vars& h, Vars& c) {
  const Index H = test.hidden, columns = test.shape().gates();
  const auto from_x = [&](Index column) { return dot(x, test.inputs, w.x, columns, column, w.bias[column]); };
  const auto from_h = [&](Index column) { return dot(h.data(), H, w.h, columns, column, 0.0); };
  const auto z = [&](Index gate, Index j) { return from_x(gate * H + j) + from_h(gate * H + j); };
  Vars next;
  for (Index j = 0; j < H; ++j) {
    switch (test.cell) {
      case Cell::rnn_tanh: next.push_back(tanh(z(0, j))); break;
      case Cell::rnn_relu: next.push_back(relu(z(0, j))); break;
      case Cell::lstm:
        c[j] = sigmoid(z(1, j)) * c[j] + sigmoid(z(0, j)) * tanh(z(3, j));
        next.push_back(sigmoid(z(2, j)) * tanh(c[j]));
        break;
      case Cell::gru: {
        const Var r = sigmoid(z(0, j)), u = sigmoid(z(1, j));
        const Var n = tanh(from_x(2 * H + j) + r * from_h(2 * H + j));
        next.push_back((1.0 - u) * n + u * h[j]);
      }
    }
  }
  h = next;
}

template <class T>
void check_recurrent(Random& random, const Case& test) {
  const Trying what(test.str());
  const RecurrentShape shape = test.shape();
  const Index T_ = test.steps, N = test.batch, D = test.inputs, H = test.hidden, G = shape.gates();
  const bool lstm = test.cell == Cell::lstm, gated = gate_count(test.cell) > 1;
  const double size = 1 / std::sqrt(static_cast<double>(H));
  const Array<T> h0 = random.array<T>(N * H), c0 = random.array<T>(N * H), bias = random.array<T>(G);
  const Array<T> weight_x = random.array<T>(D * G, -size, size), weight_h = random.array<T>(H * G, -size, size);
  const Array<T> dh_last = random.array<T>(N * H), dc_last = random.array<T>(N * H);
  // Past a row's length there may be anything.
  const auto padded = [&](Index features) {
    std::vector<double> values = random.array<T>(T_ * N * features).values();
    for (Index i = 0; i < T_ * N * features; ++i) {
      if (!test.lives(i / (N * features), i / features % N)) values[i] = std::nan("");
    }
    return Array<T>(values);
  };
  const Array<T> x = padded(D), dhs = padded(H);

  // Which gradients come in: all, hs alone, last states alone.
  for (const int given : {3, 1, 2}) {
    const Trying gradients(text("given ", given));
    Tape tape;
    const Vars x_var = tape.variables(x), h0_var = tape.variables(h0), c0_var = tape.variables(c0);
    const Weights w{tape.variables(weight_x), tape.variables(weight_h), tape.variables(bias)};
    Vars hs(static_cast<std::size_t>(T_ * N * H)), h_last, c_last;
    for (Index n = 0; n < N; ++n) {
      Vars h(h0_var.begin() + n * H, h0_var.begin() + (n + 1) * H),
          c(c0_var.begin() + n * H, c0_var.begin() + (n + 1) * H);
      for (Index s = 0; s < T_; ++s) {
        const Index t = test.reverse ? T_ - 1 - s : s;
        if (!test.lives(t, n)) continue;
        step(test, w, x_var.data() + (t * N + n) * D, h, c);
        std::copy(h.begin(), h.end(), hs.begin() + (t * N + n) * H);
      }
      h_last.insert(h_last.end(), h.begin(), h.end());
      c_last.insert(c_last.end(), c.begin(), c.end());
    }
    if (given & 1) tape.add(hs, dhs);
    if (given & 2) tape.add(h_last, dh_last);
    if ((given & 2) && lstm) tape.add(c_last, dc_last);
    tape.differentiate();

    on_every_isa([&] {
      const Array<T> got_hs(T_ * N * H), got_h(N * H), got_c(N * H), gates(T_ * N * G), cells(T_ * N * H);
      const Index* const lengths = test.lengths.empty() ? nullptr : test.lengths.data();
      LEC7_PICK(recurrent_forward<T>)
      (shape, RecurrentForward<T>{x.data(), h0.data(), lstm ? c0.data() : nullptr, weight_x.data(), weight_h.data(),
                                  bias.data(), lengths, test.reverse, got_hs.data(), got_h.data(),
                                  lstm ? got_c.data() : nullptr, gated ? gates.data() : nullptr,
                                  gated ? cells.data() : nullptr});
      check_close(got_hs, values(hs), 32);
      check_close(got_h, values(h_last), 32);
      if (lstm) check_close(got_c, values(c_last), 32);

      for (const int wanted : {63, 1, 2, 4, 8, 16, 32}) {
        if (wanted != 63 && given != 3) continue;
        const Array<T> got[] = {Array<T>(T_ * N * D), Array<T>(N * H), Array<T>(N * H),
                                Array<T>(D * G),      Array<T>(H * G), Array<T>(G)};
        T* result[6];
        for (int i = 0; i < 6; ++i) result[i] = (wanted >> i & 1) && (i != 2 || lstm) ? got[i].data() : nullptr;
        LEC7_PICK(recurrent_backward<T>)
        (shape, RecurrentBackward<T>{given & 1 ? dhs.data() : nullptr, given & 2 ? dh_last.data() : nullptr,
                                     (given & 2) && lstm ? dc_last.data() : nullptr, x.data(), h0.data(),
                                     lstm ? c0.data() : nullptr, weight_x.data(), weight_h.data(), got_hs.data(),
                                     gated ? gates.data() : nullptr, gated ? cells.data() : nullptr, lengths,
                                     test.reverse, result[0], result[1], result[2], result[3], result[4], result[5]});
        const std::vector<double> want[] = {tape.gradient(x_var), tape.gradient(h0_var), tape.gradient(c0_var),
                                            tape.gradient(w.x),   tape.gradient(w.h),    tape.gradient(w.bias)};
        for (int i = 0; i < 6; ++i) {
          const Trying argument(text("gradient ", i, " of ", wanted));
          if (result[i] != nullptr) check_close(got[i], want[i], 64);
        }
      }
    });
  }
}

constexpr Cell kCells[] = {Cell::rnn_tanh, Cell::rnn_relu, Cell::lstm, Cell::gru};

TEST(sizes_around_vectors) {
  with_types([]<class T> {
    Random random;
    for (const Cell cell : kCells) {
      for (const Index hidden : {1, 3, 4, 5, 8, 15, 16, 17}) check_recurrent<T>(random, {cell, 3, 2, 3, hidden});
      for (const Index batch : {0, 1, 5, 6, 7, 13}) check_recurrent<T>(random, {cell, 2, batch, 5, 9});
      check_recurrent<T>(random, {cell, 1, 3, 0, 6});   // no inputs
      check_recurrent<T>(random, {cell, 9, 7, 2, 35});  // packed weights, several tiles
      check_recurrent<T>(random, {cell, 1, 1, 4, 33});
    }
  });
}

TEST(lengths_and_direction) {
  with_types([]<class T> {
    Random random;
    for (const Cell cell : kCells) {
      for (const bool reverse : {false, true}) {
        check_recurrent<T>(random, {cell, 5, 3, 4, 7, {}, reverse});
        check_recurrent<T>(random, {cell, 5, 4, 3, 17, {5, 2, 0, 1}, reverse});
        check_recurrent<T>(random, {cell, 3, 2, 2, 4, {0, 0}, reverse});
        check_recurrent<T>(random, {cell, 9, 8, 2, 5, {9, 1, 8, 2, 7, 3, 0, 5}, reverse});
      }
    }
  });
}

// Enough work that threads share rows, or units with a barrier each step.
TEST(threads) {
  with_types([]<class T> {
    Random random;
    for (const Cell cell : kCells) {
      const Index rows = cell == Cell::lstm ? 9 : cell == Cell::gru ? 12 : 34;
      check_recurrent<T>(random, {cell, 2, rows, 3, 45});
    }
    check_recurrent<T>(random, {Cell::lstm, 2, 1, 3, 130});
    check_recurrent<T>(random, {Cell::gru, 2, 1, 3, 150, {}, true});
    check_recurrent<T>(random, {Cell::rnn_tanh, 2, 1, 3, 257});
  });
  Random random;
  check_recurrent<float>(random, {Cell::lstm, 2, 2, 3, 257, {2, 1}});
}

// One step, where hs is the last state.
TEST(a_step_needs_no_last_state) {
  Random random;
  const RecurrentShape shape{Cell::gru, 1, 2, 3, 5};
  const Array<float> x = random.array<float>(6), h = random.array<float>(10), weight_x = random.array<float>(45);
  const Array<float> weight_h = random.array<float>(75), bias = random.array<float>(15);
  on_every_isa([&] {
    const Array<float> hs(10), last(10), step(10), gates(30), cells(10);
    RecurrentForward<float> arrays{x.data(),    h.data(),     nullptr,     weight_x.data(), weight_h.data(),
                                   bias.data(), nullptr,      false,       hs.data(),       last.data(),
                                   nullptr,     gates.data(), cells.data()};
    LEC7_PICK(recurrent_forward<float>)(shape, arrays);
    check_same(last, hs.values());
    arrays.hs = step.data();
    arrays.h_last = nullptr;
    LEC7_PICK(recurrent_forward<float>)(shape, arrays);
    check_same(step, hs.values());
  });
}

}  // namespace
}  // namespace lec7::test
