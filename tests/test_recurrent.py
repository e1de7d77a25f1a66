import numpy as np
import pytest
from checking import (
    HALVES,
    agrees,
    check_gradients,
    honours_needs,
    near_in_half,
    normal,
    rejects,
    rounded,
    same_bits,
)
from devices import DeviceOps

from lec7 import _cpu, reference

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
CELLS = (("rnn", {}), ("rnn", {"activation": "relu"}), ("lstm", {}), ("gru", {}))

# T, N, D, H: one of each, widths around vectors, batches around those that a skinny product handles.
SHAPES = (
    (1, 1, 1, 1),
    (5, 1, 3, 4),
    (3, 2, 7, 5),
    (4, 3, 8, 16),
    (3, 4, 16, 7),
    (6, 5, 17, 11),
    (2, 7, 5, 35),
    (2, 15, 4, 9),
    (2, 16, 3, 17),
    (3, 17, 2, 8),
    (2, 67, 9, 19),
    (3, 0, 4, 5),
    (1, 3, 33, 64),
)


def states(cell):
    return 2 if cell == "lstm" else 1


def gradient_names(cell, suffix=""):
    return ("dx", *(f"d{name}{suffix}" for name in "hc"[: states(cell)]), "dweight_x", "dweight_h", "dbias")


def operands(rng, cell, t, n, d, h):
    """x (T, N, D), the states, the weights and the bias, with gates neither open nor shut."""
    gates = GATES[cell]
    scale = np.float32(1 / np.sqrt(h + 1))
    weights = normal(rng, d, gates * h) * scale, normal(rng, h, gates * h) * scale, normal(rng, gates * h)
    return normal(rng, t, n, d), [normal(rng, n, h) for _ in range(states(cell))], weights


def step(cell, parameters):
    """One step and its gradients, with random gradients of its results."""
    count = states(cell)

    def run(ops, x, *rest):
        state, (weight_x, weight_h, bias), dstate = rest[:count], rest[count : count + 3], rest[count + 3 :]
        arrays = (x, *state, weight_x, weight_h)
        *after, saved = getattr(ops, f"{cell}_step_forward")(*arrays, bias, **parameters)
        backward = getattr(ops, f"{cell}_step_backward")
        return *after, *backward(*dstate, *arrays, after[0], saved, **parameters)

    return run


def sequence(cell, parameters):
    """The whole sequence and its gradients, with random gradients of its results."""
    count = states(cell)

    def run(ops, x, lengths, *rest):
        state, (weight_x, weight_h, bias), dys = rest[:count], rest[count : count + 3], rest[count + 3 :]
        arrays, options = (x, *state, weight_x, weight_h), {**parameters, "lengths": lengths}
        hs, *last, saved = getattr(ops, f"{cell}_forward")(*arrays, bias, **options)
        return hs, *last, *getattr(ops, f"{cell}_backward")(*dys, *arrays, hs, saved, **options)

    return run


def test_rnn_worked_example():
    x, h, zero = np.array([[1.0, -2.0]]), np.array([[3.0]]), np.zeros(1)
    weight_x, weight_h = np.array([[0.5], [1.0]]), np.array([[2.0]])
    h_next, _ = reference.rnn_step_forward(x, h, weight_x, weight_h, zero, activation="relu")
    assert h_next == 4.5
    h_next, _ = reference.rnn_step_forward(x, h, weight_x, weight_h, np.array([-4.5 + np.log(2)]))
    np.testing.assert_allclose(h_next, [[0.6]], rtol=1e-14)  # tanh(log 2)


