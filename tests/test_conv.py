from collections.abc import Iterator
from contextlib import contextmanager

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
from devices import DeviceOps
from numpy.lib.stride_tricks import sliding_window_view

import lec7
from lec7 import _cpu, reference

GRADIENTS = ("dx", "dweight", "dbias")

# Shape of x, shape of weight, parameters.
CASES = [
    # 1d
    ((2, 11, 3), (3, 3, 5), {}),
    ((1, 1, 1), (1, 1, 1), {}),
    ((0, 7, 2), (3, 2, 4), {"padding": 1}),
    ((2, 11, 3), (4, 3, 5), {"stride": 2, "padding": ((1, 2),), "activation": "relu"}),
    ((2, 12, 4), (3, 4, 6), {"dilation": 2, "padding": "same", "flip": True}),
    ((1, 5, 2), (2, 2, 3), {"padding": 4, "stride": 3}),
    ((2, 3, 2), (7, 2, 3), {"padding": 2}),
    ((2, 13, 6), (3, 2, 9), {"groups": 3, "padding": (1,), "activation": "tanh"}),
    ((2, 9, 8), (3, 1, 8), {"groups": 8, "padding": "same_lower", "dilation": 3}),
    ((2, 10, 3), (1, 1, 3), {"groups": 3, "padding": ((1, 0),), "stride": 3}),
    ((3, 41, 20), (2, 1, 20), {"groups": 20, "padding": ((3, 0),), "stride": 4}),
    ((1, 40, 1), (17, 1, 33), {"stride": 5}),
    # 2d
    ((2, 6, 7, 3), (3, 3, 3, 4), {}),
    ((2, 5, 6, 8), (1, 1, 8, 16), {}),
    ((2, 5, 6, 8), (1, 1, 8, 17), {"stride": 2, "activation": "relu"}),
    ((0, 5, 5, 3), (3, 3, 3, 4), {"padding": "same", "activation": "sigmoid"}),
    ((1, 7, 9, 3), (3, 3, 3, 5), {"padding": 1, "activation": "relu"}),
    ((3, 7, 9, 5), (3, 3, 5, 7), {"padding": 1, "stride": 2}),
    ((1, 8, 8, 4), (2, 4, 4, 6), {"padding": "same"}),
    ((1, 8, 8, 4), (2, 4, 4, 6), {"padding": "same_lower", "stride": (3, 2)}),
    (
        (2, 9, 8, 2),
        (3, 2, 2, 3),
        {"padding": ((0, 3), (2, 1)), "stride": (1, 2), "dilation": (2, 3), "flip": True},
    ),
    ((1, 4, 4, 2), (3, 3, 2, 3), {"padding": 5, "stride": 2}),
    ((1, 2, 2, 2), (3, 3, 2, 3), {"padding": 3, "dilation": 2}),
    ((1, 3, 3, 2), (1, 1, 2, 3), {"padding": (1, 2)}),
    ((1, 23, 25, 3), (11, 11, 3, 9), {"stride": 4, "padding": 2, "activation": "relu"}),
    ((2, 6, 5, 6), (3, 3, 3, 4), {"groups": 2, "padding": 1, "flip": True}),
    ((2, 7, 6, 17), (3, 3, 1, 17), {"groups": 17, "padding": 1, "activation": "relu"}),
    ((2, 7, 6, 4), (3, 3, 1, 8), {"groups": 4, "padding": "same", "stride": 2}),
    ((1, 6, 6, 4), (6, 6, 4, 10), {}),
    ((1, 1, 9, 3), (1, 5, 3, 4), {"padding": (0, 2), "activation": "tanh"}),
    ((1, 9, 1, 3), (5, 1, 3, 4), {"padding": (2, 0)}),
    ((1, 14, 14, 67), (3, 3, 67, 33), {"padding": 1}),
    ((3, 23, 26, 1), (5, 5, 1, 32), {"padding": 2, "activation": "relu"}),
    ((2, 31, 29, 3), (3, 3, 3, 16), {"padding": "same", "flip": True}),
    ((2, 9, 40, 5), (2, 3, 5, 70), {"stride": (1, 2), "dilation": (1, 2)}),
    ((9, 10, 12, 18), (3, 3, 6, 24), {"groups": 3, "padding": 1, "stride": 2}),
    ((2, 25, 24, 35), (3, 3, 35, 34), {"stride": 2, "padding": 1}),
    ((1, 6, 6, 2), (3, 3, 2, 4), {"padding": 500, "stride": 499}),
    ((1, 5, 5, 300), (3, 3, 300, 20), {"padding": 1, "activation": "relu"}),
    *(((2, 5, 6, n), (3, 2, n, 5), {"padding": 1}) for n in SIZES),
    *(((2, 5, 6, 5), (2, 3, 5, n), {"padding": 1, "activation": "relu"}) for n in SIZES),
    *(((2, 3, n, 4), (3, 3, 4, 6), {"padding": 1}) for n in SIZES),
    # few channels along lines: of several images at a time, of bands of an image, of more channels than lanes
    ((6, 14, 10, 16), (5, 5, 16, 6), {"padding": 4}),
    ((9, 28, 28, 1), (5, 5, 1, 6), {"padding": 2, "activation": "relu"}),
    ((1, 40, 130, 20), (3, 3, 20, 3), {"padding": 1, "flip": True}),
    (
        (1, 20, 33, 2),
        (3, 3, 2, 8),
        {"stride": (2, 1), "dilation": (2, 3), "padding": (1, 4), "activation": "tanh"},
    ),
    ((2, 300, 3), (5, 3, 4), {"padding": 2}),
    ((1, 10, 29, 1), (1, 5, 1, 2), {"padding": ((6, 6), (0, 2)), "dilation": (1, 3)}),
    ((1, 3, 52, 1), (2, 4, 1, 4), {"padding": ((6, 7), (1, 2)), "activation": "relu"}),
    ((1, 4, 9, 1), (2, 2, 1, 1), {"padding": ((50000, 50000), (0, 0)), "dilation": (100000, 1)}),
    ((2, 3, 9, 33, 7), (1, 3, 3, 7, 5), {"padding": (0, 1, 1)}),
    # depthwise: squares of 3 and 5 with stride 1 and 2, at every remainder of a block, and what is like them
    *(
        ((2, n, 12 - n, 19), (k, k, 1, 19), {"groups": 19, "padding": k // 2, "stride": s})
        for k in (3, 5)
        for s in (1, 2)
        for n in (3, 6, 7, 8, 9)
    ),
    *(
        ((1, 6, 7, n), (3, 3, 1, n), {"groups": n, "padding": 1, "activation": "relu"})
        for n in SIZES
        if n > 1
    ),
    ((2, 9, 11, 5), (3, 3, 1, 5), {"groups": 5, "padding": ((0, 2), (4, 0)), "flip": True}),
    ((1, 8, 9, 5), (7, 7, 1, 5), {"groups": 5, "padding": 3}),
    ((1, 9, 13, 17), (7, 7, 1, 17), {"groups": 17, "padding": ((1, 3), (0, 2)), "flip": True}),
    ((1, 2, 9, 5), (5, 5, 1, 5), {"groups": 5, "padding": 4, "activation": "tanh"}),
    ((1, 9, 10, 5), (3, 3, 1, 5), {"groups": 5, "stride": (1, 2), "dilation": (1, 2)}),
    ((1, 8, 9, 4), (3, 5, 1, 4), {"groups": 4, "padding": 1}),
    ((1, 4, 6, 7, 4), (1, 3, 3, 1, 4), {"groups": 4, "padding": (0, 1, 1)}),
    ((1, 4, 6, 7, 4), (1, 3, 3, 1, 4), {"groups": 4, "padding": 1}),
    ((1, 4, 6, 7, 4), (3, 3, 3, 1, 4), {"groups": 4, "padding": 1, "stride": (2, 1, 1)}),
    # 3d
    ((2, 4, 5, 6, 3), (2, 3, 3, 3, 4), {}),
    (
        (1, 4, 5, 6, 4),
        (3, 3, 3, 2, 6),
        {"padding": 1, "stride": (1, 2, 2), "groups": 2, "activation": "relu"},
    ),
    ((1, 5, 4, 4, 2), (2, 2, 2, 2, 3), {"padding": "same", "dilation": (2, 1, 1), "flip": True}),
    ((0, 3, 3, 3, 2), (2, 2, 2, 2, 3), {"padding": ((0, 1), (1, 0), (2, 2))}),
]

# Those that a faster algorithm than the direct one takes in float32.
WINOGRAD_CASES = [
    ((2, 13, 14, 19), (3, 3, 19, 33), {"padding": 1, "activation": "relu"}),
    ((1, 9, 30, 67), (3, 3, 67, 130), {"padding": ((0, 2), (3, 1)), "flip": True, "activation": "tanh"}),
    ((3, 7, 7, 96), (3, 3, 96, 70), {"padding": 1}),
    ((1, 22, 5, 48), (3, 3, 48, 18), {}),
    ((2, 9, 11, 34), (3, 3, 17, 32), {"padding": "same", "groups": 2}),
    ((1, 14, 15, 400), (3, 3, 400, 150), {"padding": 1}),  # many channels for the CPU's caches
    ((1, 12, 14, 36), (4, 4, 36, 20), {"padding": "same", "flip": True}),
    ((2, 21, 19, 9), (4, 4, 9, 65), {"activation": "relu"}),
    ((2, 13, 12, 17), (5, 5, 17, 33), {"padding": 2, "activation": "relu"}),
    ((1, 17, 18, 40), (5, 5, 40, 66), {"padding": "same", "flip": True}),
    ((1, 3, 14, 13, 16), (1, 3, 3, 16, 20), {"padding": (0, 1, 1)}),
    ((0, 8, 8, 16), (3, 3, 16, 16), {"padding": 1}),
    ((2, 35, 38, 3), (11, 11, 3, 24), {"stride": 4, "activation": "relu"}),
    ((1, 36, 33, 3), (7, 7, 3, 40), {"stride": 2, "padding": 3, "flip": True}),
    ((2, 30, 31, 5), (8, 6, 5, 17), {"stride": (3, 2), "padding": ((9, 0), (1, 4))}),
    *(((1, 9, 10, n), (3, 3, n, 16), {"padding": 1}) for n in SIZES if n >= 8),
    *(((1, 9, 10, 16), (5, 5, 16, n), {"padding": 2}) for n in SIZES if n >= 8),
]


@contextmanager
def algorithm(name, backend=_cpu) -> Iterator[None]:
    before = backend.get_conv_algorithm()
    backend.set_conv_algorithm(name)
    try:
        yield
    finally:
        backend.set_conv_algorithm(before)


def algorithms(backend):
    """Those that differ."""
    return ("direct", "fast") if isinstance(backend, DeviceOps) else ("direct", "accurate", "fast")


def functions(ops, x):
    name = f"conv{x.ndim - 2}d"
    return getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")


def forward_and_backward(parameters):
    def run(ops, x, weight, bias, dy):
        forward, backward = functions(ops, x)
        y = forward(x, weight, bias, **parameters)
        return y, *backward(dy, x, weight, y=y, **parameters)

    return run


def operands(rng, x_shape, weight_shape, parameters):
    x, weight, bias = normal(rng, *x_shape), normal(rng, *weight_shape), normal(rng, weight_shape[-1])
    forward, _ = functions(reference, x)
    return x, weight, bias, normal(rng, *forward(x, weight, **parameters).shape)


def test_conv_worked_examples():
    x, weight = np.array([1.0, 2, 3, 5]).reshape(1, 4, 1), np.array([1.0, 0, -2]).reshape(3, 1, 1)

    def conv(**parameters):
        return reference.conv1d_forward(x, weight, **parameters).ravel()

    np.testing.assert_array_equal(conv(), [-5, -8])
    np.testing.assert_array_equal(conv(flip=True), [1, 1])
    np.testing.assert_array_equal(conv(padding=1), [-4, -5, -8, 3])
    np.testing.assert_array_equal(conv(padding="same", stride=2), [-5, 3])  # one cell of padding, at the end
    np.testing.assert_array_equal(conv(padding="same_lower", stride=2), [-4, -8])
    np.testing.assert_array_equal(conv(padding=((2, 0),), dilation=2), [-6, -10])
    image = np.arange(1.0, 10).reshape(1, 3, 3, 1)
    diagonal = np.array([[1.0, 0], [0, -1]]).reshape(2, 2, 1, 1)
    y = reference.conv2d_forward(image, diagonal, np.array([0.5]))
    np.testing.assert_array_equal(y[0, :, :, 0], [[-3.5, -3.5], [-3.5, -3.5]])
    dy = np.array([[1.0, 2], [0, 0]]).reshape(1, 2, 2, 1)
    dx, dweight, dbias = reference.conv2d_backward(dy, image, diagonal)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 2, 0], [0, -1, -2], [0, 0, 0]])
    np.testing.assert_array_equal(dweight[:, :, 0, 0], [[5, 8], [14, 17]])
    np.testing.assert_array_equal(dbias, [3])


