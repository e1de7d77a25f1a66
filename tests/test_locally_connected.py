import numpy as np
import pytest
from checking import SIZES, agrees, check_gradients, honours_needs, normal, rejects, same_bits
from devices import DeviceOps

from lec7 import _cpu, layers, reference

# N, (H, W), (KH, KW), C, F, stride
CASES = [
    (1, (1, 1), (1, 1), 1, 1, 1),
    (2, (4, 5), (3, 2), 3, 4, 1),
    (0, (4, 5), (3, 2), 3, 4, 1),
    (3, (5, 4), (1, 1), 5, 3, 2),
    (2, (7, 6), (3, 3), 2, 3, 2),
    (2, (7, 8), (2, 3), 2, 3, (3, 1)),
    (1, (4, 4), (4, 4), 3, 17, 1),
    (1, (9, 3), (5, 1), 2, 9, (2, 1)),
    (5, (6, 6), (2, 2), 33, 67, 1),
    (2, (4, 4), (3, 3), 150, 20, 1),
    (2, (3, 3), (2, 2), 3, 400, 1),
    (100, (3, 3), (2, 2), 3, 5, 1),  # several blocks of images
    (2, (20, 20), (3, 3), 8, 64, 1),  # a gradient of the filters that goes past the caches
    *((n, (4, 3), (3, 2), 4, 7, 1) for n in SIZES),
    *((2, (3, 4), (2, 2), n, 5, 1) for n in SIZES),
    *((2, (3, 4), (2, 2), 5, n, 1) for n in SIZES),
]


def operands(rng, n, size, kernel, c, f, stride):
    strides = (stride, stride) if isinstance(stride, int) else stride
    output = [(s - k) // d + 1 for s, k, d in zip(size, kernel, strides, strict=True)]
    return (
        normal(rng, n, *size, c),
        normal(rng, *output, *kernel, c, f),
        normal(rng, *output, f),
        normal(rng, n, *output, f),
    )


def forward_and_backward(stride):
    def run(ops, x, weight, bias, dy):
        y = ops.locally_connected2d_forward(x, weight, bias, stride=stride)
        return y, *ops.locally_connected2d_backward(dy, x, weight, stride=stride)

    return run


def test_locally_connected_worked_example():
    x = np.array([[1.0, 2, 3], [4, 5, 6]]).reshape(1, 2, 3, 1)
    weight = np.array([[[1.0, 0], [0, 1]], [[0, 2], [-1, 0]]]).reshape(1, 2, 2, 2, 1, 1)
    bias = np.array([0.5, -0.5]).reshape(1, 2, 1)
    y = reference.locally_connected2d_forward(x, weight, bias)
    np.testing.assert_array_equal(y.ravel(), [1 + 5 + 0.5, 2 * 3 - 5 - 0.5])
    dy = np.array([10.0, 1]).reshape(1, 1, 2, 1)
    dx, dweight, dbias = reference.locally_connected2d_backward(dy, x, weight)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[10, 0, 2], [0, 10 - 1, 0]])
    np.testing.assert_array_equal(dweight[0, 0, :, :, 0, 0], [[10, 20], [40, 50]])
    np.testing.assert_array_equal(dweight[0, 1, :, :, 0, 0], [[2, 3], [5, 6]])
    np.testing.assert_array_equal(dbias, dy[0])


