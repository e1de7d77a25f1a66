import itertools

import numpy as np
import pytest
from checking import SIZES, agrees, check_gradients, honours_needs, normal, rejects, same_bits
from devices import DeviceOps

from lec7 import _cpu, reference

GRADIENTS = ("dx", "dgamma", "dbeta")
BETAS = (0.75, 0.5, 1.0, 0.6)


# --- local response -----------------------------------------------------------------------------------------


def response(size, alpha=0.9, beta=0.75, k=1.5):
    window = {"size": size, "alpha": alpha, "beta": beta}

    def run(ops, x, dy):
        y, saved = ops.local_response_norm_forward(x, k=k, **window)
        return y, saved, ops.local_response_norm_backward(dy, x, saved, **window)

    return run


def test_local_response_norm_worked_example():
    x, dy = np.array([[1.0, 2, 3]]), np.array([[1.0, 0, 0]])
    y, saved, dx = response(size=3, alpha=3, beta=1, k=1)(reference, x, dy)
    np.testing.assert_array_equal(saved, [[6, 15, 14]])  # 1 + 1 + 4, 1 + 1 + 4 + 9, 1 + 4 + 9
    np.testing.assert_allclose(y, [[1 / 6, 2 / 15, 3 / 14]], rtol=1e-15)
    np.testing.assert_allclose(dx, [[1 / 9, -1 / 9, 0]], atol=1e-15)


def test_local_response_norm_has_pytorchs_defaults():
    x = np.array([[30.0, -50, 10]])
    d = 1 + 1e-4 / 3 * np.array([[900 + 2500, 900 + 2500 + 100, 2500 + 100]])
    y, saved = reference.local_response_norm_forward(x, size=3)
    np.testing.assert_allclose(saved, d, rtol=1e-15)
    np.testing.assert_allclose(y, x / d**0.75, rtol=1e-15)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("shape", "size"), [((2, 3, 6), 3), ((2, 2, 2, 5), 5), ((3, 4), 1), ((3, 3), 9)])
def test_local_response_norm_gradients(shape, size, beta, rng):
    run, zeros = response(size, beta=beta), np.zeros(shape)
    check_gradients(
        lambda x: run(reference, x, zeros)[0], lambda dy, x: run(reference, x, dy)[2], normal(rng, *shape)
    )


@pytest.mark.parametrize("beta", BETAS)
def test_local_response_norm_agrees(beta, backend, rng):
    for channels, size in itertools.product(SIZES, (1, 3, 5, 7, 37)):
        run = response(size, beta=beta)
        agrees("local_response_norm", backend, run, normal(rng, 3, 2, channels), normal(rng, 3, 2, channels))


@pytest.mark.parametrize(
    "shape", [(0, 3, 5), (2, 0, 5), (3, 0), (1, 1), (2, 3, 4, 5, 6), (130, 96), (2, 33, 31, 67), (3, 5000)]
)
def test_local_response_norm_of_any_shape_agrees(shape, backend, rng):
    agrees("local_response_norm", backend, response(5), normal(rng, *shape), normal(rng, *shape))


def test_local_response_norm_of_a_window_of_a_thousand_agrees(backend, rng):
    agrees("local_response_norm", backend, response(2203), normal(rng, 2, 1501), normal(rng, 2, 1501))


def test_local_response_norm_of_a_small_alpha_agrees(backend, rng):
    x, dy = 10 * normal(rng, 40, 96), normal(rng, 40, 96)
    agrees("local_response_norm", backend, response(5, alpha=1e-4, k=1), x, dy)


def test_local_response_norm_of_huge_numbers(backend):
    # Their squares overflow: the limit is 0, not the NaN of infinity * 0.
    x = np.full((2, 40), 1e30, np.float32)
    for beta in (0.75, 0.5, 1.0):
        y, saved, dx = response(5, beta=beta)(backend, x, np.ones_like(x))
        np.testing.assert_array_equal(saved, np.inf)
        np.testing.assert_array_equal(y, 0)
        np.testing.assert_array_equal(dx, 0)