def test_conv_flipped_is_the_convolution_of_mathematics(rng):
    a, b = rng.standard_normal(9), rng.standard_normal(4)
    y = reference.conv1d_forward(a.reshape(1, -1, 1), b.reshape(-1, 1, 1), padding=3, flip=True)
    np.testing.assert_allclose(y.ravel(), np.convolve(a, b), rtol=1e-12, atol=1e-12)


def test_conv_is_a_product_with_every_window(rng):
    x, weight = rng.standard_normal((2, 6, 7, 3)), rng.standard_normal((3, 2, 3, 4))
    windows = sliding_window_view(x, (3, 2), axis=(1, 2))
    expected = np.einsum("nijcab,abcf->nijf", windows, weight)
    np.testing.assert_allclose(reference.conv2d_forward(x, weight), expected, rtol=1e-12, atol=1e-12)
    strided = reference.conv2d_forward(x, weight, stride=(2, 3))
    np.testing.assert_allclose(strided, expected[:, ::2, ::3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "parameters"), [c for c in CASES if np.prod(c[0]) + np.prod(c[1]) < 300]
)
def test_conv_gradients(x_shape, weight_shape, parameters, rng):
    def forward(x, weight, bias):
        return functions(reference, x)[0](x, weight, bias, **parameters)

    def backward(dy, x, weight, bias):
        return functions(reference, x)[1](dy, x, weight, y=forward(x, weight, bias), **parameters)

    check_gradients(forward, backward, *operands(rng, x_shape, weight_shape, parameters)[:3])