@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
def test_locally_connected_with_equal_filters_is_a_convolution(stride, rng):
    x, shared, bias = (rng.standard_normal(s) for s in ((3, 7, 8, 4), (3, 2, 4, 5), (5,)))
    y = reference.conv2d_forward(x, shared, bias, stride=stride)
    dy = rng.standard_normal(y.shape)
    dx, dweight, dbias = reference.conv2d_backward(dy, x, shared, stride=stride)
    weight = np.broadcast_to(shared, (*y.shape[1:3], *shared.shape))
    biases = np.broadcast_to(bias, y.shape[1:])
    for ops in (reference, _cpu):
        local = ops.locally_connected2d_forward(x, weight, biases, stride=stride)
        np.testing.assert_allclose(local, y, rtol=1e-12, atol=1e-12)
        gradients = ops.locally_connected2d_backward(dy, x, weight, stride=stride)
        np.testing.assert_allclose(gradients[0], dx, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(gradients[1].sum(axis=(0, 1)), dweight, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(gradients[2].sum(axis=(0, 1)), dbias, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", [c for c in CASES[:8] if c[0] * np.prod(c[1]) < 100], ids=str)
def test_locally_connected_gradients(case, rng):
    def forward(x, weight, bias):
        return reference.locally_connected2d_forward(x, weight, bias, stride=case[-1])

    def backward(dy, x, weight, bias):
        return reference.locally_connected2d_backward(dy, x, weight, stride=case[-1])

    check_gradients(forward, backward, *operands(rng, *case)[:3])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_locally_connected_agrees(case, backend, rng):
    if isinstance(backend, DeviceOps) and case[1] == (20, 20):
        pytest.skip("CUDA has nothing that goes past caches")
    agrees("locally_connected", backend, forward_and_backward(case[-1]), *operands(rng, *case))


def test_locally_connected_without_bias_agrees(backend, rng):
    x, weight, _, dy = operands(rng, *CASES[4])
    agrees("locally_connected", backend, forward_and_backward(CASES[4][-1]), x, weight, None, dy)


def test_locally_connected_honours_needs(backend, rng):
    x, weight, _, dy = operands(rng, *CASES[4])

    def backward(ops, needs):
        return ops.locally_connected2d_backward(dy, x, weight, stride=CASES[4][-1], needs=needs)

    honours_needs(backend, backward, ("dx", "dweight", "dbias"))


def test_locally_connected_bits_do_not_depend_on_threads(backend, rng):
    on_threads = (
        (3, (14, 15), (3, 3), 19, 35, 1),
        (9, (16, 17), (5, 4), 6, 17, (2, 1)),
        (1, (20, 20), (3, 3), 3, 9, 1),
    )
    on_cuda = ((3, (4, 5), (3, 3), 35, 19, 1), (20, (6, 5), (4, 2), 6, 17, (2, 1)))
    for case in on_cuda if isinstance(backend, DeviceOps) else on_threads:
        same_bits(backend, forward_and_backward(case[-1]), *operands(rng, *case))


def test_locally_connected_rejects():
    x, weight = np.zeros((2, 5, 6, 4), np.float32), np.zeros((3, 5, 3, 2, 4, 7), np.float32)
    bias, dy = np.zeros((3, 5, 7), np.float32), np.zeros((2, 3, 5, 7), np.float32)
    op = "locally_connected2d"
    for ops in (_cpu, reference):
        forward, backward = ops.locally_connected2d_forward, ops.locally_connected2d_backward
        for wrong in (x[0], x[None], x[..., :3], x[:, 1:], x[:, :, 2:]):
            rejects(ValueError, (op, wrong.shape), forward, wrong, weight)
        for wrong in (x[:, :2], x[:, :0], x[:, :, :1]):
            rejects(
                ValueError, (op, "does not fit" if ops is reference else wrong.shape), forward, wrong, weight
            )
        for wrong in (
            weight[1:],
            weight[:, 1:],
            weight[0],
            weight[None],
            weight[..., :0],
            weight[..., :0, :],
        ):
            rejects(ValueError, (op, x.shape, wrong.shape), forward, x, wrong)
        for wrong in (weight[:, :, :0], weight[:, :, 1:]):
            rejects(ValueError, (op,), forward, x, wrong)
        for wrong in (bias[0], bias[..., :1], bias[1:]):
            rejects(ValueError, (op, wrong.shape), forward, x, weight, wrong)
        for wrong in (dy[0], dy[1:], dy[..., 1:], dy[:, :, 1:]):
            rejects(ValueError, (op, wrong.shape), backward, wrong, x, weight)
        for stride in (0, -1, (1, 0), (1, 1, 1), 2):
            rejects(ValueError, (op,), forward, x, weight, stride=stride)
            rejects(ValueError, (op,), backward, dy, x, weight, stride=stride)
    rejects(ValueError, (op, "stride"), _cpu.locally_connected2d_forward, x, weight, stride=2**62)
    rejects(TypeError, (op, "stride"), _cpu.locally_connected2d_forward, x, weight, stride=1.5)
    rejects(TypeError, (op, "float64"), _cpu.locally_connected2d_forward, x, weight.astype(np.float64))


def test_locally_connected_layer_has_filters_for_each_position(rng):
    layer = layers.LocallyConnected2d(3, 4, (3, 2), input_size=(7, 6), stride=2, rng=rng)
    assert layer.params["weight"].shape == (3, 3, 3, 2, 3, 4)
    assert layer.params["weight"].dtype == np.float32
    limit = np.sqrt(6 / (3 * 2 * 3))  # He's for one position's inputs, not for all positions'
    assert 0.9 * limit < np.abs(layer.params["weight"]).max() <= limit
    assert layer.params["bias"].shape == (3, 3, 4)
