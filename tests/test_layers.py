"""Every layer's backward pass against central differences, on every CPU backend, and how layers compose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import lec7
from lec7 import layers as L
from lec7.gradcheck import gradcheck
from lec7.optimizers import SGD, Adam, AdamW, RMSProp, clip_scale, constant, cosine, exponential, staircase

TOLERANCE = 1e-7


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest):
    with lec7.use_backend(request.param):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def bidirectional(rng: np.random.Generator) -> L.Layer:
    return L.Concat(L.LSTM(4, 3, rng=rng), L.LSTM(4, 2, rng=rng, reverse=True))


def small_network(rng: np.random.Generator) -> L.Layer:
    return L.Sequential(
        L.Conv2d(3, 4, 3, rng=rng, padding="same", activation="tanh"),
        L.MaxPool2d(2),
        L.Flatten(),
        L.Linear(4 * 2 * 3, 5, rng=rng, activation="sigmoid"),
    )


CASES: dict[str, tuple[Callable[[np.random.Generator], L.Layer], tuple[int, ...]]] = {
    "linear": (lambda r: L.Linear(4, 3, rng=r), (5, 4)),
    "linear of a sequence": (lambda r: L.Linear(4, 3, rng=r, activation="relu"), (2, 5, 4)),
    "linear without bias": (lambda r: L.Linear(4, 3, rng=r, bias=False, activation="tanh"), (5, 4)),
    "relu": (lambda r: L.Relu(), (3, 4)),
    "sigmoid": (lambda r: L.Sigmoid(), (3, 4)),
    "tanh": (lambda r: L.Tanh(), (3, 4)),
    "conv1d": (lambda r: L.Conv1d(2, 3, 3, rng=r, stride=2, padding=1), (2, 7, 2)),
    "conv2d": (lambda r: L.Conv2d(4, 6, (3, 2), rng=r, groups=2, padding="same"), (2, 4, 5, 4)),
    "conv2d flipped, dilated": (
        lambda r: L.Conv2d(2, 3, 2, rng=r, dilation=2, flip=True, bias=False),
        (2, 5, 5, 2),
    ),
    "conv3d": (lambda r: L.Conv3d(2, 3, 2, rng=r, activation="sigmoid"), (2, 3, 3, 3, 2)),
    "conv_transpose1d": (lambda r: L.ConvTranspose1d(2, 3, 3, rng=r, stride=2, output_padding=1), (2, 4, 2)),
    "conv_transpose2d": (
        lambda r: L.ConvTranspose2d(4, 6, (4, 3), rng=r, stride=2, groups=2, padding="same"),
        (2, 3, 3, 4),
    ),
    "conv_transpose2d without bias": (lambda r: L.ConvTranspose2d(3, 2, 2, rng=r, bias=False), (2, 3, 3, 3)),
    "locally_connected2d": (
        lambda r: L.LocallyConnected2d(2, 3, (3, 2), input_size=(5, 4), stride=(2, 1), rng=r),
        (2, 5, 4, 2),
    ),
    "locally_connected2d without bias": (
        lambda r: L.LocallyConnected2d(2, 3, 2, input_size=(3, 4), bias=False, rng=r),
        (2, 3, 4, 2),
    ),
    "max_pool1d": (lambda r: L.MaxPool1d(3, stride=2), (2, 8, 3)),
    "max_pool2d": (lambda r: L.MaxPool2d(3, stride=2, padding=1), (2, 5, 6, 3)),
    "max_pool3d": (lambda r: L.MaxPool3d(2), (2, 4, 4, 4, 2)),
    "avg_pool1d": (lambda r: L.AvgPool1d(2), (2, 8, 3)),
    "avg_pool2d": (lambda r: L.AvgPool2d(3, stride=2, padding=1, count_padding=True), (2, 5, 6, 3)),
    "avg_pool3d": (lambda r: L.AvgPool3d(2), (2, 4, 4, 4, 2)),
    "sum_pool1d": (lambda r: L.SumPool1d(2), (2, 8, 3)),
    "sum_pool2d": (lambda r: L.SumPool2d((2, 3)), (2, 4, 6, 3)),
    "sum_pool3d": (lambda r: L.SumPool3d(2), (2, 4, 4, 4, 2)),
    "global_avg_pool": (lambda r: L.GlobalAvgPool(), (2, 3, 4, 5)),
    "global_max_pool": (lambda r: L.GlobalMaxPool(), (2, 6, 5)),
    "local_response_norm": (lambda r: L.LocalResponseNorm(3, alpha=0.5), (2, 3, 2, 5)),
    "batch_norm": (lambda r: L.BatchNorm(4), (3, 2, 2, 4)),
    "batch_norm of vectors": (lambda r: L.Sequential(L.Linear(3, 4, rng=r), L.BatchNorm(4)), (5, 3)),
    "layer_norm": (lambda r: L.LayerNorm(5), (2, 3, 5)),
    "dropout": (lambda r: L.Dropout(0.4, rng=r), (5, 6)),
    "spatial dropout": (lambda r: L.SpatialDropout(0.4, rng=r), (4, 3, 3, 5)),
    "rnn": (lambda r: L.RNN(4, 3, rng=r), (5, 2, 4)),
    "rnn with relu, reverse": (lambda r: L.RNN(4, 3, rng=r, activation="relu", reverse=True), (5, 2, 4)),
    "lstm": (lambda r: L.LSTM(4, 3, rng=r), (5, 2, 4)),
    "gru": (lambda r: L.GRU(4, 3, rng=r), (5, 2, 4)),
    "bidirectional": (bidirectional, (5, 2, 4)),
    "one_to_one": (lambda r: L.Recurrent(L.GRU(4, 3, rng=r), mode="one_to_one"), (2, 4)),
    "many_to_one": (lambda r: L.Recurrent(L.LSTM(4, 3, rng=r), mode="many_to_one"), (5, 2, 4)),
    "many_to_many": (lambda r: L.Recurrent(L.RNN(4, 3, rng=r), mode="many_to_many"), (5, 2, 4)),
    "self-attention": (lambda r: L.Attention(4, 4, rng=r), (5, 2, 4)),
    "bilinear attention": (lambda r: L.Attention(4, 4, rng=r, score="bilinear"), (5, 2, 4)),
    "multi-head attention": (lambda r: L.MultiHeadAttention(6, 2, rng=r), (5, 2, 6)),
    "residual": (lambda r: L.Residual(L.Linear(4, 4, rng=r, activation="tanh")), (3, 4)),
    "residual with a shortcut": (lambda r: L.Residual(L.Linear(4, 5, rng=r), L.Linear(4, 5, rng=r)), (3, 4)),
    "residual that keeps its output": (lambda r: L.Residual(L.Sequential(L.Tanh(), L.Tanh())), (3, 4)),
    "residual of the input itself": (lambda r: L.Residual(L.Dropout(0.0, rng=r)), (3, 4)),
    "residual in a residual": (
        lambda r: L.Residual(L.Residual(L.Linear(4, 4, rng=r)), L.Residual(L.Sigmoid())),
        (3, 4),
    ),
    "residual of a state": (
        lambda r: L.Residual(L.Recurrent(L.GRU(4, 4, rng=r), mode="one_to_one")),
        (3, 4),
    ),
    "concat of convolutions": (
        lambda r: L.Concat(L.Conv2d(2, 3, 1, rng=r), L.Conv2d(2, 2, 3, rng=r, padding=1), L.Relu()),
        (2, 3, 4, 2),
    ),
    "concat along the rows": (lambda r: L.Concat(L.Tanh(), L.Linear(4, 4, rng=r), axis=0), (3, 4)),
    "concat of parameterless": (lambda r: L.Concat(L.Relu(), L.Linear(4, 2, rng=r)), (3, 4)),
    "network": (small_network, (2, 4, 6, 3)),
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", CASES)
def test_layer_gradients(case: str, rng: np.random.Generator) -> None:
    build, shape = CASES[case]
    errors = gradcheck(build(rng), rng.standard_normal(shape), rng=rng, training=True)
    assert "x" in errors
    assert max(errors.values()) < TOLERANCE, errors


def test_gradcheck_finds_a_wrong_backward(rng: np.random.Generator) -> None:
    class Wrong(L.Tanh):
        def backward(self, dy, cache, *, needs_dx=True):
            return 1.01 * super().backward(dy, cache)

    assert gradcheck(Wrong(), rng.standard_normal((3, 4)), rng=rng)["x"] > 1e-3


@pytest.mark.usefixtures("backend")
def test_embedding_gradients(rng: np.random.Generator) -> None:
    tokens = rng.integers(0, 6, (4, 3))
    network = L.Sequential(L.Embedding(6, 4, rng=rng), L.LSTM(4, 3, rng=rng))
    errors = gradcheck(network, tokens, rng=rng)
    assert set(errors) == {"0.weight", "1.weight_x", "1.weight_h", "1.bias"}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("cell", [L.RNN, L.LSTM, L.GRU])
def test_recurrent_lengths_gradients(cell: type[L.Layer], rng: np.random.Generator) -> None:
    for reverse in (False, True):
        layer = L.Recurrent(cell(4, 3, rng=rng, reverse=reverse), mode="many_to_one")
        errors = gradcheck(layer, rng.standard_normal((5, 3, 4)), rng=rng, lengths=np.array([5, 0, 2]))
        assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("cell", [L.RNN, L.LSTM, L.GRU])
def test_recurrent_backward_through_chunks_equals_the_whole(
    cell: type[L.Layer], rng: np.random.Generator
) -> None:
    """State and its gradient passed from chunk to chunk give what one long sequence gives."""
    whole, chunked = cell(4, 3, rng=np.random.default_rng(1)), cell(4, 3, rng=np.random.default_rng(1))
    x, dy = rng.standard_normal((2, 7, 2, 4)).astype(np.float32)
    dy = np.ascontiguousarray(dy[..., :3])
    hs, cache = whole.forward(x)
    dx = whole.backward(dy, cache)

    first, early = chunked.forward(x[:3])
    second, late = chunked.forward(x[3:], state=early.state)
    dx_late, dstate = chunked.backward_state(dy[3:], None, late)
    dx_early, _ = chunked.backward_state(dy[:3], dstate, early)
    np.testing.assert_allclose(np.concatenate([first, second]), hs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([dx_early, dx_late]), dx, rtol=1e-5, atol=1e-6)
    for name in whole.grads:
        np.testing.assert_allclose(chunked.grads[name], whole.grads[name], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("cell", [L.RNN, L.LSTM, L.GRU])
def test_recurrent_step_equals_the_sequence(cell: type[L.Layer], rng: np.random.Generator) -> None:
    layer = cell(4, 3, rng=rng)
    x = rng.standard_normal((6, 2, 4)).astype(np.float32)
    hs, _ = layer.forward(x)
    state = layer.zero_state(2)
    for t in range(6):
        state = layer.step(x[t], state)
        np.testing.assert_allclose(state[0], hs[t], rtol=1e-5, atol=1e-6)


def test_recurrent_carries_state_until_reset(rng: np.random.Generator) -> None:
    x = rng.standard_normal((6, 2, 4)).astype(np.float32)
    layer = L.LSTM(4, 3, rng=rng)
    hs, _ = layer.forward(x)
    carrying, forgetting = L.Recurrent(layer, carry=True), L.Recurrent(layer)
    parts = [carrying.forward(x[:2])[0], carrying.forward(x[2:])[0]]
    np.testing.assert_allclose(np.concatenate(parts), hs, rtol=1e-5, atol=1e-6)
    assert set(carrying.buffers) == {"h", "c"}
    with carrying.keeping_buffers():
        carrying.reset()
        np.testing.assert_array_equal(carrying.forward(x[:2])[0], parts[0])
    np.testing.assert_array_equal(carrying.buffers["h"], carrying._buffers["h"])
    L.Sequential(carrying).reset()
    assert not carrying.buffers
    np.testing.assert_array_equal(forgetting.forward(x[:2])[0], forgetting.forward(x[:2])[0])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("score", ["dot", "scaled", "bilinear"])
def test_attention_to_a_memory(score: str, rng: np.random.Generator) -> None:
    """The formula, written out for one query of a decoder, with padded memory."""
    layer = L.Attention(4, 4, rng=rng, score=score)
    query, memory = rng.standard_normal((1, 2, 4)), rng.standard_normal((5, 2, 4))
    query, memory = query.astype(np.float32), memory.astype(np.float32)
    y, _ = layer.attend(query, memory, key_lengths=np.array([5, 3]))
    for n, length in enumerate((5, 3)):
        q = query[0, n] @ layer.params["project.weight"] if score == "bilinear" else query[0, n]
        scores = memory[:length, n] @ q / (2 if score == "scaled" else 1)
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(y[0, n], weights @ memory[:length, n], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "build",
    [
        lambda r: L.Attention(4, 6, rng=r, score="bilinear"),
        lambda r: L.MultiHeadAttention(4, 2, rng=r, memory_size=6),
    ],
)
def test_attention_memory_gradient(
    build: Callable[[np.random.Generator], L.Layer], rng: np.random.Generator
) -> None:
    layer = build(rng)
    query, memory = (rng.standard_normal(s).astype(np.float32) for s in ((3, 2, 4), (5, 2, 6)))
    y, cache = layer.attend(query, memory)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dquery, dmemory = layer.attend_backward(dy, cache)
    for array, gradient in ((query, dquery), (memory, dmemory)):
        direction = rng.standard_normal(array.shape).astype(np.float32)
        kept, losses = array.copy(), []
        for sign in (1, -1):
            array[...] = kept + sign * 1e-2 * direction
            losses.append(float(np.sum(layer.attend(query, memory)[0].astype(np.float64) * dy)))
        array[...] = kept
        assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(
            float(np.sum(gradient * direction)), rel=5e-3, abs=5e-3
        )


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "build",
    [
        lambda r: L.Residual(L.Linear(4, 4, rng=r)),
        lambda r: L.Residual(L.Linear(4, 4, rng=r, activation="tanh"), L.Dropout(0.5, rng=r)),
        lambda r: L.Residual(L.Dropout(0.5, rng=r)),
        lambda r: L.Residual(L.Recurrent(L.RNN(4, 4, rng=r), mode="one_to_one", carry=True)),
        lambda r: L.Concat(L.Dropout(0.5, rng=r), L.Dropout(0.5, rng=r), L.Linear(4, 2, rng=r)),
    ],
)
def test_containers_change_no_array_but_their_own(
    build: Callable[[np.random.Generator], L.Layer], rng: np.random.Generator
) -> None:
    """Sums are made in place only where nobody else has the array: x, dy and the buffers stay."""
    network = build(rng)
    x = rng.standard_normal((3, 4)).astype(np.float32)
    y, cache = network.forward(x)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    kept = [a.copy() for a in (x, dy)]
    buffers = {name: a.copy() for name, a in network.buffers.items()}
    first = network.backward(dy, cache)
    np.testing.assert_array_equal(network.backward(dy, cache), first)
    for before, after in zip(kept, (x, dy), strict=True):
        np.testing.assert_array_equal(after, before)
    if isinstance(network.children.get("layer"), L.Recurrent):
        np.testing.assert_allclose(y - x, buffers["layer.h"], rtol=1e-5, atol=1e-6)


def test_residual_adds_in_place_where_nobody_keeps_the_output(rng: np.random.Generator) -> None:
    outputs: list[np.ndarray] = []

    class Spy(L.Linear):
        def forward(self, x, *, training=False):
            y, cache = super().forward(x, training=training)
            outputs.append(y)
            return y, cache

    x = rng.standard_normal((3, 4)).astype(np.float32)
    y, _ = L.Residual(Spy(4, 4, rng=rng)).forward(x)
    assert y is outputs[0]
    y, _ = L.Residual(Spy(4, 4, rng=rng, activation="relu")).forward(x)
    assert y is not outputs[1]


def test_gradients_are_added(rng: np.random.Generator) -> None:
    layer = L.Linear(4, 3, rng=rng)
    x, dy = rng.standard_normal((5, 4)).astype(np.float32), rng.standard_normal((5, 3)).astype(np.float32)
    _, cache = layer.forward(x)
    layer.backward(dy, cache)
    once = {name: grad.copy() for name, grad in layer.grads.items()}
    layer.backward(dy, cache)
    for name, grad in layer.grads.items():
        np.testing.assert_array_equal(grad, 2 * once[name])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_first_gradient_is_written_where_it_is_kept(backend: str, rng: np.random.Generator) -> None:
    layer = L.Linear(30, 40, rng=rng)
    kept = layer._grads["weight"]
    kept.fill(np.nan)
    x = rng.standard_normal((5, 30)).astype(np.float32)
    dy = rng.standard_normal((5, 40)).astype(np.float32)
    with lec7.use_backend(backend):
        _, cache = layer.forward(x)
        layer.backward(dy, cache)
        once = kept.copy()
        np.testing.assert_array_equal(once, lec7.ops.linear_backward(dy, x, layer.params["weight"])[1])
        layer.backward(dy, cache)
    assert layer.grads["weight"] is kept
    np.testing.assert_array_equal(kept, once + once)


def test_sequential_skips_gradients_nobody_needs(rng: np.random.Generator) -> None:
    asked: list[bool] = []

    class Spy(L.Linear):
        def backward(self, dy, cache, *, needs_dx=True):
            asked.append(needs_dx)
            return super().backward(dy, cache, needs_dx=needs_dx)

    network = L.Sequential(L.Relu(), Spy(4, 4, rng=rng), L.Tanh(), Spy(4, 4, rng=rng))
    x = rng.standard_normal((3, 4)).astype(np.float32)
    y, cache = network.forward(x)
    assert network.backward(y, cache, needs_dx=False) is None
    assert asked == [True, False]
    with pytest.raises(RuntimeError, match="Sequential: an earlier backward has used this cache up"):
        network.backward(y, cache)
    y, cache = network.forward(x)
    assert network.backward(y, cache) is not None
    assert asked[2:] == [True, True]


def test_frozen_layers_cost_no_gradients(rng: np.random.Generator) -> None:
    asked: list[set[str]] = []

    class Spy(L.Linear):
        def wanted(self, *names):
            asked.append(set(super().wanted(*names)))
            return super().wanted(*names)

    network = L.Sequential(*(Spy(4, 4, rng=rng) for _ in range(4)))
    parameters = L.Parameters(network, frozen=["0.", "1.", "3.", "2.bias"])
    y, cache = network.forward(rng.standard_normal((3, 4)).astype(np.float32))
    network.backward(y, cache, needs_dx=False)
    assert asked == [{"dx"}, {"dweight", "dbias"}]  # nothing below the first that learns
    assert [bool(grad.any()) for grad in network.grads.values()] == 4 * [False] + 2 * [True] + 2 * [False]
    assert parameters.grads.any()
    errors = gradcheck(network, rng.standard_normal((3, 4)), rng=rng)
    assert errors.keys() == {"x", "2.weight", "2.bias"}
    assert max(errors.values()) < TOLERANCE


def test_a_frozen_embedding_costs_no_gradient(rng: np.random.Generator) -> None:
    network = L.Sequential(L.Embedding(5, 4, rng=rng), L.Linear(4, 4, rng=rng))
    L.Parameters(network, frozen=["0."])
    y, cache = network.forward(np.array([1, 2, 2]))
    network.backward(y, cache, needs_dx=False)
    assert not network.grads["0.weight"].any()
    assert network.grads["1.weight"].any()


def test_gradients_start_from_zero_again(rng: np.random.Generator) -> None:
    shared = L.Linear(4, 4, rng=rng)
    tied = L.Linear(4, 4, rng=rng)
    tied.share_parameter("weight", shared)
    network = L.Sequential(shared, L.Tanh(), tied, L.Linear(4, 4, rng=rng), shared)
    x = rng.standard_normal((3, 4)).astype(np.float32)

    def grads() -> dict[str, np.ndarray]:
        y, cache = network.forward(x)
        network.backward(y, cache)
        return {name: grad.copy() for name, grad in network.grads.items()}

    first = grads()
    parameters = L.Parameters(network)
    for _ in range(2):
        for name, grad in grads().items():
            np.testing.assert_array_equal(grad, first[name], err_msg=name)
        parameters.zero_grads()
    assert not parameters.grads.any()

    grads()
    parameters.forget_grads()
    network.children["3"].backward(x, network.children["3"].forward(x)[1])
    parameters.settle_grads()
    for name, grad in network.grads.items():
        assert grad.any() == name.startswith("3."), name


def test_sharing_forgets_no_old_numbers(rng: np.random.Generator) -> None:
    a, b = L.Linear(4, 4, rng=rng), L.Linear(4, 4, rng=rng)
    parameters = L.Parameters(a)
    y, cache = a.forward(rng.standard_normal((3, 4)).astype(np.float32))
    a.backward(y, cache)
    parameters.forget_grads()
    b.share_parameter("weight", a)
    assert not a.grads["weight"].any()


def test_dropout_draws_another_mask_each_time_and_none_in_evaluation(rng: np.random.Generator) -> None:
    layer = L.Dropout(0.5, rng=rng)
    x = np.ones((40, 50), np.float32)
    start = layer.buffers["philox"].copy()
    first, second = layer.forward(x, training=True)[0], layer.forward(x, training=True)[0]
    assert (first != second).any()
    np.testing.assert_array_equal(np.unique(first), np.array([0, 2], np.float32))
    assert abs(first.mean() - 1) < 0.1
    assert layer.forward(x)[0] is x
    layer.buffers["philox"][...] = start
    np.testing.assert_array_equal(layer.forward(x, training=True)[0], first)


def test_spatial_dropout_drops_whole_channels(rng: np.random.Generator) -> None:
    y, _ = L.SpatialDropout(0.5, rng=rng).forward(np.ones((8, 3, 4, 16), np.float32), training=True)
    kept = y[:, 0, 0]
    assert 0 < kept.mean() < 2
    np.testing.assert_array_equal(y, np.broadcast_to(kept[:, None, None], y.shape))


@pytest.mark.usefixtures("backend")
def test_frozen_batch_norm_gradients(rng: np.random.Generator) -> None:
    layer = trained_batch_norm(4, rng)
    errors = gradcheck(layer, rng.standard_normal((3, 2, 4)), rng=rng)
    assert max(errors.values()) < TOLERANCE, errors


def trained_batch_norm(channels: int, rng: np.random.Generator) -> L.BatchNorm:
    layer = L.BatchNorm(channels, momentum=0.5)
    for name in ("gamma", "beta"):
        layer.params[name][...] = rng.standard_normal(channels)
    for _ in range(3):
        layer.forward((2 + 3 * rng.standard_normal((50, channels))).astype(np.float32), training=True)
    return layer


def test_batch_norm_keeps_running_averages(rng: np.random.Generator) -> None:
    layer = L.BatchNorm(2, momentum=0.5)
    x = np.array([[1, 10], [3, 10]], np.float32)
    layer.forward(x)
    np.testing.assert_array_equal(layer.buffers["running_mean"], [0, 0])
    y, _ = layer.forward(x, training=True)
    np.testing.assert_allclose(y, [[-1, 0], [1, 0]], atol=1e-5)
    np.testing.assert_array_equal(layer.buffers["running_mean"], [1, 5])
    np.testing.assert_array_equal(layer.buffers["running_var"], [1.5, 0.5])
    y, _ = layer.forward(x)
    np.testing.assert_allclose(y, (x - [1, 5]) / np.sqrt([1.5 + 1e-5, 0.5 + 1e-5]), rtol=1e-6)
    with layer.keeping_buffers():
        layer.forward(x, training=True)
    np.testing.assert_array_equal(layer.buffers["running_mean"], [1, 5])


def test_batch_norm_folds_into_the_layer_before_it(rng: np.random.Generator) -> None:
    network = L.Sequential(
        L.Conv2d(3, 8, 3, rng=rng, padding="same", bias=False),
        trained_batch_norm(8, rng),
        L.Relu(),
        L.Residual(
            L.Sequential(L.Conv2d(8, 8, 3, rng=rng, padding="same", groups=2), trained_batch_norm(8, rng)),
            L.Concat(
                L.Sequential(L.Conv2d(8, 4, 1, rng=rng), trained_batch_norm(4, rng)),
                L.Conv2d(8, 4, 1, rng=rng),
            ),
        ),
        L.Conv2d(8, 4, 1, rng=rng, activation="tanh"),
        trained_batch_norm(4, rng),  # behind an activation: it stays
        L.Flatten(),
        L.Linear(4 * 5 * 6, 7, rng=rng),
        trained_batch_norm(7, rng),
    )
    x = rng.standard_normal((2, 5, 6, 3)).astype(np.float32)
    before = {name: value.copy() for name, value in {**network.params, **network.buffers}.items()}
    expected, _ = network.forward(x)
    folded = L.fold_batch_norm(network)
    y, _ = folded.forward(x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    assert sum(isinstance(layer, L.BatchNorm) for _, layer in folded.owners()) == 1
    for value in folded.params.values():
        value.fill(0)  # it shares nothing with the network it was made from
    for name, value in {**network.params, **network.buffers}.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_batch_norm_folds_where_a_layer_is_used_twice(rng: np.random.Generator) -> None:
    shared = L.Linear(4, 4, rng=rng)
    network = L.Sequential(shared, trained_batch_norm(4, rng), shared, L.Tanh(), shared)
    x = rng.standard_normal((6, 4)).astype(np.float32)
    y, _ = L.fold_batch_norm(network).forward(x)
    np.testing.assert_allclose(y, network.forward(x)[0], rtol=1e-4, atol=1e-5)


def test_parameters_share_one_aligned_buffer(rng: np.random.Generator) -> None:
    network = L.Sequential(L.Linear(3, 5, rng=rng), L.Linear(5, 2, rng=rng))
    before = {name: value.copy() for name, value in network.params.items()}
    parameters = L.Parameters(network)
    assert parameters.count == 3 * 5 + 5 + 5 * 2 + 2
    assert parameters.values.ctypes.data % 64 == 0
    for name, value in network.params.items():
        assert np.shares_memory(value, parameters.values)
        assert np.shares_memory(network.grads[name], parameters.grads)
        assert value.ctypes.data % 64 == 0
        np.testing.assert_array_equal(value, before[name])
    parameters.values.fill(3)
    assert (network.params["1.bias"] == 3).all()
    network.grads["0.bias"].fill(1)
    assert parameters.grads.sum() == 5
    parameters.zero_grads()
    assert not network.grads["0.bias"].any()


def test_shared_parameter_is_stored_once(rng: np.random.Generator) -> None:
    a, b = L.Linear(4, 4, rng=rng), L.Linear(4, 4, rng=rng)
    b.share_parameter("weight", a)
    network = L.Sequential(a, b)
    errors = gradcheck(network, rng.standard_normal((3, 4)), rng=rng)
    assert max(errors.values()) < TOLERANCE, errors
    parameters = L.Parameters(network)
    assert set(parameters.layout) == {"0.weight", "0.bias", "1.bias"}
    assert b.params["weight"] is a.params["weight"]
    assert b.grads["weight"] is a.grads["weight"]
    with pytest.raises(ValueError, match=r"share_parameter: weight \(4, 3\) and weight \(4, 4\)"):
        L.Linear(4, 3, rng=rng).share_parameter("weight", a)


def test_frozen_parameters_lie_behind_the_trainable(rng: np.random.Generator) -> None:
    network = L.Sequential(L.Linear(3, 5, rng=rng), L.Linear(5, 2, rng=rng))
    parameters = L.Parameters(network, frozen=["0."])
    assert list(parameters.layout) == ["1.weight", "1.bias", "0.weight", "0.bias"]
    assert parameters.trainable == parameters.layout["0.weight"][0]
    with pytest.raises(ValueError, match=r"frozen '2\.'"):
        L.Parameters(network, frozen=["2."])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(),
        SGD(momentum=0.9),
        SGD(momentum=0.9, nesterov=True),
        RMSProp(),
        Adam(),
        AdamW(weight_decay=0.001),
    ],
    ids=repr,
)
def test_optimizers_find_a_minimum(optimizer) -> None:
    optimizer.steps, optimizer.state = 0, {}
    target = np.linspace(-1, 1, 37, dtype=np.float32)
    params = np.zeros_like(target)
    schedule = cosine(0.05, 500)
    for step in range(500):
        optimizer.update(params, 2 * (params - target), lr=schedule(step), grad_scale=0.5)
    assert np.abs(params - target).max() < 0.01
    assert optimizer.steps == 500


def test_schedules() -> None:
    assert constant(0.1)(10**6) == 0.1
    warm = cosine(1.0, 110, warmup=10, final=0.1)
    assert [warm(0), warm(9)] == [0.1, 1.0]
    assert warm(60) == pytest.approx(0.55)
    assert warm(110) == warm(1000) == pytest.approx(0.1)
    falling = exponential(1.0, 100, final=0.01)
    assert falling(50) == pytest.approx(0.1)
    assert falling(100) == falling(200) == pytest.approx(0.01)
    stairs = staircase(1.0, 10)
    assert [stairs(9), stairs(10), stairs(25)] == pytest.approx([1, 0.1, 0.01])


def test_clip_scale() -> None:
    assert clip_scale(10.0, 5.0) == 0.5
    assert clip_scale(4.0, 5.0) == 1.0
    assert clip_scale(4.0, None) == 1.0
    assert clip_scale(0.0, 5.0) == 1.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda r: L.Dropout(1.0, rng=r), "Dropout: 0 <= p < 1"),
        (lambda r: L.Conv2d(3, 4, 3, rng=r, groups=2), "groups divides both channel counts"),
        (lambda r: L.Conv2d(3, 4, (3, 3, 3), rng=r), "kernel_size has 2 axes"),
        (lambda r: L.ConvTranspose2d(3, 4, 3, rng=r, groups=2), "ConvTranspose2d: groups divides both"),
        (lambda r: L.LocallyConnected2d(3, 4, 3, input_size=(2, 9), rng=r), "does not fit the input_size"),
        (
            lambda r: L.LocallyConnected2d(3, 4, 3, input_size=(9,), rng=r),
            "input_size and stride have 2 axes",
        ),
        (lambda r: L.LocallyConnected2d(3, 4, 3, input_size=(9, 9), stride=0, rng=r), "at least 1"),
        (lambda r: L.Attention(3, 4, rng=r), "needs queries and memory of one size"),
        (lambda r: L.Attention(3, 4, rng=r, score="cosine"), "score is dot, scaled or bilinear"),
        (lambda r: L.MultiHeadAttention(6, 4, rng=r), "heads divides size"),
        (lambda r: L.Recurrent(L.RNN(2, 2, rng=r), mode="some_to_none"), "mode is one_to_one"),
        (lambda r: L.LocalResponseNorm(4), "LocalResponseNorm: size is odd and positive, got 4"),
        (lambda r: L.GlobalAvgPool().forward(np.zeros((2, 3))), "1 to 3 axes of space"),
        (lambda r: L.LSTM(2, 2, rng=r).forward(np.zeros((2, 2), np.float32)), r"x is \(T, N, input_size\)"),
        (
            lambda r: L.Residual(L.Linear(4, 3, rng=r)).forward(np.zeros((2, 4), np.float32)),
            r"output \(2, 3\) and the shortcut \(2, 4\)",
        ),
    ],
)
def test_bad_layers_are_refused(build, message: str, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=message):
        build(rng)