@pytest.mark.parametrize(("x_shape", "weight_shape", "parameters"), CASES, ids=str)
def test_conv_agrees(x_shape, weight_shape, parameters, backend, rng):
    with algorithm("direct", backend):
        agrees(
            "conv",
            backend,
            forward_and_backward(parameters),
            *operands(rng, x_shape, weight_shape, parameters),
        )


@pytest.mark.parametrize("name", ["accurate", "fast"])
@pytest.mark.parametrize(("x_shape", "weight_shape", "parameters"), WINOGRAD_CASES, ids=str)
def test_conv_by_winograd_agrees(x_shape, weight_shape, parameters, name, backend, rng):
    x, weight, bias, dy = operands(rng, x_shape, weight_shape, parameters)
    weight /= np.sqrt(weight[..., 0].size, dtype=np.float32)  # tanh in its range
    on_cuda = isinstance(backend, DeviceOps)
    if on_cuda and (name == "accurate" or weight_shape[:2] != (3, 3) or x_shape[-1] == 400):
        pytest.skip("CUDA has one Winograd, 3 x 3, and blocks no channels")
    with algorithm(name, backend):
        agrees(f"conv_{name}", backend, forward_and_backward(parameters), x, weight, bias, dy)


def test_conv_takes_winograd_where_it_is_allowed(backend, rng):
    kernels = (3,) if isinstance(backend, DeviceOps) else (3, 4, 5)
    for c, f, k in [case for case in ((64, 64, 3), (32, 40, 4), (32, 40, 5)) if case[2] in kernels]:
        arrays = operands(rng, (1, 24, 24, c), (k, k, c, f), {"padding": 1})
        bits = []
        for name in ("direct", "accurate", "fast"):
            with algorithm(name, backend):
                bits.append(forward_and_backward({"padding": 1})(backend, *arrays))
        for direct, accurate, fast in list(zip(*bits, strict=True))[:3]:
            assert not np.array_equal(direct, fast)
            assert np.array_equal(direct, accurate) == (k > 3 or "accurate" not in algorithms(backend))