def test_lstm_worked_example():
    # Gates i, f, o, g from the bias alone: 1/2, 3/4, 1/4 and 0.6.
    bias = np.log([1.0, 3.0, 1 / 3, 2.0])
    x, h, c = np.zeros((1, 1)), np.zeros((1, 1)), np.array([[2.0]])
    weight = np.zeros((1, 4))
    h_next, c_next, saved = reference.lstm_step_forward(x, h, c, weight, weight, bias)
    np.testing.assert_allclose(c_next, [[1.8]], rtol=1e-14)  # 3/4 * 2 + 1/2 * 0.6
    np.testing.assert_allclose(h_next, [[0.25 * np.tanh(1.8)]], rtol=1e-14)
    _, _, dc, _, _, dbias = reference.lstm_step_backward(
        None, np.array([[1.0]]), x, h, c, weight, weight, h_next, saved
    )
    np.testing.assert_allclose(dc, [[0.75]], rtol=1e-14)
    np.testing.assert_allclose(dbias, [0.6 * 0.25, 2 * 0.1875, 0, 0.5 * 0.64], rtol=1e-14, atol=1e-16)


def test_gru_worked_example():
    # r = (1/2, 3/4), z = (1/4, 1/2); h @ weight_h[n] swaps the states, and only then r is applied.
    bias = np.log([1.0, 3.0, 1 / 3, 1.0, 1.0, 1.0])
    x, h = np.zeros((1, 1)), np.array([[2.0, 4.0]])
    weight_x, weight_h = np.zeros((1, 6)), np.zeros((2, 6))
    weight_h[0, 5] = weight_h[1, 4] = 1
    h_next, _ = reference.gru_step_forward(x, h, weight_x, weight_h, bias)
    np.testing.assert_allclose(h_next, [[0.75 * np.tanh(2) + 0.5, 0.5 * np.tanh(1.5) + 2]], rtol=1e-14)


@pytest.mark.parametrize("reverse", [False, True])
def test_rnn_sequence_worked_example(reverse):
    # h' = relu(x + 10 h): the digits of the walk. Row 1 lives for two steps, row 2 for none.
    x = np.array([[1.0, 4, 7], [2, 5, 8], [3, 6, 9]])[..., None]
    h0, one = np.array([[0.0], [0], [3]]), np.ones((1, 1))
    options = {"activation": "relu", "lengths": np.array([3, 2, 0]), "reverse": reverse}
    hs, h_last, _ = reference.rnn_forward(x, h0, one, 10 * one, np.zeros(1), **options)
    expected = [[321, 54, 0], [32, 5, 0], [3, 0, 0]] if reverse else [[1, 4, 0], [12, 45, 0], [123, 0, 0]]
    np.testing.assert_array_equal(hs[..., 0], expected)
    np.testing.assert_array_equal(h_last[:, 0], [321, 54, 3] if reverse else [123, 45, 3])


@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_step_gradients(cell, parameters, rng):
    x, state, weights = operands(rng, cell, 1, 2, 3, 4)
    count = states(cell)

    def forward(*arrays):
        return getattr(reference, f"{cell}_step_forward")(*arrays, **parameters)[:-1]

    def backward(*rest):
        dys, arrays = rest[:count], rest[count:]
        *after, saved = getattr(reference, f"{cell}_step_forward")(*arrays, **parameters)
        run = getattr(reference, f"{cell}_step_backward")
        return run(*dys, *arrays[:-1], after[0], saved, **parameters)

    check_gradients(forward, backward, x[0], *state, *weights)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [3, 0, 1, 2]])
@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_sequence_gradients(cell, parameters, lengths, reverse, rng):
    x, state, weights = operands(rng, cell, 3, 4, 2, 3)
    options = {**parameters, "reverse": reverse, "lengths": None if lengths is None else np.array(lengths)}
    count = states(cell) + 1

    def forward(*arrays):
        return getattr(reference, f"{cell}_forward")(*arrays, **options)[:-1]

    def backward(*rest):
        dys, arrays = rest[:count], rest[count:]
        hs, *_, saved = getattr(reference, f"{cell}_forward")(*arrays, **options)
        return getattr(reference, f"{cell}_backward")(*dys, *arrays[:-1], hs, saved, **options)

    check_gradients(forward, backward, x, *state, *weights)


