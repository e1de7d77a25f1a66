import itertools

import numpy as np
import pytest
from checking import (
    HALVES,
    SIZES,
    agrees,
    check_gradients,
    honours_needs,
    near_in_half,
    normal,
    rejects,
    rounded,
    same_bits,
    stored_dz,
)

from lec7 import _cpu, reference

ACTIVATIONS = (None, "relu", "sigmoid", "tanh")
GRADIENTS = ("dx", "dweight", "dbias")


def forward_and_backward(activation=None):
    def run(ops, x, weight, bias, dy):
        y = ops.linear_forward(x, weight, bias, activation=activation)
        return y, *ops.linear_backward(dy, x, weight, y=y, activation=activation)

    return run


def operands(rng, rows, inputs, outputs):
    shapes = ((*rows, inputs), (inputs, outputs), (outputs,), (*rows, outputs))
    return [normal(rng, *shape) for shape in shapes]


def test_linear_worked_example():
    x, weight, bias = (
        np.array([[1.0, 2.0]]),
        np.array([[3.0, 4.0, 0.0], [5.0, 6.0, -8.0]]),
        np.array([0.5, 0.0, 1.0]),
    )
    np.testing.assert_array_equal(reference.linear_forward(x, weight, bias), [[13.5, 16, -15]])
    y = reference.linear_forward(x, weight, bias, activation="relu")
    np.testing.assert_array_equal(y, [[13.5, 16, 0]])
    dx, dweight, dbias = reference.linear_backward(
        np.array([[1.0, -1.0, 7.0]]), x, weight, y=y, activation="relu"
    )
    np.testing.assert_array_equal(dx, [[-1, -1]])
    np.testing.assert_array_equal(dweight, [[1, -1, 0], [2, -2, 0]])
    np.testing.assert_array_equal(dbias, [1, -1, 0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_gradients(activation, rng):
    def forward(x, weight, bias):
        return reference.linear_forward(x, weight, bias, activation=activation)

    def backward(dy, x, weight, bias):
        y = forward(x, weight, bias)
        return reference.linear_backward(dy, x, weight, y=y, activation=activation)

    check_gradients(forward, backward, *operands(rng, (2, 3), 4, 5)[:3])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_agrees(activation, backend, rng):
    run = forward_and_backward(activation)
    for n in SIZES:
        for rows, inputs, outputs in ((n, 7, 5), (5, n, 7), (7, 5, n)):
            agrees("linear", backend, run, *operands(rng, (rows,), inputs, outputs))


@pytest.mark.parametrize("rows", [(), (0,), (2, 3), (2, 0, 3), (1, 1), (64,), (97,)])
def test_linear_of_any_leading_shape_agrees(rows, backend, rng):
    agrees("linear", backend, forward_and_backward("tanh"), *operands(rng, rows, 33, 65))


def test_linear_without_bias_agrees(backend, rng):
    x, weight, _, dy = operands(rng, (6,), 19, 23)
    agrees("linear", backend, forward_and_backward(), x, weight, None, dy)


@pytest.mark.parametrize(
    ("m", "k", "n"), [(130, 517, 70), (33, 1031, 257), (1, 2053, 300), (300, 3, 301), (4, 700, 1)]
)
def test_linear_of_many_blocks_agrees(m, k, n, backend, rng):
    agrees("linear", backend, forward_and_backward("relu"), *operands(rng, (m,), k, n))


@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (2, 5, 3), (16, 16, 16), (17, 33, 9), (67, 129, 131), (3, 0, 4)]
)
def test_matmul_agrees(m, k, n, backend, rng):
    for transpose_a, transpose_b in itertools.product((False, True), repeat=2):
        a, b = (
            normal(rng, *((k, m) if transpose_a else (m, k))),
            normal(rng, *((n, k) if transpose_b else (k, n))),
        )
        agrees(
            "matmul",
            backend,
            lambda ops, a, b, ta=transpose_a, tb=transpose_b: (
                ops.matmul(a, b, transpose_a=ta, transpose_b=tb),
            ),
            a,
            b,
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matmul_of_whole_numbers_is_exact(dtype, backend, rng):
    # No rounding happens, so that a single misplaced element in any block or edge shows.
    for m, k, n in itertools.product((1, 2, 6, 15, 50, 131), (1, 9, 300), (1, 8, 17, 95, 260)):
        a, b = (rng.integers(-9, 10, shape).astype(dtype) for shape in ((m, k), (k, n)))
        expected = a @ b
        np.testing.assert_array_equal(backend.matmul(a, b), expected)
        np.testing.assert_array_equal(backend.matmul(a.T.copy(), b, transpose_a=True), expected)
        np.testing.assert_array_equal(backend.matmul(a, b.T.copy(), transpose_b=True), expected)


@pytest.mark.slow
def test_matmul_of_large_whole_numbers_is_exact(backend, rng):
    for m, k, n in ((1031, 2053, 1500), (64, 4096, 4608), (2, 9216, 4096)):
        a, b = (rng.integers(-9, 10, shape).astype(np.float32) for shape in ((m, k), (k, n)))
        np.testing.assert_array_equal(backend.matmul(a, b), a @ b)


def test_matmul_on_tensor_cores(device, rng):
    """With whole numbers exact, whatever the shape; with others near, and not what float32 gives."""
    for m, k, n in itertools.product((100, 131), (9, 300), (33, 130)):
        a, b = normal(rng, m, k), normal(rng, k, n)
        whole_a, whole_b = np.round(4 * a), np.round(4 * b)
        single, right = device.matmul(a, b), a.astype(np.float64) @ b.astype(np.float64)
        with device.tf32():
            for x, transpose_a in ((whole_a, False), (whole_a.T.copy(), True)):
                for y, transpose_b in ((whole_b, False), (whole_b.T.copy(), True)):
                    product = device.matmul(x, y, transpose_a=transpose_a, transpose_b=transpose_b)
                    np.testing.assert_array_equal(product, whole_a @ whole_b)
            result = device.matmul(a, b)
        assert not np.array_equal(result, single)
        assert np.linalg.norm(result - right) <= 6e-4 * np.linalg.norm(right)


def test_matmul_keeps_nan_and_infinity_in_place(backend):
    a, b = np.ones((9, 20), np.float32), np.ones((20, 18), np.float32)
    a[4, 7] = np.nan
    b[3, 11] = np.inf
    expected = np.full((9, 18), 20, np.float32)
    expected[:, 11] = np.inf
    expected[4] = np.nan
    np.testing.assert_array_equal(backend.matmul(a, b), expected)


# --- storage in 16 bits -------------------------------------------------------------------------------------

# Around the edges of tiles of 128 x 128 x 32, rows of whole units of 16 bytes and others, sums in parts.
HALF_SIZES = [
    (0, 3, 4),
    (1, 1, 1),
    (5, 7, 3),
    (1, 530, 33),
    (127, 31, 129),
    (128, 64, 128),
    (129, 33, 130),
    (136, 520, 24),
    (40, 8, 264),
]


@pytest.mark.parametrize("capability", [80, 75])
@pytest.mark.parametrize("stored", HALVES)
@pytest.mark.parametrize(("m", "k", "n"), HALF_SIZES)
def test_half_linear_agrees(m, k, n, stored, capability, device, rng):
    ops = device.storing(stored)
    for activation in ACTIVATIONS:
        x, weight, bias, dy = operands(rng, (m,), k, n)
        weight /= np.sqrt(k, dtype=np.float32)  # sigmoid and tanh in their range
        x, weight, bias, dy = (rounded(stored, a) for a in (x, weight, bias, dy))
        with ops.chip(capability):
            y = ops.linear_forward(x, weight, bias, activation=activation)
            gradients = ops.linear_backward(dy, x, weight, y=y, activation=activation)
        x, weight, bias = (a.astype(np.float64) for a in (x, weight, bias))
        exact = reference.linear_forward(x, weight, bias, activation=activation)
        near_in_half(f"y, {activation}", stored, y, exact)
        dz, roundings = stored_dz(stored, activation, dy, y)
        exact = reference.linear_backward(dz, x, weight)
        for name, result, right in zip(GRADIENTS, gradients, exact, strict=True):
            near_in_half(f"{name}, {activation}", stored, result, right, roundings)


@pytest.mark.parametrize("capability", [80, 75])
@pytest.mark.parametrize("stored", HALVES)
def test_half_matmul_of_whole_numbers_is_exact(stored, capability, device, rng):
    ops = device.storing(stored)
    for m, k, n in itertools.product((72, 131), (9, 136), (17, 136)):
        a, b = (rng.integers(-1, 2, shape).astype(np.float32) for shape in ((m, k), (k, n)))
        for transpose_a, transpose_b in itertools.product((False, True), repeat=2):
            with ops.chip(capability):
                product = ops.matmul(
                    a.T.copy() if transpose_a else a,
                    b.T.copy() if transpose_b else b,
                    transpose_a=transpose_a,
                    transpose_b=transpose_b,
                )
            np.testing.assert_array_equal(
                product, a @ b, err_msg=f"{(m, k, n)}, {transpose_a}, {transpose_b}"
            )


@pytest.mark.parametrize("stored", HALVES)
def test_half_linear_rounds_to_what_is_stored(stored, device):
    """To the nearest, halves to even; what is too large for float16 is infinite."""
    ops, one = device.storing(stored), np.ones((1, 1), np.float32)
    ulp = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[stored]
    for bias, expected in ((1.0, 1.0 + ulp), (ulp / 2, 1.0), (1.5 * ulp, 1 + 2 * ulp)):
        # x W + b is 1 + bias in float32
        x = one * (1 + ulp if bias == 1.0 else 1)
        y = ops.linear_forward(x, one, np.full(1, 0 if bias == 1.0 else bias, np.float32))
        np.testing.assert_array_equal(y, [[expected]])
    y = ops.matmul(one * 60000, one * 60000)
    assert np.isinf(y).item() == (stored == "float16")
    y = ops.matmul(one * np.nan, one)
    assert np.isnan(y).item()


def test_half_linear_rejects(device):
    x, weight = np.zeros((4, 3), np.float32), np.zeros((3, 5), np.float32)
    module = device.module
    half = module.to_device(x).astype("float16")
    for other in ("float32", "bfloat16"):
        with pytest.raises(TypeError, match=rf"linear.*float16.*{other}"):
            module.linear_forward(half, module.to_device(weight).astype(other))


def test_linear_honours_needs(backend, rng):
    x, weight, _, dy = operands(rng, (13,), 21, 34)
    y = backend.linear_forward(x, weight, activation="tanh")
    honours_needs(
        backend,
        lambda ops, needs: ops.linear_backward(dy, x, weight, y=y, activation="tanh", needs=needs),
        GRADIENTS,
    )


def test_linear_bits_do_not_depend_on_threads(backend, rng):
    same_bits(backend, forward_and_backward("sigmoid"), *operands(rng, (257,), 300, 129))
    same_bits(backend, forward_and_backward(), *operands(rng, (3,), 1100, 900))
    same_bits(backend, forward_and_backward(), *operands(rng, (2000,), 5, 3))
    same_bits(backend, lambda ops, a, b: (ops.matmul(a, b),), normal(rng, 2, 5000), normal(rng, 5000, 70))


def test_linear_rejects():
    x, weight, bias = np.zeros((4, 3), np.float32), np.zeros((3, 5), np.float32), np.zeros(5, np.float32)
    dy = np.zeros((4, 5), np.float32)
    for ops in (_cpu, reference):
        rejects(ValueError, ("linear", (4, 3), (5, 3)), ops.linear_forward, x, weight.T)
        rejects(ValueError, ("linear", (4, 3), (1, 3, 5)), ops.linear_forward, x, weight[None])
        rejects(ValueError, ("linear", (), (3, 5)), ops.linear_forward, x[0, 0], weight)
        rejects(ValueError, ("linear", (1,)), ops.linear_forward, x, weight, bias[:1])
        rejects(ValueError, ("linear", (1, 5)), ops.linear_forward, x, weight, bias[None])
        rejects(ValueError, ("linear", "swish"), ops.linear_forward, x, weight, activation="swish")
        rejects(ValueError, ("linear", "activation"), ops.linear_forward, x, weight, activation="")
        rejects(ValueError, ("linear", (5, 4)), ops.linear_backward, dy.T, x, weight)
        rejects(ValueError, ("linear", (1, 5)), ops.linear_backward, dy[:1], x, weight)
        rejects(ValueError, ("linear", "y"), ops.linear_backward, dy, x, weight, activation="tanh")
        y = dy[:, :1]
        rejects(ValueError, ("(4, 1)",), ops.linear_backward, dy, x, weight, y=y, activation="tanh")
        rejects(ValueError, ("matmul", (1, 4, 3)), ops.matmul, x[None], weight)
        rejects(ValueError, ("matmul", (3,)), ops.matmul, x, weight[:, 0])
    rejects(ValueError, ("matmul", (4, 3), (5, 3)), _cpu.matmul, x, weight.T)
    rejects(ValueError, ("matmul", (4, 3), (3, 5)), _cpu.matmul, x, weight, transpose_a=True)
    rejects(TypeError, ("linear", "float64", (3, 5)), _cpu.linear_forward, x, weight.astype(np.float64))
    rejects(TypeError, ("linear", "int64", (4, 3)), _cpu.linear_forward, x.astype(np.int64), weight)
    rejects(TypeError, ("linear", "float16", (5,)), _cpu.linear_forward, x, weight, bias.astype(np.float16))
    rejects(TypeError, ("matmul", "int32", (3, 5)), _cpu.matmul, x, weight.astype(np.int32))
    rejects(ValueError, ("linear", "needs"), _cpu.linear_backward, dy, x, weight, needs="dx")
    both = np.empty(2 * x.size, x.dtype)
    twice = {"dx": both[: x.size].reshape(x.shape), "dweight": both[: weight.size].reshape(weight.shape)}
    readonly = np.empty_like(weight)
    readonly.flags.writeable = False
    for message, needs in (
        ("dweight shares memory", {"dweight": weight}),
        ("dx shares memory", {"dx": x}),
        ("dweight shares memory", twice),
        ("read-only", {"dweight": readonly}),
        ("contiguous", {"dweight": np.empty(weight.shape[::-1], weight.dtype).T}),
    ):
        rejects(ValueError, ("linear", message), _cpu.linear_backward, dy, x, weight, needs=needs)
    rejects(TypeError, ("linear", "dweight"), _cpu.linear_backward, dy, x, weight, needs={"dweight": [1.0]})