# Relative to the norm of a result on N(0, 1) data, against float64: what each algorithm may differ by.
ERRORS = {"direct": 1e-6, "accurate": 1e-6, "fast": 1e-5}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize(
    ("x_shape", "weight_shape"),
    [
        ((2, 56, 56, 64), (3, 3, 64, 64)),
        ((1, 28, 28, 256), (3, 3, 256, 64)),
        ((1, 14, 14, 512), (3, 3, 512, 128)),
        ((2, 27, 27, 96), (5, 5, 96, 128)),
        ((2, 57, 57, 48), (4, 4, 48, 64)),
    ],
    ids=str,
)
def test_conv_error_is_within_the_algorithms(x_shape, weight_shape, name, backend, rng):
    if name not in algorithms(backend) or (isinstance(backend, DeviceOps) and weight_shape[:2] != (3, 3)):
        pytest.skip("CUDA has direct sums and 3 x 3 alone")
    parameters = {"padding": "same"}
    x, weight, bias, dy = operands(rng, x_shape, weight_shape, parameters)
    run = forward_and_backward(parameters)
    exact = run(_cpu, *(a.astype(np.float64) for a in (x, weight, bias, dy)))
    with algorithm(name, backend):
        results = run(backend, x, weight, bias, dy)
    for result, right in list(zip(results, exact, strict=True))[:3]:
        assert np.linalg.norm(result - right) <= ERRORS[name] * np.linalg.norm(right)