@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_step_agrees(cell, parameters, backend, rng):
    for shape in SHAPES:
        x, state, weights = operands(rng, cell, *shape)
        dstate = [normal(rng, *s.shape) for s in state]
        agrees(cell, backend, step(cell, parameters), x[0], *state, *weights, *dstate)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_sequence_agrees(cell, parameters, ragged, reverse, backend, rng):
    run = sequence(cell, {**parameters, "reverse": reverse})
    for i, (t, n, d, h) in enumerate(SHAPES):
        x, state, weights = operands(rng, cell, t, n, d, h)
        dys = [normal(rng, t, n, h), *(normal(rng, n, h) for _ in state)]
        lengths = rng.integers(0, t + 1, n, np.int32 if i % 2 else np.int64) if ragged else None
        agrees(cell, backend, run, x, lengths, *state, *weights, *dys)


@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_long_recurrences_agree(cell, parameters, backend, rng):
    # On CUDA: one kernel for all steps, with several chunks of rows and tiles of h; and step by step, where
    # rows are many, and (on the four multiprocessors of the host) where weight_h does not fit.
    unfit = {"rnn": 452, "lstm": 226, "gru": 260}[cell]
    for t, n, d, h in ((3, 40, 5, 108), (3, 257, 2, 6), (2, 3, 4, unfit)):
        x, state, weights = operands(rng, cell, t, n, d, h)
        dys = [normal(rng, t, n, h), *(normal(rng, n, h) for _ in state)]
        lengths = rng.integers(0, t + 1, n)
        for reverse in (False, True):
            run = sequence(cell, {**parameters, "reverse": reverse})
            agrees(cell, backend, run, x, lengths if reverse else None, *state, *weights, *dys)


@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_sequence_with_some_gradients_absent_agrees(cell, parameters, backend, rng):
    x, state, weights = operands(rng, cell, 3, 4, 5, 6)
    dys = [normal(rng, 3, 4, 6), *(normal(rng, 4, 6) for _ in state)]
    for given in ((), (0,), *((i,) for i in range(1, len(dys))), tuple(range(1, len(dys)))):
        some = [dy if i in given else None for i, dy in enumerate(dys)]
        agrees(cell, backend, sequence(cell, parameters), x, np.array([3, 1, 0, 2]), *state, *weights, *some)


def test_lstm_step_with_one_gradient_absent_agrees(backend, rng):
    x, state, weights = operands(rng, "lstm", 1, 4, 5, 6)
    dh, dc = normal(rng, 4, 6), normal(rng, 4, 6)
    for some in ((dh, None), (None, dc), (None, None)):
        agrees("lstm", backend, step("lstm", {}), x[0], *state, *weights, *some)


