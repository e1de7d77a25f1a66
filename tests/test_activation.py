import numpy as np
import pytest
from checking import SIZES, agrees, check_gradients, normal, rejects, same_bits

from lec7 import _cpu, reference

NAMES = ("relu", "sigmoid", "tanh")


def forward(name):
    return lambda ops, x: (getattr(ops, f"{name}_forward")(x),)


def backward(name):
    return lambda ops, dy, y: (getattr(ops, f"{name}_backward")(dy, y),)


def test_activation_worked_examples():
    x = np.array([-2.0, 0.0, 3.0])
    np.testing.assert_array_equal(reference.relu_forward(x), [0, 0, 3])
    np.testing.assert_array_equal(
        reference.relu_backward(np.array([5.0, 6.0, 7.0]), np.array([0.0, 0, 3])), [0, 0, 7]
    )
    np.testing.assert_allclose(
        reference.sigmoid_forward(np.log([1.0, 3.0, 1 / 3])), [0.5, 0.75, 0.25], rtol=1e-15
    )
    np.testing.assert_allclose(reference.sigmoid_backward(np.array([2.0]), np.array([0.75])), [0.375])
    np.testing.assert_allclose(reference.tanh_forward(np.log([1.0, 2.0])), [0, 0.6], rtol=1e-15)
    np.testing.assert_allclose(reference.tanh_backward(np.array([2.0]), np.array([0.6])), [1.28])


@pytest.mark.parametrize("name", NAMES)
def test_activation_gradients(name, rng):
    check_gradients(
        lambda x: forward(name)(reference, x),
        lambda dy, x: backward(name)(reference, dy, forward(name)(reference, x)[0]),
        rng.standard_normal((3, 5)),
    )


@pytest.mark.parametrize("name", NAMES)
def test_activation_agrees(name, backend, rng):
    for shape in ((), (0, 5), (2, 3, 5), *((n,) for n in SIZES), (1009,)):
        x, dy = np.asarray(normal(rng, *shape)), np.asarray(normal(rng, *shape))
        agrees(name, backend, forward(name), x)
        agrees("activation_backward", backend, backward(name), dy, np.asarray(forward(name)(reference, x)[0]))


@pytest.mark.parametrize("name", NAMES)
def test_activation_is_accurate_everywhere(name, backend):
    # Relative to each element: small arguments must not lose digits, large ones must not overflow.
    magnitude = np.geomspace(1e-30, 80, 400).astype(np.float32)
    x = np.concatenate([magnitude, -magnitude, [0, -0.0, 100, 1e4, 3e38]], dtype=np.float32)
    agrees(name, backend, forward(name), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activation_of_infinities_and_nan(dtype, backend):
    x = np.array([np.nan, np.inf, -np.inf] * 12, dtype)
    for ops in (reference, backend):
        for name, (positive, negative) in {"relu": (np.inf, 0), "sigmoid": (1, 0), "tanh": (1, -1)}.items():
            y = getattr(ops, f"{name}_forward")(x)
            np.testing.assert_array_equal(y, np.array([np.nan, positive, negative] * 12, dtype), err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_activation_bits_do_not_depend_on_threads(name, backend, rng):
    same_bits(backend, forward(name), normal(rng, 300_001))
    same_bits(backend, backward(name), normal(rng, 300_001), normal(rng, 300_001))


def test_activation_accepts_lists():
    np.testing.assert_array_equal(_cpu.relu_forward([[1.0, -1.0]]), [[1.0, 0.0]])


@pytest.mark.parametrize("name", NAMES)
def test_activation_rejects(name):
    forward, backward = getattr(_cpu, f"{name}_forward"), getattr(_cpu, f"{name}_backward")
    x = np.zeros((2, 3), np.float32)
    for wrong in (np.int32, np.int64, np.float16, np.longdouble, np.complex64, bool, ">f4", object):
        rejects(TypeError, (name, np.dtype(wrong), (2, 3)), forward, x.astype(wrong))
    rejects(TypeError, (name,), forward, None)
    rejects(TypeError, (name,), forward, "text")
    rejects(TypeError, (name, "float32", "float64", (2, 3)), backward, x, x.astype(np.float64))
    for shape in ((3, 2), (2, 1), (3,), (2, 3, 1)):
        for ops in (backward, getattr(reference, f"{name}_backward")):
            rejects(ValueError, (name, (2, 3), shape), ops, x, np.zeros(shape, np.float32))