def test_local_response_norm_keeps_nan_in_its_window(backend):
    for channels in (8, 40):
        x = np.ones((3, channels), np.float32)
        x[1, 5] = np.nan
        y, saved, dx = response(3)(backend, x, np.ones_like(x))
        expected = np.zeros(x.shape, bool)
        expected[1, 4:7] = True
        np.testing.assert_array_equal(np.isnan(y), expected)
        np.testing.assert_array_equal(np.isnan(saved), expected)
        expected[1, 3:8] = True
        np.testing.assert_array_equal(np.isnan(dx), expected)


def test_local_response_norm_bits_do_not_depend_on_threads(backend, rng):
    for shape in ((5, 55, 55, 17), (3, 70000), (40, 700, 16)):
        same_bits(backend, response(5), normal(rng, *shape), normal(rng, *shape))


def test_local_response_norm_rejects():
    x, window = np.zeros((4, 3), np.float32), {"size": 3}
    for ops in (_cpu, reference):
        forward, backward = ops.local_response_norm_forward, ops.local_response_norm_backward
        rejects(ValueError, ("local_response_norm", (3,)), forward, x[0], **window)
        for size in (0, 2, -1):
            rejects(ValueError, ("local_response_norm", "size", size, (4, 3)), forward, x, size=size)
            rejects(ValueError, ("local_response_norm", "size", size), backward, x, x, x, size=size)
        rejects(ValueError, ("local_response_norm", "dy", (1, 3)), backward, x[:1], x, x, **window)
        rejects(ValueError, ("local_response_norm", "saved", (4, 1)), backward, x, x, x[:, :1], **window)
    rejects(
        TypeError, ("local_response_norm", "int64"), _cpu.local_response_norm_forward, x.astype(int), size=3
    )
    rejects(TypeError, ("local_response_norm", "size"), _cpu.local_response_norm_forward, x, size=3.0)


# --- batch --------------------------------------------------------------------------------------------------


def batch(training, momentum=0.1, eps=1e-3):
    def run(ops, x, gamma, beta, running_mean, running_var, dy):
        running = running_mean.copy(), running_var.copy()
        y, saved = ops.batch_norm_forward(
            x, gamma, beta, *running, training=training, momentum=momentum, eps=eps
        )
        return y, saved, *running, *ops.batch_norm_backward(dy, x, gamma, saved, training=training)

    return run


def batch_operands(rng, *shape):
    vectors = [normal(rng, shape[-1]) for _ in range(3)]
    return normal(rng, *shape), *vectors, 1 + normal(rng, shape[-1]) ** 2, normal(rng, *shape)


def test_batch_norm_worked_example():
    x, gamma, beta = np.array([[1.0, 5], [3, 5]]), np.array([4.0, 2]), np.array([1.0, 6])
    running_mean, running_var = np.array([0.0, 1]), np.array([1.0, 2])
    y, saved = reference.batch_norm_forward(x, gamma, beta, running_mean, running_var, training=True, eps=3)
    np.testing.assert_allclose(saved, [[2, 5], [0.5, 3**-0.5]])
    np.testing.assert_allclose(y, [[-1, 6], [3, 6]])
    np.testing.assert_allclose(running_mean, [0.2, 1.4])
    np.testing.assert_allclose(running_var, [1.1, 1.8])  # 0.9 * 1 + 0.1 * 2, 0.9 * 2
    y, _ = reference.batch_norm_forward(x, gamma, beta, running_mean, running_var, training=False, eps=2.9)
    np.testing.assert_allclose(y[0], [1 + 4 * 0.8 / 2, 6 + 2 * 3.6 / 4.7**0.5])
    np.testing.assert_allclose(running_mean, [0.2, 1.4])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), (2, 2, 3, 2)])