@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_sequence_is_its_steps(cell, parameters, backend, rng):
    x, state, (weight_x, weight_h, bias) = operands(rng, cell, 4, 3, 5, 9)
    hs, *last, _ = getattr(backend, f"{cell}_forward")(x, *state, weight_x, weight_h, bias, **parameters)
    for t in range(4):
        forward = getattr(backend, f"{cell}_step_forward")
        *state, _ = forward(x[t], *state, weight_x, weight_h, bias, **parameters)
        np.testing.assert_allclose(hs[t], state[0], rtol=1e-5, atol=1e-6)
    for end, expected in zip(last, state, strict=True):
        np.testing.assert_allclose(end, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_padding_past_the_lengths_never_matters(cell, parameters, reverse, backend, rng):
    x, state, weights = operands(rng, cell, 5, 3, 4, 9)
    lengths = np.array([2, 5, 0])
    dead = (np.arange(5)[:, None] >= lengths)[..., None]
    dhs, ends = normal(rng, 5, 3, 9), [normal(rng, 3, 9) for _ in state]
    for ops in (reference, backend):
        run = sequence(cell, {**parameters, "reverse": reverse})
        clean = run(ops, np.where(dead, 0, x), lengths, *state, *weights, np.where(dead, 0, dhs), *ends)
        for filler in (np.float32(1e30), np.float32(np.nan)):
            dirty = run(
                ops, np.where(dead, filler, x), lengths, *state, *weights, np.where(dead, filler, dhs), *ends
            )
            for name, a, b in zip(
                ("hs", *"hc"[: states(cell)], *gradient_names(cell)), clean, dirty, strict=True
            ):
                np.testing.assert_array_equal(b, a, err_msg=f"{name}, {filler}")


@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_recurrent_honours_needs(cell, parameters, backend, rng):
    x, state, (weight_x, weight_h, bias) = operands(rng, cell, 3, 5, 6, 7)
    dhs, ends = normal(rng, 3, 5, 7), [normal(rng, 5, 7) for _ in state]

    def step_backward(ops, needs):
        arrays = (x[0], *state, weight_x, weight_h)
        h_next, *_, saved = getattr(ops, f"{cell}_step_forward")(*arrays, bias, **parameters)
        return getattr(ops, f"{cell}_step_backward")(*ends, *arrays, h_next, saved, needs=needs, **parameters)

    def backward(ops, needs):
        arrays = (x, *state, weight_x, weight_h)
        hs, *_, saved = getattr(ops, f"{cell}_forward")(*arrays, bias, **parameters)
        return getattr(ops, f"{cell}_backward")(dhs, *ends, *arrays, hs, saved, needs=needs, **parameters)

    honours_needs(backend, step_backward, gradient_names(cell))
    honours_needs(backend, backward, gradient_names(cell, "0"))


@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_recurrent_bits_do_not_depend_on_threads(cell, parameters, backend, rng):
    shapes = ((4, 67, 65, 129), (6, 1, 100, 300), (50, 33, 70, 90))
    if isinstance(backend, DeviceOps):
        shapes = ((3, 21, 9, 66), (3, 257, 3, 5))
    for t, n, d, h in shapes:
        x, state, weights = operands(rng, cell, t, n, d, h)
        ends = [normal(rng, n, h) for _ in state]
        same_bits(backend, step(cell, parameters), x[0], *state, *weights, *ends)
        lengths = rng.integers(0, t + 1, n)
        same_bits(
            backend, sequence(cell, parameters), x, lengths, *state, *weights, normal(rng, t, n, h), *ends
        )


@pytest.mark.parametrize("cell", GATES)
def test_recurrent_rejects(cell, rng):
    x, state, (weight_x, weight_h, bias) = operands(rng, cell, 3, 4, 5, 6)
    for ops in (_cpu, reference):
        for name, inputs in ((f"{cell}_step", x[0]), (cell, x)):
            forward = getattr(ops, f"{name}_forward")

            def refuses(*mentions, forward=forward, name=name, error=ValueError, **changes):
                rejects(error, (name, *mentions), forward, *arguments(**changes))

            def arguments(x=inputs, state=state, weight_x=weight_x, weight_h=weight_h, bias=bias):
                return x, *state, weight_x, weight_h, bias

            for wrong in (inputs[..., :4], inputs[0], inputs[None]):
                refuses(wrong.shape, x=wrong)
            for wrong in (state[0][:1], state[0][:, :5], state[0][None]):
                refuses(wrong.shape, state=[wrong, *state[1:]])
                refuses(wrong.shape, state=[*state[:-1], wrong])
            for wrong in (weight_x[:, 1:], weight_x[:4], weight_x[None]):
                refuses(wrong.shape, weight_x=wrong)
            for wrong in (weight_h[:, 1:], weight_h[:4], weight_h[None]):
                refuses(wrong.shape, weight_h=wrong)
            for wrong in (bias[:1], bias[None], bias[1:]):
                refuses(wrong.shape, bias=wrong)
            if ops is _cpu:
                refuses("float64", bias.shape, error=TypeError, bias=bias.astype(np.float64))
                refuses("int64", inputs.shape, error=TypeError, x=inputs.astype(np.int64))
                refuses("float64", (4, 6), error=TypeError, state=[*state[:-1], state[-1].astype(np.float64)])
        arrays = (x, *state, weight_x, weight_h, bias)
        forward = getattr(ops, f"{cell}_forward")
        for bad in (-1, 4, 2**40):
            lengths = np.array([0, 3, bad, 1])
            wrong = f"{cell}: lengths is {bad} at (2,), outside [0, 4)"
            rejects(ValueError, (wrong, (4,)), forward, *arrays, lengths=lengths)
        for lengths in (np.array([1]), np.array([[1, 1, 1, 1]]), np.ones(5, int)):
            rejects(ValueError, (cell, lengths.shape), forward, *arrays, lengths=lengths)
        lengths = np.array([0, 1, 2, np.nan])
        rejects(TypeError, (cell, "float64", (4,)), forward, *arrays, lengths=lengths)
        if cell == "rnn":
            for name, inputs in (("rnn_step", x[0]), ("rnn", x)):
                forward = getattr(ops, f"{name}_forward")
                for activation in ("sigmoid", "", "swish"):
                    refused = (inputs, *arrays[1:])
                    rejects(ValueError, (name, "activation"), forward, *refused, activation=activation)
        if ops is _cpu:
            rejects(ValueError, (cell, (0, 4, 5)), getattr(ops, f"{cell}_forward"), x[:0], *arrays[1:])
        hs, *_, saved = getattr(ops, f"{cell}_forward")(*arrays)
        backward, ends = getattr(ops, f"{cell}_backward"), [None] * states(cell)
        for wrong in (hs[:2], hs[:, :1], hs[..., :5], hs[0]):
            rejects(ValueError, (cell, wrong.shape), backward, wrong, *ends, *arrays[:-1], hs, saved)
            rejects(ValueError, (cell, wrong.shape), backward, hs, *ends, *arrays[:-1], wrong, saved)
        for wrong in (hs[0, :1], hs[0, :, :5]):
            rejects(ValueError, (cell, wrong.shape), backward, hs, wrong, *ends[1:], *arrays[:-1], hs, saved)
        h_next, *_, saved = getattr(ops, f"{cell}_step_forward")(x[0], *arrays[1:])
        backward = getattr(ops, f"{cell}_step_backward")
        rest = (*ends[1:], x[0], *arrays[1:-1], h_next, saved)
        for wrong in (h_next[:1], h_next[:, :5]):
            rejects(ValueError, (f"{cell}_step", wrong.shape), backward, wrong, *rest)


@pytest.mark.parametrize("cell", GATES)
def test_recurrent_refuses_saved_values_of_another_call(cell, backend, rng):
    # A foreign or mismatched `saved` must not be read out of bounds.
    x, state, (weight_x, weight_h, bias) = operands(rng, cell, 3, 4, 5, 6)
    arrays = (x, *state, weight_x, weight_h)
    hs, *_, saved = getattr(backend, f"{cell}_forward")(*arrays, bias)
    other = operands(rng, cell, 2, 1, 5, 3)
    *_, foreign = getattr(backend, f"{cell}_forward")(other[0], *other[1], *other[2])
    backward = getattr(backend, f"{cell}_backward")
    ends = [None] * states(cell)
    wrong_for_all = (None, hs, "text")
    for wrong in wrong_for_all if cell == "rnn" else (foreign, saved[:1], (), *wrong_for_all):
        with pytest.raises((ValueError, TypeError), match=cell):
            backward(hs, *ends, *arrays, hs, wrong)
    assert all(g is not None for g in backward(hs, *ends, *arrays, hs, saved))


# --- storage in 16 bits -------------------------------------------------------------------------------------


def from_stored(cell, parameters, x, state, weights, hs, saved, lengths, reverse):
    """The reference's steps in float64, each from the states that the backend stored before it.

    Returns hs and what a step saves, as they should be; the record that the reference's backward reads, of
    what was stored; and the last states.
    """
    steps = len(x)
    forward, exact_hs = getattr(reference, f"{cell}_step_forward"), np.zeros(hs.shape)
    exact_saved, record = [np.zeros(a.shape) for a in saved], [None] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        lives = (t < lengths)[:, None]
        h, *_, exact = forward(np.where(lives, x[t], 0), *state, *weights, **parameters)
        exact_hs[t] = np.where(lives, h, 0)
        for values, value in zip(exact_saved, exact or (), strict=True):
            values[t] = value
        stored = tuple(a[t] for a in saved)
        record[t] = (tuple(state), stored or None)
        after = (hs[t], *(stored[1:] if cell == "lstm" else ()))
        state = [np.where(lives, new, old) for new, old in zip(after, state, strict=True)]
    return exact_hs, exact_saved, record, state


def agrees_in_half(cell, parameters, ops, dtype, x, state, weights, dys, lengths=None, reverse=False):
    """Every number of the forward is rounded once; a gradient is, and so are the dz it is summed from.

    And those of later steps: a third rounding.
    """
    x, *arrays = (rounded(dtype, a) for a in (x, *state, *weights, *dys))
    state, weights, dys = arrays[: len(state)], arrays[len(state) :][:3], arrays[len(state) + 3 :]
    options = {**parameters, "lengths": lengths, "reverse": reverse}
    name = f"{cell}, {dtype}, {x.shape}, {reverse=}, {ops._isa()}"
    hs, *last, saved = getattr(ops, f"{cell}_forward")(x, *state, *weights, **options)
    gradients = getattr(ops, f"{cell}_backward")(*dys, x, *state, *weights[:2], hs, saved, **options)

    wide = [a.astype(np.float64) for a in (x, *state, *weights, *dys)]
    x, *arrays = wide
    state, weights, dys = arrays[: len(state)], arrays[len(state) :][:3], arrays[len(state) + 3 :]
    hs, saved = hs.astype(np.float64), [a.astype(np.float64) for a in saved]
    alive = np.full(x.shape[1], len(x)) if lengths is None else lengths
    exact, exact_saved, record, ends = from_stored(
        cell, parameters, x, state, weights, hs, saved, alive, reverse
    )
    near_in_half(f"{name}: hs", dtype, hs, exact)
    lives = (np.arange(len(x))[:, None] < alive)[..., None]
    for what, result, right in zip(("gates", "cells"), saved, exact_saved, strict=False):
        near_in_half(f"{name}: {what}", dtype, np.where(lives, result, 0), np.where(lives, right, 0))
    for what, result, right in zip("hc", last, ends, strict=False):
        np.testing.assert_array_equal(result, right, err_msg=f"{name}: last {what}")
    backward = getattr(reference, f"{cell}_backward")
    exact = backward(*dys, x, *state, *weights[:2], hs, record, **options)
    for what, result, right in zip(gradient_names(cell, "0"), gradients, exact, strict=True):
        near_in_half(f"{name}: {what}", dtype, result, right, roundings=3)


@pytest.mark.parametrize("stored", HALVES)
@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_half_sequences_agree(cell, parameters, stored, device, rng):
    # In one kernel, and step by step, as on chips without the tensor cores that it needs. Not a row of one
    # unit alone: what its gradients are summed from may cancel.
    for i, (t, n, d, h) in enumerate(((1, 9, 1, 1), *SHAPES[1:])):
        x, state, weights = operands(rng, cell, t, n, d, h)
        dys = [normal(rng, t, n, h), *(normal(rng, n, h) for _ in state)]
        lengths = rng.integers(0, t + 1, n) if i % 2 else None
        arrays = (x, state, weights, dys, lengths, i % 3 == 0)
        for capability in (75, 80):
            with device.chip(capability):
                agrees_in_half(cell, parameters, device.storing(stored), stored, *arrays)


@pytest.mark.parametrize("stored", HALVES)
@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_half_step_is_a_sequence_of_one(cell, parameters, stored, device, rng):
    x, state, weights = operands(rng, cell, 1, 5, 6, 19)
    dstate = [normal(rng, *s.shape) for s in state]
    ops = device.storing(stored)
    one = step(cell, parameters)(ops, x[0], *state, *weights, *dstate)
    hs, _, *rest = sequence(cell, parameters)(ops, x, None, *state, *weights, None, *dstate)
    rest[states(cell) - 1] = rest[states(cell) - 1][0]  # dx
    for a, b in zip(one, (hs[0], *rest), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("stored", HALVES)
@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_long_half_recurrences_agree(cell, parameters, stored, device, rng):
    # One kernel for all steps: 16 rows at a time and the rest, all warps along the depth, more tiles of
    # columns than a warp sums at once (and 8 rows at a time, where the sums of 16 do not fit), more parts of
    # the depth than it loads at once. Step by step: many rows, and (on the four multiprocessors of the host)
    # where weight_h does not fit, in the last one.
    wide = {"rnn": (640,), "lstm": (257, 330), "gru": (400,)}[cell]
    shapes = ((3, 40, 5, 108), (2, 77, 3, 24), (3, 257, 2, 6), (2, 16, 4, 256), *((2, 3, 4, h) for h in wide))
    for t, n, d, h in shapes:
        x, state, weights = operands(rng, cell, t, n, d, h)
        dys = [normal(rng, t, n, h), *(normal(rng, n, h) for _ in state)]
        reverse = bool(h % 4)
        lengths = rng.integers(0, t + 1, n) if reverse else None
        arrays = (x, state, weights, dys, lengths, reverse)
        agrees_in_half(cell, parameters, device.storing(stored), stored, *arrays)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("cell", "parameters"), CELLS, ids=str)
def test_half_padding_past_the_lengths_never_matters(cell, parameters, reverse, device, rng):
    x, state, weights = operands(rng, cell, 5, 3, 4, 9)
    lengths = np.array([2, 5, 0])
    dead = (np.arange(5)[:, None] >= lengths)[..., None]
    dhs, ends = normal(rng, 5, 3, 9), [normal(rng, 3, 9) for _ in state]
    run, ops = sequence(cell, {**parameters, "reverse": reverse}), device.storing("bfloat16")
    clean, dirty = (
        run(ops, np.where(dead, filler, x), lengths, *state, *weights, np.where(dead, filler, dhs), *ends)
        for filler in (np.float32(0), np.float32(np.nan))
    )
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(b, a)


@pytest.mark.parametrize("cell", GATES)
def test_half_recurrent_honours_needs(cell, device, rng):
    x, state, (weight_x, weight_h, bias) = operands(rng, cell, 3, 5, 6, 7)
    dhs, ends = normal(rng, 3, 5, 7), [normal(rng, 5, 7) for _ in state]

    def backward(ops, needs, dys=(dhs, *ends)):
        arrays = (x, *state, weight_x, weight_h)
        hs, *_, saved = getattr(ops, f"{cell}_forward")(*arrays, bias)
        return getattr(ops, f"{cell}_backward")(*dys, *arrays, hs, saved, needs=needs)

    ops = device.storing("bfloat16")
    honours_needs(ops, backward, gradient_names(cell, "0"))
    for absent in range(1 + len(ends)):
        some = [None if i == absent else dy for i, dy in enumerate((dhs, *ends))]
        zero = [0 * dy if i == absent else dy for i, dy in enumerate((dhs, *ends))]
        for a, b in zip(backward(ops, None, some), backward(ops, None, zero), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cell", GATES)
def test_half_states_may_lie_anywhere(cell, cuda, rng):
    # 16 bytes at a time where rows begin at such, one number otherwise: the same sums.
    x, state, weights = operands(rng, cell, 3, 5, 6, 40)
    x, *state_and_weights = (cuda.to_device(a).astype("float16") for a in (x, *state, *weights))
    h0 = state_and_weights[0].numpy()
    shifted = cuda.to_device(np.append(np.zeros(1, np.float16), h0))[1:].reshape(*h0.shape)
    forward = getattr(cuda, f"{cell}_forward")
    straight = forward(x, *state_and_weights)[0].numpy()
    np.testing.assert_array_equal(forward(x, shifted, *state_and_weights[1:])[0].numpy(), straight)


@pytest.mark.parametrize("cell", GATES)
def test_recurrent_refuses_mixed_dtypes(cell, cuda, rng):
    x, state, weights = operands(rng, cell, 3, 2, 4, 5)
    arrays = [cuda.to_device(a).astype("float16") for a in (x, *state, *weights)]
    forward = getattr(cuda, f"{cell}_forward")
    for i, array in enumerate((x, *state, *weights)):
        for other in (cuda.to_device(array), cuda.to_device(array).astype("bfloat16")):
            mixed = [other if j == i else a for j, a in enumerate(arrays)]
            rejects(TypeError, (cell, "one dtype", "float16", other.dtype, array.shape), forward, *mixed)
