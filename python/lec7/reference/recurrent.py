"""Recurrent cells: one step of the vanilla RNN, the LSTM and the GRU, and each walked over a whole sequence.

The G gates of a cell lie side by side in weight_x (D, G*H), weight_h (H, G*H) and bias (G*H,). The gradients
of the sums z that enter the gates give every other gradient, through `_step_products`.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray

from ._checks import delivers, expect_indices, expect_shape, wanted
from .activation import activate, activate_backward, sigmoid_forward

# --- one step -----------------------------------------------------------------------------------------------


def rnn_step_forward(
    x: ndarray,
    h: ndarray,
    weight_x: ndarray,
    weight_h: ndarray,
    bias: ndarray,
    *,
    activation: str = "tanh",
) -> tuple[ndarray, None]:
    """One step of the vanilla recurrent network.

    h_next = activation(x @ weight_x + h @ weight_h + bias)

    Args:    x: (N, D) float32|float64.  h: (N, H).  weight_x: (D, H).  weight_h: (H, H).  bias: (H,).
             activation: "tanh" or "relu".
    Returns: h_next (N, H); saved: the backend's own (here None: h_next is all that the backward needs).
    Raises:  ValueError: shapes do not fit; unknown activation.
    Source:  Elman 1990, Finding structure in time.
    """
    _check_activation("rnn_step", activation)
    _check_step("rnn_step", 1, x, weight_x, weight_h, bias, h=h)
    return activate("rnn_step", x @ weight_x + h @ weight_h + bias, activation), None


@delivers("rnn_step", "dx", "dh", "dweight_x", "dweight_h", "dbias")
def rnn_step_backward(
    dh_next: ndarray,
    x: ndarray,
    h: ndarray,
    weight_x: ndarray,
    weight_h: ndarray,
    h_next: ndarray,
    saved: None,
    *,
    activation: str = "tanh",
    needs: Collection[str] | None = None,
) -> tuple[ndarray | None, ...]:
    """Gradients of one step of the vanilla recurrent network.

    dz = dh_next * activation'(h_next)
    dx = dz @ weight_x.T;  dh = dz @ weight_h.T
    dweight_x = x.T @ dz;  dweight_h = h.T @ dz;  dbias = sum_n dz

    Args:    dh_next: (N, H).  x, h, weight_x, weight_h: those of the forward.  h_next, saved: its results.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx (N, D), dh (N, H), dweight_x (D, H), dweight_h (H, H), dbias (H,); None for those not wanted.
    Raises:  ValueError: shapes do not fit; unknown activation or gradient name.
    Source:  Werbos 1990, Backpropagation through time.
    """
    _check_activation("rnn_step", activation)
    _check_step("rnn_step", 1, x, weight_x, weight_h, h=h, h_next=h_next, dh_next=dh_next)
    dz = activate_backward("rnn_step", dh_next, h_next, activation)
    return _step_products("rnn_step", needs, dz, dz, 0, x, h, weight_x, weight_h)


def lstm_step_forward(
    x: ndarray, h: ndarray, c: ndarray, weight_x: ndarray, weight_h: ndarray, bias: ndarray
) -> tuple[ndarray, ndarray, tuple[ndarray, ndarray]]:
    """One step of the long short-term memory.

    i, f, o, g = the quarters of x @ weight_x + h @ weight_h + bias, through sigmoid (i, f, o) and tanh (g)
    c_next = f * c + i * g
    h_next = o * tanh(c_next)

    Args:    x: (N, D) float32|float64.  h, c: (N, H).
             weight_x: (D, 4H).  weight_h: (H, 4H).  bias: (4H,).
    Returns: h_next (N, H), c_next (N, H); saved: the gates i, f, o, g (N, 4H) and c_next here.
    Raises:  ValueError: shapes do not fit.
    Source:  Hochreiter, Schmidhuber 1997; Gers, Schmidhuber, Cummins 2000 (forget gate).
    """
    _check_step("lstm_step", 4, x, weight_x, weight_h, bias, h=h, c=c)
    z_i, z_f, z_o, z_g = np.split(x @ weight_x + h @ weight_h + bias, 4, axis=1)
    i, f, o, g = sigmoid_forward(z_i), sigmoid_forward(z_f), sigmoid_forward(z_o), np.tanh(z_g)
    c_next = f * c + i * g
    h_next = o * np.tanh(c_next)
    return h_next, c_next, (np.concatenate((i, f, o, g), axis=1), c_next)


@delivers("lstm_step", "dx", "dh", "dc", "dweight_x", "dweight_h", "dbias")
def lstm_step_backward(
    dh_next: ndarray | None,
    dc_next: ndarray | None,
    x: ndarray,
    h: ndarray,
    c: ndarray,
    weight_x: ndarray,
    weight_h: ndarray,
    h_next: ndarray,
    saved: tuple[ndarray, ndarray],
    *,
    needs: Collection[str] | None = None,
) -> tuple[ndarray | None, ...]:
    """Gradients of one step of the long short-term memory.

    dct = dc_next + dh_next * o * (1 - tanh(c_next)^2);  dc = dct * f
    dz = (dct g i (1 - i), dct c f (1 - f), dh_next tanh(c_next) o (1 - o), dct i (1 - g^2))
    dx = dz @ weight_x.T;  dh = dz @ weight_h.T
    dweight_x = x.T @ dz;  dweight_h = h.T @ dz;  dbias = sum_n dz

    Args:    dh_next, dc_next: (N, H), or None for 0.  x, h, c, weight_x, weight_h: those of the forward.
             h_next, saved: its results.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx (N, D), dh (N, H), dc (N, H), dweight_x (D, 4H), dweight_h (H, 4H), dbias (4H,);
             None for those not wanted.
    Raises:  ValueError: shapes do not fit; unknown gradient name.
    Source:  Greff et al. 2017, LSTM: a search space odyssey, section II.B.
    """
    wanted("lstm_step", needs, "dx", "dh", "dc", "dweight_x", "dweight_h", "dbias")
    dh_next = np.zeros_like(h) if dh_next is None else dh_next
    dc_next = np.zeros_like(c) if dc_next is None else dc_next
    states = {"h": h, "c": c, "h_next": h_next, "dh_next": dh_next, "dc_next": dc_next}
    _check_step("lstm_step", 4, x, weight_x, weight_h, **states)
    gates, c_next = saved
    i, f, o, g = np.split(gates, 4, axis=1)
    tanh_c = np.tanh(c_next)
    dct = dc_next + dh_next * o * (1 - tanh_c * tanh_c)
    dz = np.concatenate(
        (
            dct * g * i * (1 - i),
            dct * c * f * (1 - f),
            dh_next * tanh_c * o * (1 - o),
            dct * i * (1 - g * g),
        ),
        axis=1,
    )
    shared_needs = None if needs is None else set(needs) - {"dc"}
    dx, dh, *dweights = _step_products("lstm_step", shared_needs, dz, dz, 0, x, h, weight_x, weight_h)
    dc = dct * f if needs is None or "dc" in needs else None
    return dx, dh, dc, *dweights


def gru_step_forward(
    x: ndarray, h: ndarray, weight_x: ndarray, weight_h: ndarray, bias: ndarray
) -> tuple[ndarray, tuple[ndarray, ndarray]]:
    """One step of the gated recurrent unit, with the reset gate after the product.

    r, z = sigmoid of the first two thirds of x @ weight_x + h @ weight_h + bias
    n = tanh(x @ weight_x[n] + bias[n] + r * (h @ weight_h[n])), [n] the last third of the columns
    h_next = (1 - z) * n + z * h

    Args:    x: (N, D) float32|float64.  h: (N, H).  weight_x: (D, 3H).  weight_h: (H, 3H).  bias: (3H,).
    Returns: h_next (N, H); saved: the gates r, z, n (N, 3H) and h @ weight_h[n] (N, H) here.
    Raises:  ValueError: shapes do not fit.
    Source:  Cho et al. 2014, Learning phrase representations using RNN encoder-decoder, section 2.3;
             the reset gate's place as in cuDNN (Chetlur et al. 2014).
    """
    _check_step("gru_step", 3, x, weight_x, weight_h, bias, h=h)
    x_r, x_z, x_n = np.split(x @ weight_x + bias, 3, axis=1)
    h_r, h_z, h_n = np.split(h @ weight_h, 3, axis=1)
    r, z = sigmoid_forward(x_r + h_r), sigmoid_forward(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    return (1 - z) * n + z * h, (np.concatenate((r, z, n), axis=1), h_n)


@delivers("gru_step", "dx", "dh", "dweight_x", "dweight_h", "dbias")
def gru_step_backward(
    dh_next: ndarray,
    x: ndarray,
    h: ndarray,
    weight_x: ndarray,
    weight_h: ndarray,
    h_next: ndarray,
    saved: tuple[ndarray, ndarray],
    *,
    needs: Collection[str] | None = None,
) -> tuple[ndarray | None, ...]:
    """Gradients of one step of the gated recurrent unit.

    dn = dh_next (1 - z) (1 - n^2);  dr = dn (h @ weight_h[n]) r (1 - r);  dz = dh_next (h - n) z (1 - z)
    dz_x = (dr, dz, dn);  dz_h = (dr, dz, dn r)
    dx = dz_x @ weight_x.T;  dh = dz_h @ weight_h.T + dh_next z
    dweight_x = x.T @ dz_x;  dweight_h = h.T @ dz_h;  dbias = sum_n dz_x

    Args:    dh_next: (N, H).  x, h, weight_x, weight_h: those of the forward.  h_next, saved: its results.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx (N, D), dh (N, H), dweight_x (D, 3H), dweight_h (H, 3H), dbias (3H,);
             None for those not wanted.
    Raises:  ValueError: shapes do not fit; unknown gradient name.
    Source:  Cho et al. 2014, section 2.3, differentiated.
    """
    _check_step("gru_step", 3, x, weight_x, weight_h, h=h, h_next=h_next, dh_next=dh_next)
    gates, h_n = saved
    r, z, n = np.split(gates, 3, axis=1)
    dn = dh_next * (1 - z) * (1 - n * n)
    dr = dn * h_n * r * (1 - r)
    dz = dh_next * (h - n) * z * (1 - z)
    dz_x = np.concatenate((dr, dz, dn), axis=1)
    dz_h = np.concatenate((dr, dz, dn * r), axis=1)
    return _step_products("gru_step", needs, dz_x, dz_h, dh_next * z, x, h, weight_x, weight_h)


def _step_products(
    op: str,
    needs: Collection[str] | None,
    dz_x: ndarray,
    dz_h: ndarray,
    dh_direct: ndarray | float,
    x: ndarray,
    h: ndarray,
    weight_x: ndarray,
    weight_h: ndarray,
) -> tuple[ndarray | None, ...]:
    """Gradients of x @ weight_x + bias and h @ weight_h from those of the two sums."""
    need = wanted(op, needs, "dx", "dh", "dweight_x", "dweight_h", "dbias")
    return (
        dz_x @ weight_x.T if need[0] else None,
        dz_h @ weight_h.T + dh_direct if need[1] else None,
        x.T @ dz_x if need[2] else None,
        h.T @ dz_h if need[3] else None,
        dz_x.sum(axis=0) if need[4] else None,
    )


# --- the whole sequence -------------------------------------------------------------------------------------


def rnn_forward(
    x: ndarray,
    h0: ndarray,
    weight_x: ndarray,
    weight_h: ndarray,
    bias: ndarray,
    *,
    activation: str = "tanh",
    lengths: ndarray | None = None,
    reverse: bool = False,
) -> tuple[ndarray, ndarray, list[Any]]:
    """Vanilla recurrent network over a sequence.

    h[t] = activation(x[t] @ weight_x + h[t-1] @ weight_h + bias), h[-1] = h0
    Row n lives for t < lengths[n]: past it hs is 0 and the state stands still. With reverse the walk goes
    from t = T-1 down to 0 (row n starts at lengths[n]-1); hs stay at their own t.

    Args:    x: (T, N, D) float32|float64.  h0: (N, H).  weight_x: (D, H).  weight_h: (H, H).  bias: (H,).
             activation: "tanh" or "relu".  lengths: (N,) int32|int64, in [0, T]; None means T.
    Returns: hs (T, N, H); h_T (N, H), the state after each row's last step;
             saved: the backend's own (here the states before, and what was saved by, each step).
    Raises:  ValueError: shapes do not fit; a length is out of range; unknown activation.
    Source:  Elman 1990, Finding structure in time.
    """
    _check_activation("rnn", activation)
    _check_sequence("rnn", 1, x, weight_x, weight_h, bias, lengths, h0=h0)
    step = partial(rnn_step_forward, activation=activation)
    hs, (h_last,), saved = _walk(step, x, (h0,), (weight_x, weight_h, bias), lengths, reverse)
    return hs, h_last, saved


@delivers("rnn", "dx", "dh0", "dweight_x", "dweight_h", "dbias")
def rnn_backward(
    dhs: ndarray | None,
    dh_T: ndarray | None,
    x: ndarray,
    h0: ndarray,
    weight_x: ndarray,
    weight_h: ndarray,
    hs: ndarray,
    saved: list[Any],
    *,
    activation: str = "tanh",
    lengths: ndarray | None = None,
    reverse: bool = False,
    needs: Collection[str] | None = None,
) -> tuple[ndarray | None, ...]:
    """Gradients of the vanilla recurrent network over a sequence (back-propagation through time).

    From the walk's last step to its first, with dh = dh_T at its end: dh <- dh of the step for dh + dhs[t];
    the gradients of the weights are the sums over the steps. Steps past lengths[n] pass dh on unchanged.

    Args:    dhs: (T, N, H), or None for 0.  dh_T: (N, H), or None for 0.  x, h0, weight_x, weight_h and
             parameters: those of the forward.  hs, saved: its results.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx (T, N, D), dh0 (N, H), dweight_x (D, H), dweight_h (H, H), dbias (H,);
             None for those not wanted.
    Raises:  as the forward; ValueError: unknown gradient name.
    Source:  Werbos 1990, Backpropagation through time.
    """
    _check_activation("rnn", activation)
    _check_sequence("rnn", 1, x, weight_x, weight_h, None, lengths, h0=h0, hs=hs, dhs=dhs, dh_T=dh_T)
    step = partial(rnn_step_backward, activation=activation)
    return _walk_back(
        "rnn", step, dhs, (dh_T,), x, (h0,), (weight_x, weight_h), hs, saved, lengths, reverse, needs
    )


def lstm_forward(
    x: ndarray,
    h0: ndarray,
    c0: ndarray,
    weight_x: ndarray,
    weight_h: ndarray,
    bias: ndarray,
    *,
    lengths: ndarray | None = None,
    reverse: bool = False,
) -> tuple[ndarray, ndarray, ndarray, list[Any]]:
    """Long short-term memory over a sequence.

    h[t], c[t] = lstm_step(x[t], h[t-1], c[t-1]), h[-1], c[-1] = h0, c0
    Row n lives for t < lengths[n]: past it hs is 0 and the states stand still. With reverse the walk goes
    from t = T-1 down to 0 (row n starts at lengths[n]-1); hs stay at their own t.

    Args:    x: (T, N, D) float32|float64.  h0, c0: (N, H).
             weight_x: (D, 4H).  weight_h: (H, 4H).  bias: (4H,), gates in the order i, f, o, g.
             lengths: (N,) int32|int64, in [0, T]; None means T.
    Returns: hs (T, N, H); h_T, c_T (N, H), the states after each row's last step;
             saved: the backend's own (here the states before, and what was saved by, each step).
    Raises:  ValueError: shapes do not fit; a length is out of range.
    Source:  Hochreiter, Schmidhuber 1997; Gers, Schmidhuber, Cummins 2000 (forget gate).
    """
    _check_sequence("lstm", 4, x, weight_x, weight_h, bias, lengths, h0=h0, c0=c0)
    weights = (weight_x, weight_h, bias)
    hs, (h_last, c_last), saved = _walk(lstm_step_forward, x, (h0, c0), weights, lengths, reverse)
    return hs, h_last, c_last, saved


@delivers("lstm", "dx", "dh0", "dc0", "dweight_x", "dweight_h", "dbias")
def lstm_backward(
    dhs: ndarray | None,
    dh_T: ndarray | None,
    dc_T: ndarray | None,
    x: ndarray,
    h0: ndarray,
    c0: ndarray,
    weight_x: ndarray,
    weight_h: ndarray,
    hs: ndarray,
    saved: list[Any],
    *,
    lengths: ndarray | None = None,
    reverse: bool = False,
    needs: Collection[str] | None = None,
) -> tuple[ndarray | None, ...]:
    """Gradients of the long short-term memory over a sequence (back-propagation through time).

    From the walk's last step to its first, with dh, dc = dh_T, dc_T at its end: dh, dc <- dh, dc of the step
    for dh + dhs[t], dc; the gradients of the weights are the sums over the steps. Steps past lengths[n] pass
    dh, dc on unchanged.

    Args:    dhs: (T, N, H), or None for 0.  dh_T, dc_T: (N, H), or None for 0.  x, h0, c0, weight_x, weight_h
             and parameters: those of the forward.  hs, saved: its results.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx (T, N, D), dh0, dc0 (N, H), dweight_x (D, 4H), dweight_h (H, 4H), dbias (4H,);
             None for those not wanted.
    Raises:  as the forward; ValueError: unknown gradient name.
    Source:  Greff et al. 2017, LSTM: a search space odyssey, section II.B.
    """
    states = {"h0": h0, "c0": c0, "hs": hs, "dhs": dhs, "dh_T": dh_T, "dc_T": dc_T}
    _check_sequence("lstm", 4, x, weight_x, weight_h, None, lengths, **states)
    ends, starts, weights = (dh_T, dc_T), (h0, c0), (weight_x, weight_h)
    return _walk_back(
        "lstm", lstm_step_backward, dhs, ends, x, starts, weights, hs, saved, lengths, reverse, needs
    )


def gru_forward(
    x: ndarray,
    h0: ndarray,
    weight_x: ndarray,
    weight_h: ndarray,
    bias: ndarray,
    *,
    lengths: ndarray | None = None,
    reverse: bool = False,
) -> tuple[ndarray, ndarray, list[Any]]:
    """Gated recurrent unit over a sequence.

    h[t] = gru_step(x[t], h[t-1]), h[-1] = h0
    Row n lives for t < lengths[n]: past it hs is 0 and the state stands still. With reverse the walk goes
    from t = T-1 down to 0 (row n starts at lengths[n]-1); hs stay at their own t.

    Args:    x: (T, N, D) float32|float64.  h0: (N, H).
             weight_x: (D, 3H).  weight_h: (H, 3H).  bias: (3H,), gates in the order r, z, n.
             lengths: (N,) int32|int64, in [0, T]; None means T.
    Returns: hs (T, N, H); h_T (N, H), the state after each row's last step;
             saved: the backend's own (here the states before, and what was saved by, each step).
    Raises:  ValueError: shapes do not fit; a length is out of range.
    Source:  Cho et al. 2014, Learning phrase representations using RNN encoder-decoder, section 2.3.
    """
    _check_sequence("gru", 3, x, weight_x, weight_h, bias, lengths, h0=h0)
    hs, (h_last,), saved = _walk(gru_step_forward, x, (h0,), (weight_x, weight_h, bias), lengths, reverse)
    return hs, h_last, saved


@delivers("gru", "dx", "dh0", "dweight_x", "dweight_h", "dbias")
def gru_backward(
    dhs: ndarray | None,
    dh_T: ndarray | None,
    x: ndarray,
    h0: ndarray,
    weight_x: ndarray,
    weight_h: ndarray,
    hs: ndarray,
    saved: list[Any],
    *,
    lengths: ndarray | None = None,
    reverse: bool = False,
    needs: Collection[str] | None = None,
) -> tuple[ndarray | None, ...]:
    """Gradients of the gated recurrent unit over a sequence (back-propagation through time).

    From the walk's last step to its first, with dh = dh_T at its end: dh <- dh of the step for dh + dhs[t];
    the gradients of the weights are the sums over the steps. Steps past lengths[n] pass dh on unchanged.

    Args:    dhs: (T, N, H), or None for 0.  dh_T: (N, H), or None for 0.  x, h0, weight_x, weight_h and
             parameters: those of the forward.  hs, saved: its results.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx (T, N, D), dh0 (N, H), dweight_x (D, 3H), dweight_h (H, 3H), dbias (3H,);
             None for those not wanted.
    Raises:  as the forward; ValueError: unknown gradient name.
    Source:  Werbos 1990, Backpropagation through time.
    """
    _check_sequence("gru", 3, x, weight_x, weight_h, None, lengths, h0=h0, hs=hs, dhs=dhs, dh_T=dh_T)
    step, ends, weights = gru_step_backward, (dh_T,), (weight_x, weight_h)
    return _walk_back("gru", step, dhs, ends, x, (h0,), weights, hs, saved, lengths, reverse, needs)


def _walk(
    step: Callable[..., tuple[Any, ...]],
    x: ndarray,
    state: tuple[ndarray, ...],
    weights: tuple[ndarray, ...],
    lengths: ndarray | None,
    reverse: bool,
) -> tuple[ndarray, tuple[ndarray, ...], list[Any]]:
    """Step through time; `state` is (h,) or (h, c). Returns hs, the last state and a record of each step."""
    living = _living(x, lengths)
    x = np.where(living, x, 0)  # padding may hold anything, NaN too
    hs = np.zeros((*x.shape[:2], state[0].shape[1]), x.dtype)
    record: list[Any] = [None] * len(x)
    for t in _times(len(x), reverse):
        *after, saved = step(x[t], *state, *weights)
        record[t] = (state, saved)
        hs[t] = np.where(living[t], after[0], 0)
        state = tuple(np.where(living[t], new, old) for new, old in zip(after, state, strict=True))
    return hs, state, record


def _walk_back(
    op: str,
    step_backward: Callable[..., tuple[Any, ...]],
    dhs: ndarray | None,
    dstate: tuple[ndarray | None, ...],
    x: ndarray,
    state0: tuple[ndarray, ...],
    weights: tuple[ndarray, ndarray],
    hs: ndarray,
    record: list[Any],
    lengths: ndarray | None,
    reverse: bool,
    needs: Collection[str] | None,
) -> tuple[ndarray | None, ...]:
    """Step back through time; `dstate` is (dh,) or (dh, dc)."""
    dstates = ("dh0", "dc0")[: len(state0)]
    need = wanted(op, needs, "dx", *dstates, "dweight_x", "dweight_h", "dbias")
    step_needs = None if needs is None else {*("dh", "dc")[: len(state0)], *needs} - {*dstates}
    living = _living(x, lengths)
    x = np.where(living, x, 0)
    dhs = np.zeros_like(hs) if dhs is None else dhs
    ends = tuple(np.zeros_like(s) if d is None else d for d, s in zip(dstate, state0, strict=True))
    dx = np.zeros_like(x)
    dweights = [np.zeros_like(weights[0]), np.zeros_like(weights[1]), np.zeros(weights[0].shape[1], x.dtype)]
    for t in reversed(_times(len(x), reverse)):
        before, saved = record[t]
        dafter = [np.where(living[t], d, 0) for d in ends]
        dafter[0] = dafter[0] + np.where(living[t], dhs[t], 0)
        dx_t, *rest = step_backward(*dafter, x[t], *before, *weights, hs[t], saved, needs=step_needs)
        dbefore, dweights_t = rest[: len(ends)], rest[len(ends) :]
        ends = tuple(np.where(living[t], new, old) for new, old in zip(dbefore, ends, strict=True))
        dx[t] = 0 if dx_t is None else dx_t
        dweights = [total + (0 if d is None else d) for total, d in zip(dweights, dweights_t, strict=True)]
    gradients = (dx, *ends, *dweights)
    return tuple(gradient if flag else None for gradient, flag in zip(gradients, need, strict=True))


def _living(x: ndarray, lengths: ndarray | None) -> ndarray:
    """Whether row n lives at step t: (T, N, 1)."""
    steps, rows, _ = x.shape
    lengths = np.full(rows, steps) if lengths is None else lengths
    return (np.arange(steps)[:, None] < lengths)[..., None]


def _times(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _check_activation(op: str, activation: str) -> None:
    if activation not in ("tanh", "relu"):
        raise ValueError(f'{op}: activation must be "tanh" or "relu", is {activation!r}')


def _check_step(
    op: str,
    gates: int,
    x: ndarray,
    weight_x: ndarray,
    weight_h: ndarray,
    bias: ndarray | None = None,
    **states: ndarray | None,
) -> None:
    """Shapes of x (..., N, D), of weights with `gates` gates, and of the states, each (N, H) or (T, N, H)."""
    given = {"x": x, **states, "weight_x": weight_x, "weight_h": weight_h, "bias": bias}
    arrays = {name: array for name, array in given.items() if array is not None}
    listed = ", ".join(f"{name} = {array.shape}" for name, array in arrays.items())
    steps = () if op.endswith("_step") else x.shape[:1]
    if x.ndim != len(steps) + 2 or weight_h.ndim != 2:
        raise ValueError(f"{op}: x must have {len(steps) + 2} axes and weight_h 2; {listed}")
    (rows, inputs), hidden = x.shape[-2:], weight_h.shape[0]
    expected = {name: (rows, hidden) for name in states} | {
        "hs": (*steps, rows, hidden),
        "dhs": (*steps, rows, hidden),
        "weight_x": (inputs, gates * hidden),
        "weight_h": (hidden, gates * hidden),
        "bias": (gates * hidden,),
        "x": x.shape,
    }
    for name, array in arrays.items():
        if array.shape != expected[name]:
            raise ValueError(f"{op}: {name} must have shape {expected[name]}; {listed}")


def _check_sequence(
    op: str,
    gates: int,
    x: ndarray,
    weight_x: ndarray,
    weight_h: ndarray,
    bias: ndarray | None,
    lengths: ndarray | None,
    **states: ndarray | None,
) -> None:
    _check_step(op, gates, x, weight_x, weight_h, bias, **states)
    if lengths is not None:
        expect_shape(op, "lengths (N,)", lengths, x.shape[1:2])
        expect_indices(op, "lengths", lengths, x.shape[0] + 1)
