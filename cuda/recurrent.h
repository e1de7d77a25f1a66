// What the kernels of recurrent.cu and recurrent_mma.cu share: where rows begin and end, one unit of one row at one
// step.
//
// A number of 16 bits is rounded where it is stored, once: sums and gates are float32, and h is computed from the gates
// and c' before they are rounded. The next step reads h and c as they are stored, so that a sequence is its steps, and
// backward reads the stored gates and cells. dz is stored as the arrays are: every product with it (through Wh to the
// step before, dx, dWx, dWh) then takes two operands of one type on tensor cores, half the bytes go through L2 at each
// step, and one rounding of each term is little in a sum. What backward hands on besides, the direct part of dh and dc,
// is summed from step to step and stays float32.
#pragma once

#include "activation.h"
#include "grid.h"
#include "half.h"
#include "kernel.h"
#include "lec7/recurrent.h"

namespace lec7::cuda {

inline constexpr Index kMostRows = 256;  // of a batch, up to which a step is bound by latency

inline bool is_aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % sizeof(float4) == 0; }

// ---- where rows begin and end ----

template <class Arrays>
__device__ Index time_of(const RecurrentShape& s, const Arrays& a, Index step) {
  return a.reverse ? s.steps - 1 - step : step;
}
template <class Arrays>
__device__ Index length_of(const RecurrentShape& s, const Arrays& a, Index n) {
  return a.lengths == nullptr ? s.steps : a.lengths[n];
}
// Is h0 the state of row n before time t? (Also where the row has not begun.)
template <class Arrays>
__device__ bool begins(const RecurrentShape& s, const Arrays& a, Index t, Index n) {
  return a.reverse ? t + 1 >= length_of(s, a, n) : t == 0;
}
// The row of a (T, N, H) array that came before (t, n).
template <class Arrays>
__device__ Index row_before(const RecurrentShape& s, const Arrays& a, Index t, Index n) {
  return (a.reverse ? t + 1 : t - 1) * s.batch + n;
}
// h of row n before time t.
template <class Arrays>
__device__ auto state_before(const RecurrentShape& s, const Arrays& a, Index t, Index n) {
  using Pointer = decltype(a.h0);
  return begins(s, a, t, n) ? a.h0 + n * s.hidden : static_cast<Pointer>(a.hs) + row_before(s, a, t, n) * s.hidden;
}

// ---- one unit of one row at one step ----

// The sums before the nonlinearities, x Wx + b + h Wh:
//   RNN   in x
//   LSTM  i, f, o, g
//   GRU   r, z; and apart, since r comes between them, h Wh_n and x Wx_n + b_n
template <int G, class T>
__device__ void unit_forward(const RecurrentShape& s, const RecurrentForward<T>& a, Index t, Index n, Index j,
                             float4 sums, float h_before) {
  const Index H = s.hidden, row = t * s.batch + n, length = length_of(s, a, n);
  const bool lives = t < length;
  T* const gates = a.gates + row * G * H + j;
  const auto store = [](T& to, float x) { to = from_float<T>(x); };
  float h, c = 0;
  if constexpr (G == 1) {
    h = activate(s.cell == Cell::rnn_relu ? Activation::relu : Activation::tanh, sums.x);
  } else if constexpr (G == 4) {
    const float in = sigmoid(sums.x), forget = sigmoid(sums.y), out = sigmoid(sums.z), g = tanhf(sums.w);
    const T& c_before = begins(s, a, t, n) ? a.c0[n * H + j] : a.cells[row_before(s, a, t, n) * H + j];
    c = forget * to_float(c_before) + in * g;
    h = out * tanhf(c);
    store(gates[0], in), store(gates[H], forget), store(gates[2 * H], out), store(gates[3 * H], g);
    store(a.cells[row * H + j], c);
  } else {
    const float r = sigmoid(sums.x), keep = sigmoid(sums.y), candidate = tanhf(sums.w + r * sums.z);
    h = (1 - keep) * candidate + keep * h_before;
    store(gates[0], r), store(gates[H], keep), store(gates[2 * H], candidate);
    store(a.cells[row * H + j], sums.z);
  }
  store(a.hs[row * H + j], lives ? h : 0);
  const bool ends = lives && (a.reverse ? t == 0 : t == length - 1);
  const bool never = length == 0 && (a.reverse ? t == 0 : t == s.steps - 1);
  if (a.h_last != nullptr && (ends || never)) a.h_last[n * H + j] = ends ? from_float<T>(h) : a.h0[n * H + j];
  if (G == 4 && (ends || never)) a.c_last[n * H + j] = ends ? from_float<T>(c) : a.c0[n * H + j];
}