def test_conv_algorithm_is_one_of_three():
    rejects(ValueError, ("set_conv_algorithm", "winograd", "'direct'"), lec7.set_conv_algorithm, "winograd")
    rejects(TypeError, (), lec7.set_conv_algorithm, None)
    assert lec7.get_conv_algorithm() == "fast"


def test_conv_without_bias_agrees(backend, rng):
    for x_shape, weight_shape, parameters in CASES[3:5] + CASES[14:16]:
        x, weight, _, dy = operands(rng, x_shape, weight_shape, parameters)
        agrees("conv", backend, forward_and_backward(parameters), x, weight, None, dy)


def test_conv_of_whole_numbers_is_exact(backend, rng):
    for x_shape, weight_shape, parameters in CASES:
        x, weight, bias, dy = (
            rng.integers(-5, 6, a.shape).astype(np.float32)
            for a in operands(rng, x_shape, weight_shape, parameters)
        )
        linear = {key: value for key, value in parameters.items() if key != "activation"}
        with algorithm("direct", backend):
            results = forward_and_backward(linear)(backend, x, weight, bias, dy)
        right = forward_and_backward(linear)(reference, x, weight, bias, dy)
        for result, expected in zip(results, right, strict=True):
            np.testing.assert_array_equal(result, expected, err_msg=f"{x_shape} {weight_shape} {parameters}")


def test_conv_on_tensor_cores(device, rng):
    """With whole numbers exact, whatever the shape; with others near, and not what float32 gives."""
    for x_shape, weight_shape, parameters in (
        ((2, 13, 14, 19), (3, 3, 19, 33), {"padding": 1}),
        ((3, 12, 13, 16), (3, 2, 16, 68), {"padding": 1, "stride": 2, "flip": True}),
        ((1, 9, 8, 140), (3, 3, 70, 130), {"groups": 2, "dilation": 2}),
    ):
        arrays, run = operands(rng, x_shape, weight_shape, parameters), forward_and_backward(parameters)
        whole = [rng.integers(-5, 6, a.shape).astype(np.float32) for a in arrays]
        right = run(_cpu, *(a.astype(np.float64) for a in arrays))
        with algorithm("direct", device):
            whole_right, single = run(device, *whole), run(device, *arrays)
        with device.tf32():
            whole_results, results = run(device, *whole), run(device, *arrays)
        for result, expected in zip(whole_results, whole_right, strict=True):
            np.testing.assert_array_equal(result, expected)
        for result, other, exact in list(zip(results, single, right, strict=True))[:3]:
            assert not np.array_equal(result, other)
            assert np.linalg.norm(result - exact) <= 6e-4 * np.linalg.norm(exact)