def test_batch_norm_gradients(shape, training, rng):
    x, gamma, beta, *running, dy = batch_operands(rng, *shape)
    run = batch(training)
    check_gradients(
        lambda *arrays: run(reference, *arrays, *running, dy)[0],
        lambda dy, *arrays: run(reference, *arrays, *running, dy)[4:],
        x,
        gamma,
        beta,
    )


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_agrees(training, backend, rng):
    for channels, rows in itertools.product(SIZES, (2, 7, 8, 19)):
        # Two rows make a dx of nearly nothing out of terms of about 1.
        agrees("batch_norm", backend, batch(training), *batch_operands(rng, rows, channels), floor=1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 0), (2, 3, 4, 5, 6), (1, 40, 50, 33), (5000, 3), (33, 4099)])
def test_batch_norm_of_any_shape_agrees(shape, training, backend, rng):
    agrees("batch_norm", backend, batch(training, momentum=0.3, eps=1e-5), *batch_operands(rng, *shape))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 7), (1, 9), (0, 2, 0)])
def test_frozen_batch_norm_of_few_rows_agrees(shape, backend, rng):
    agrees("batch_norm", backend, batch(False), *batch_operands(rng, *shape))


@pytest.mark.parametrize("case", ["far from 0", "far from 0, uneven", "an outlier first", "constant"])
@pytest.mark.parametrize("shape", [(3000, 21), (40, 60), (100000, 2)])
def test_batch_norm_is_stable(case, shape, backend, rng):
    x = normal(rng, *shape)
    if case == "constant":
        x[...] = 0.1
    elif case == "an outlier first":
        x[0] = 1e5
    else:
        x += np.float32(1e4)
    if case == "far from 0, uneven":
        x[: len(x) // 3] += np.float32(30)
    values = x.astype(np.float64)
    mean, var = values.mean(axis=0), values.var(axis=0)
    vectors = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
    for ops in (backend, reference):
        running = np.zeros(shape[1], np.float32), np.zeros(shape[1], np.float32)
        y, saved = ops.batch_norm_forward(x, *vectors, *running, training=True, momentum=1)
        expected = (values - mean) / np.sqrt(var + 1e-5)
        np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(saved, [mean, 1 / np.sqrt(var + 1e-5)], rtol=2e-6)
        np.testing.assert_allclose(running, [mean, var * len(x) / (len(x) - 1)], rtol=4e-6, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_keeps_nan_in_its_channel(training, backend):
    x = np.arange(90, dtype=np.float32).reshape(5, 18)
    x[3, 7] = np.nan
    results = batch(training)(backend, x, *np.ones((4, 18), np.float32), np.ones_like(x))
    channel = np.arange(18) == 7
    if training:
        for array in results:
            np.testing.assert_array_equal(
                np.isnan(array).any(axis=tuple(range(array.ndim - 1))) & ~channel, False
            )
        assert np.isnan(results[0][:, 7]).all()
        assert np.isnan(results[2][7])  # a running mean that is lost is not hidden
    else:
        np.testing.assert_array_equal(np.isnan(results[0]), np.isnan(x))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_honours_needs(training, backend, rng):
    x, gamma, beta, *running, dy = batch_operands(rng, 13, 21)
    _, saved = backend.batch_norm_forward(x, gamma, beta, *running, training=training)
    honours_needs(
        backend,
        lambda ops, needs: ops.batch_norm_backward(dy, x, gamma, saved, training=training, needs=needs),
        GRADIENTS,
    )


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_bits_do_not_depend_on_threads(training, backend, rng):
    for shape in ((9, 33, 31, 17), (100, 3000), (70000, 3)):
        same_bits(backend, batch(training), *batch_operands(rng, *shape))


def test_frozen_batch_norm_changes_nothing(backend, rng):
    x, *vectors, _ = batch_operands(rng, 5, 7)
    for vector in vectors:
        vector.flags.writeable = False
    backend.batch_norm_forward(x, *vectors, training=False)
    if not isinstance(backend, DeviceOps):  # a device array has no such flag
        rejects(
            ValueError, ("running_mean", "read-only"), backend.batch_norm_forward, x, *vectors, training=True
        )


def test_batch_norm_rejects():
    x, dy, vector = np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32), np.ones(3, np.float32)
    saved = np.zeros((2, 3), np.float32)
    for ops in (_cpu, reference):
        forward, backward = ops.batch_norm_forward, ops.batch_norm_backward
        four = [vector] * 4
        for training in (True, False):
            rejects(ValueError, ("batch_norm", (3,)), forward, x[0], *four, training=training)
            for i, name in enumerate(("gamma", "beta", "running_mean", "running_var")):
                wrong = [vector[:1] if j == i else vector for j in range(4)]
                rejects(ValueError, ("batch_norm", name, (1,)), forward, x, *wrong, training=training)
            rejects(ValueError, ("batch_norm", "eps"), forward, x, *four, training=training, eps=0)
            rejects(ValueError, ("batch_norm", "momentum"), forward, x, *four, training=training, momentum=2)
            mode = {"training": training}
            rejects(ValueError, ("batch_norm", "dy", (1, 3)), backward, dy[:1], x, vector, saved, **mode)
            rejects(ValueError, ("batch_norm", "gamma", (1,)), backward, dy, x, vector[:1], saved, **mode)
            rejects(ValueError, ("batch_norm", "saved", (1, 3)), backward, dy, x, vector, saved[:1], **mode)
            rejects(ValueError, ("batch_norm", (3,)), backward, dy[0], x[0], vector, saved, **mode)
        for rows in (0, 1):
            few = x[:rows]
            rejects(ValueError, ("batch_norm", "values", (rows, 3)), forward, few, *four, training=True)
            rejects(ValueError, ("values", (rows, 3)), backward, few, few, vector, saved, training=True)
    wrong = (vector, vector, vector.tolist(), vector)
    rejects(TypeError, ("batch_norm", "running_mean"), _cpu.batch_norm_forward, x, *wrong, training=True)
    wrong = (vector, vector, vector, np.ones(6, np.float32)[::2])
    rejects(ValueError, ("batch_norm", "running_var"), _cpu.batch_norm_forward, x, *wrong, training=True)
    wrong = (vector, vector, vector.astype(float), vector)
    rejects(TypeError, ("batch_norm", "float64"), _cpu.batch_norm_forward, x, *wrong, training=True)


# --- layer --------------------------------------------------------------------------------------------------


def layer(ops, x, gamma, beta, dy):
    y, saved = ops.layer_norm_forward(x, gamma, beta, eps=1e-3)
    return y, saved, *ops.layer_norm_backward(dy, x, gamma, saved)


def layer_operands(rng, *shape):
    return normal(rng, *shape), normal(rng, shape[-1]), normal(rng, shape[-1]), normal(rng, *shape)


def test_layer_norm_worked_example():
    x, gamma, beta = np.array([[1.0, 3], [7, 7]]), np.array([4.0, 2]), np.array([1.0, 6])
    y, saved = reference.layer_norm_forward(x, gamma, beta, eps=3)
    np.testing.assert_allclose(saved, [[2, 7], [0.5, 3**-0.5]])
    np.testing.assert_allclose(y, [[-1, 7], [1, 6]])
    dx, dgamma, dbeta = reference.layer_norm_backward(np.array([[1.0, 0], [2, 3]]), x, gamma, saved)
    np.testing.assert_allclose(dx[0], [0.75, -0.75])  # (4 - 2 - 0.5) / 2: g = 4, 0 has mean 2, g xhat -1
    np.testing.assert_allclose(dgamma, [-0.5, 0])
    np.testing.assert_allclose(dbeta, [3, 3])


@pytest.mark.parametrize("shape", [(6,), (2, 5), (2, 3, 4), (3, 1)])
def test_layer_norm_gradients(shape, rng):
    x, gamma, beta, dy = layer_operands(rng, *shape)
    check_gradients(
        lambda *arrays: layer(reference, *arrays, dy)[0],
        lambda dy, *arrays: layer(reference, *arrays, dy)[2:],
        x,
        gamma,
        beta,
    )


def test_layer_norm_agrees(backend, rng):
    for channels, rows in itertools.product((*SIZES, 64, 67, 150), (1, 5)):
        agrees("layer_norm", backend, layer, *layer_operands(rng, rows, channels), floor=1)


@pytest.mark.parametrize("shape", [(7,), (0, 5), (2, 0, 5), (2, 3, 4, 5, 6), (4000, 19), (3, 70001)])
def test_layer_norm_of_any_shape_agrees(shape, backend, rng):
    agrees("layer_norm", backend, layer, *layer_operands(rng, *shape))


@pytest.mark.parametrize("case", ["far from 0", "an outlier first", "constant"])
@pytest.mark.parametrize("shape", [(30, 700), (40, 13)])
def test_layer_norm_is_stable(case, shape, backend, rng):
    x = normal(rng, *shape)
    if case == "constant":
        x[...] = 0.1
    elif case == "an outlier first":
        x[:, 0] = 1e5
    else:
        x += np.float32(1e4)
    values = x.astype(np.float64)
    mean, var = values.mean(axis=-1, keepdims=True), values.var(axis=-1, keepdims=True)
    expected = (values - mean) / np.sqrt(var + 1e-5)
    for ops in (backend, reference):
        ones, zeros = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
        y, saved = ops.layer_norm_forward(x, ones, zeros)
        np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(saved, [mean[:, 0], 1 / np.sqrt(var[:, 0] + 1e-5)], rtol=1e-6)


def test_layer_norm_keeps_nan_in_its_row(backend):
    x = np.arange(100, dtype=np.float32).reshape(5, 20)
    x[3, 7] = np.nan
    y, saved, dx, *_ = layer(backend, x, *np.ones((2, 20), np.float32), np.ones_like(x))
    row = np.arange(5) == 3
    for array in (y, saved.T, dx):
        np.testing.assert_array_equal(np.isnan(array).any(axis=1), row)


def test_layer_norm_honours_needs(backend, rng):
    x, gamma, beta, dy = layer_operands(rng, 13, 21)
    _, saved = backend.layer_norm_forward(x, gamma, beta)
    honours_needs(
        backend,
        lambda ops, needs: ops.layer_norm_backward(dy, x, gamma, saved, needs=needs),
        GRADIENTS,
    )


def test_layer_norm_bits_do_not_depend_on_threads(backend, rng):
    many_rows = 7000 if isinstance(backend, DeviceOps) else 70000
    for shape in ((9, 33, 31, 17), (100, 3000), (many_rows, 3)):
        same_bits(backend, layer, *layer_operands(rng, *shape))


def test_layer_norm_rejects():
    x, vector, saved = np.zeros((4, 3), np.float32), np.ones(3, np.float32), np.zeros((2, 4), np.float32)
    for ops in (_cpu, reference):
        forward, backward = ops.layer_norm_forward, ops.layer_norm_backward
        rejects(ValueError, ("layer_norm", ()), forward, x[0, 0], vector, vector)
        rejects(ValueError, ("layer_norm", (4, 0)), forward, x[:, :0], vector[:0], vector[:0])
        rejects(ValueError, ("layer_norm", "gamma", (1,)), forward, x, vector[:1], vector)
        rejects(ValueError, ("layer_norm", "beta", (1, 3)), forward, x, vector, vector[None])
        rejects(ValueError, ("layer_norm", "eps"), forward, x, vector, vector, eps=-1.0)
        rejects(ValueError, ("layer_norm", "dy", (1, 3)), backward, x[:1], x, vector, saved)
        rejects(ValueError, ("layer_norm", "gamma", (1,)), backward, x, x, vector[:1], saved)
        rejects(ValueError, ("layer_norm", "saved", (2, 3)), backward, x, x, vector, saved[:, :3])
    rejects(TypeError, ("layer_norm", "float64"), _cpu.layer_norm_forward, x, vector.astype(float), vector)