// What the steps of backward share. dz as Wx sees it and as Wh sees it (the same but for the GRU), (T, N, G H); the
// direct part of dh and dc, (N, H); h before each step, (T, N, H).
template <class T>
struct Carried {
  T *dz_x, *dz_h;
  float *dh, *dc;
  const T* before;
};

// `dh`: what came through Wh.
template <int G, class T>
__device__ void unit_backward(const RecurrentShape& s, const RecurrentBackward<T>& a, const Carried<T>& to, Index t,
                              Index n, Index j, float dh) {
  const Index H = s.hidden, row = t * s.batch + n, at = n * H + j;
  T* const dz = to.dz_x + row * G * H + j;
  T* const dz_h = to.dz_h + row * G * H + j;
  const auto store = [](T& to, float x) { to = from_float<T>(x); };
  dh += to.dh[at];
  if (t >= length_of(s, a, n)) {
    to.dh[at] = dh;
#pragma unroll
    for (int g = 0; g < G; ++g) dz[g * H] = dz_h[g * H] = T{};
    return;
  }
  if (a.dhs != nullptr) dh += to_float(a.dhs[row * H + j]);
  float direct = 0;
  if constexpr (G == 1) {
    const Activation activation = s.cell == Cell::rnn_relu ? Activation::relu : Activation::tanh;
    store(dz[0], dh * activation_slope(activation, to_float(a.hs[row * H + j])));
  } else if constexpr (G == 4) {
    const T* const gates = a.gates + row * G * H + j;
    const float in = to_float(gates[0]), forget = to_float(gates[H]);
    const float out = to_float(gates[2 * H]), g = to_float(gates[3 * H]);
    const float c_before = to_float(begins(s, a, t, n) ? a.c0[at] : a.cells[row_before(s, a, t, n) * H + j]);
    const float tanh_c = tanhf(to_float(a.cells[row * H + j]));
    const float dc = to.dc[at] + dh * out * (1 - tanh_c * tanh_c);
    store(dz[0], dc * g * in * (1 - in));
    store(dz[H], dc * c_before * forget * (1 - forget));
    store(dz[2 * H], dh * tanh_c * out * (1 - out));
    store(dz[3 * H], dc * in * (1 - g * g));
    to.dc[at] = dc * forget;
  } else {
    const T* const gates = a.gates + row * G * H + j;
    const float r = to_float(gates[0]), keep = to_float(gates[H]), candidate = to_float(gates[2 * H]);
    const float dz_n = dh * (1 - keep) * (1 - candidate * candidate);
    const float dz_r = dz_n * to_float(a.cells[row * H + j]) * r * (1 - r);
    const float dz_z = dh * (to_float(to.before[row * H + j]) - candidate) * keep * (1 - keep);
    dz[0] = dz_h[0] = from_float<T>(dz_r);
    dz[H] = dz_h[H] = from_float<T>(dz_z);
    store(dz[2 * H], dz_n);
    store(dz_h[2 * H], dz_n * r);
    direct = dh * keep;
  }
  to.dh[at] = direct;
}

// ---- all steps in one launch, on tensor cores (float16 and bfloat16) ----

// False, and nothing done, where that does not fit. x_products: x Wx + b of all steps, (T, N, G H).
template <int G, class T>
bool mma_forward(const RecurrentShape& s, const RecurrentForward<T>& a, const float* x_products);
template <int G, class T>
bool mma_backward(const RecurrentShape& s, const RecurrentBackward<T>& a, const Carried<T>& to);

}  // namespace lec7::cuda