# --- storage in 16 bits -------------------------------------------------------------------------------------

HALF_CASES = [  # tiles' edges with units of 16 bytes along each operand and without
    ((2, 13, 14, 24), (3, 3, 24, 40), {"padding": 1}),
    ((1, 12, 11, 16), (3, 2, 16, 136), {"padding": 1, "stride": 2, "flip": True, "activation": "relu"}),
    ((1, 9, 8, 144), (3, 3, 72, 272), {"groups": 2, "dilation": 2, "activation": "tanh"}),
    ((2, 9, 10, 136), (1, 1, 136, 130), {"activation": "sigmoid"}),
]


def half_conv_agrees(x_shape, weight_shape, parameters, stored, capability, device, rng):
    x, weight, bias, dy = operands(rng, x_shape, weight_shape, parameters)
    weight /= np.sqrt(weight[..., 0].size, dtype=np.float32)  # sigmoid and tanh in their range
    x, weight, bias, dy = (rounded(stored, a) for a in (x, weight, bias, dy))
    ops, activation = device.storing(stored), parameters.get("activation")
    forward, backward = functions(ops, x)
    with ops.chip(capability):
        y = forward(x, weight, bias, **parameters)
        gradients = backward(dy, x, weight, y=y, **parameters)
    x, weight, bias = (a.astype(np.float64) for a in (x, weight, bias))
    forward, backward = functions(reference, x)
    near_in_half("y", stored, y, forward(x, weight, bias, **parameters))
    dz, roundings = stored_dz(stored, activation, dy, y)
    exact = backward(dz, x, weight, **{key: v for key, v in parameters.items() if key != "activation"})
    for name, result, right in zip(GRADIENTS, gradients, exact, strict=True):
        near_in_half(name, stored, result, right, roundings)


@pytest.mark.parametrize("stored", HALVES)
@pytest.mark.parametrize(("x_shape", "weight_shape", "parameters"), CASES + HALF_CASES, ids=str)
def test_half_conv_agrees(x_shape, weight_shape, parameters, stored, device, rng):
    half_conv_agrees(x_shape, weight_shape, parameters, stored, 80, device, rng)


@pytest.mark.parametrize("stored", HALVES)
@pytest.mark.parametrize(("x_shape", "weight_shape", "parameters"), HALF_CASES + CASES[::7], ids=str)
def test_half_conv_without_tensor_cores_agrees(x_shape, weight_shape, parameters, stored, device, rng):
    half_conv_agrees(x_shape, weight_shape, parameters, stored, 75, device, rng)


@pytest.mark.parametrize("capability", [80, 75])
@pytest.mark.parametrize("stored", HALVES)
def test_half_conv_of_whole_numbers_is_exact(stored, capability, device, rng):
    ops = device.storing(stored)
    for x_shape, weight_shape, parameters in (
        ((1, 6, 7, 19), (3, 3, 19, 33), {"padding": 1}),
        ((1, 9, 8, 32), (3, 3, 16, 144), {"groups": 2, "stride": 2, "padding": 1, "flip": True}),
        ((1, 7, 5, 3), (5, 3, 3, 8), {"padding": 2, "dilation": (1, 2)}),
    ):
        whole = [
            rng.integers(-1, 2, a.shape).astype(np.float32)
            for a in operands(rng, x_shape, weight_shape, parameters)
        ]
        with ops.chip(capability):
            results = forward_and_backward(parameters)(ops, *whole)
        right = forward_and_backward(parameters)(reference, *whole)
        for result, expected in zip(results, right, strict=True):
            assert np.abs(expected).max() <= 256
            np.testing.assert_array_equal(result, expected)


def test_half_conv_bits_do_not_depend_on_threads(device, rng):
    for stored in HALVES:
        for x_shape, weight_shape, parameters in (
            ((1, 6, 7, 70), (3, 3, 70, 33), {"padding": 1, "activation": "tanh"}),
            ((1, 7, 8, 16), (3, 3, 16, 136), {"stride": 2}),
        ):
            arrays = operands(rng, x_shape, weight_shape, parameters)
            same_bits(device.storing(stored), forward_and_backward(parameters), *arrays)


def test_conv_honours_needs(backend, rng):
    for x_shape, weight_shape, parameters in CASES[3:4] + CASES[14:15] + CASES[-3:-2]:
        x, weight, bias, dy = operands(rng, x_shape, weight_shape, parameters)
        y = functions(backend, x)[0](x, weight, bias, **parameters)

        def backward(ops, needs, x=x, weight=weight, dy=dy, y=y, parameters=parameters):
            return functions(ops, x)[1](dy, x, weight, y=y, needs=needs, **parameters)

        honours_needs(backend, backward, GRADIENTS)


def test_conv_bits_do_not_depend_on_threads(backend, rng):
    on_threads = [
        ((4, 400, 16), (5, 16, 33), {"padding": 2, "activation": "relu"}),
        ((3, 31, 33, 19), (3, 3, 19, 35), {"padding": 1, "activation": "relu"}),
        ((2, 30, 30, 24), (3, 3, 1, 24), {"padding": 1, "groups": 24}),
        ((3, 45, 47, 35), (3, 3, 1, 35), {"padding": 1, "groups": 35}),
        ((3, 45, 47, 35), (5, 5, 1, 35), {"padding": 2, "groups": 35, "stride": 2, "activation": "relu"}),
        ((1, 28, 28, 64), (1, 1, 64, 65), {}),
        ((2, 8, 14, 15, 6), (3, 3, 3, 6, 17), {"padding": 1}),
        ((1, 14, 14, 130), (3, 3, 130, 150), {"padding": 1}),
        ((2, 40, 38, 72), (3, 3, 72, 72), {"padding": 1}),
        ((1, 6, 7, 230), (3, 3, 230, 260), {"padding": 1}),
        ((8, 33, 33, 24), (5, 5, 24, 40), {"padding": 2}),
    ]
    on_cuda = [  # tiles and parts of sums in each pass, phases, channels that are handed on, depthwise
        ((2, 150, 16), (5, 16, 33), {"padding": 2, "activation": "relu"}),
        ((1, 17, 19, 19), (3, 3, 19, 35), {"padding": 1, "stride": 2}),
        ((1, 20, 21, 3), (3, 3, 3, 6), {"padding": 1}),
        ((3, 25, 27, 35), (5, 5, 1, 35), {"padding": 2, "groups": 35, "stride": 2, "activation": "relu"}),
        ((1, 6, 7, 70), (3, 3, 70, 130), {"padding": 1}),
        ((2, 9, 10, 34), (3, 3, 34, 33), {"padding": 1}),
    ]
    for x_shape, weight_shape, parameters in on_cuda if isinstance(backend, DeviceOps) else on_threads:
        arrays = operands(rng, x_shape, weight_shape, parameters)
        for name in ("direct", "fast"):
            with algorithm(name, backend):
                same_bits(backend, forward_and_backward(parameters), *arrays)


def test_conv_rejects_shapes():
    x, weight, bias = (
        np.zeros((8, 32, 32, 4), np.float32),
        np.zeros((3, 3, 3, 16), np.float32),
        np.zeros(16, np.float32),
    )
    for ops in (_cpu, reference):
        for wrong in (weight, weight[:, :, :1]):
            rejects(ValueError, ("conv2d", x.shape, wrong.shape), ops.conv2d_forward, x, wrong)
        x3 = x[..., :3]
        for wrong in (x3[0], x3[None], x3[0, 0]):
            rejects(ValueError, ("conv2d", wrong.shape), ops.conv2d_forward, wrong, weight)
        for wrong in (weight[0], weight[None], weight[0, 0]):
            rejects(ValueError, ("conv2d", x3.shape, wrong.shape), ops.conv2d_forward, x3, wrong)
        for wrong in (bias[:1], bias[None], bias[:15]):
            rejects(ValueError, ("conv2d", wrong.shape), ops.conv2d_forward, x3, weight, wrong)
        for wrong in (weight[:0], weight[:, :0]):
            rejects(ValueError, ("conv2d",), ops.conv2d_forward, x3, wrong)
        for wrong in (x3[:, :0], x3[:, :, :0], x3[:, :2]):
            rejects(ValueError, ("conv2d",), ops.conv2d_forward, wrong, weight)
        rejects(ValueError, ("conv2d", "groups", x3.shape), ops.conv2d_forward, x3, weight, groups=3)
        rejects(ValueError, ("conv1d", x3[0].shape, weight.shape), ops.conv1d_forward, x3[0], weight)
        rejects(ValueError, ("conv3d", x3.shape), ops.conv3d_forward, x3, weight[None])
        for shape in ((8, 30, 30, 15), (8, 30, 29, 16), (1, 30, 30, 16), (8, 30, 16)):
            dy = np.zeros(shape, np.float32)
            rejects(ValueError, ("conv2d", shape), ops.conv2d_backward, dy, x3, weight)
        dy = np.zeros((8, 30, 30, 16), np.float32)
        rejects(ValueError, ("conv2d", "y"), ops.conv2d_backward, dy, x3, weight, activation="relu")
        y = dy[:1]
        rejects(ValueError, (y.shape,), ops.conv2d_backward, dy, x3, weight, activation="relu", y=y)
    rejects(
        TypeError, ("conv2d", "float64", weight.shape), _cpu.conv2d_forward, x3, weight.astype(np.float64)
    )
    rejects(TypeError, ("conv2d", "uint8", x3.shape), _cpu.conv2d_forward, x3.astype(np.uint8), weight)


def test_conv_rejects_parameters():
    x, weight = np.zeros((1, 6, 6, 2), np.float32), np.zeros((3, 3, 2, 4), np.float32)
    dy = np.zeros((1, 4, 4, 4), np.float32)
    big, huge = 2**31, 2**62
    wrong = [
        *({"stride": bad} for bad in (0, -1, (1, 0), (1, 1, 1), (1,), ())),
        *({"dilation": bad} for bad in (0, -1, (1, -2), (1, 1, 1), huge, (1, 2**63 - 1), big)),
        *(
            {"padding": bad}
            for bad in (-1, (1, -1), ((0, -1), (0, 0)), (1,), (1, 1, 1), ((1, 1),), "full", "")
        ),
        *({"groups": bad} for bad in (0, -1, 3)),
        {"activation": "swish"},
    ]
    for ops in (_cpu, reference):
        for parameters in wrong:
            rejects(ValueError, ("conv2d",), ops.conv2d_forward, x, weight, **parameters)
            rejects(ValueError, ("conv2d",), ops.conv2d_backward, dy, x, weight, **parameters)
    for padding in (huge, 2**63 - 1, (big, big), ((huge, huge), (0, 0))):
        rejects(ValueError, ("conv2d",), _cpu.conv2d_forward, x, weight, padding=padding)
        rejects(ValueError, ("conv2d",), _cpu.conv2d_backward, dy, x, weight, padding=padding)
    for parameters in (
        {"stride": 1.5},
        {"stride": None},
        {"padding": 1.5},
        {"padding": None},
        {"dilation": "1"},
    ):
        rejects((TypeError, ValueError), (), _cpu.conv2d_forward, x, weight, **parameters)
    for name in ("stride", "padding", "dilation", "groups"):
        rejects((TypeError, ValueError, OverflowError), (), _cpu.conv2d_forward, x, weight, **{name: 2**70})
    y = _cpu.conv2d_forward(x, weight, stride=2**31 - 1)
    assert y.shape == (1, 1, 1, 4)
