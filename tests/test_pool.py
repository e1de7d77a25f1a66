import numpy as np
import pytest
from checking import SIZES, agrees, check_gradients, normal, rejects, same_bits

from lec7 import _cpu, reference

KINDS = ("max", "avg", "sum")

# Shape of x, parameters.
CASES = [
    # 1d
    ((2, 11, 3), {"kernel_size": 3}),
    ((1, 1, 1), {"kernel_size": 1}),
    ((0, 6, 3), {"kernel_size": 2}),
    ((2, 12, 5), {"kernel_size": 4, "stride": 1, "padding": ((3, 1),)}),
    ((2, 10, 3), {"kernel_size": 3, "stride": 4, "ceil": True}),
    ((2, 9, 3), {"kernel_size": 2, "stride": 2, "padding": 1, "ceil": True}),
    # 2d
    ((2, 6, 8, 3), {"kernel_size": 2}),
    ((2, 13, 13, 5), {"kernel_size": 3, "stride": 2}),
    ((1, 7, 8, 4), {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 1)}),
    ((2, 7, 6, 3), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((2, 7, 6, 3), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil": True}),
    ((1, 8, 6, 3), {"kernel_size": 3, "stride": 1, "padding": "same"}),
    ((1, 8, 7, 3), {"kernel_size": 2, "stride": 2, "padding": "same_lower"}),
    ((1, 9, 9, 2), {"kernel_size": 3, "stride": 2, "padding": ((0, 1), (2, 0)), "dilation": 2, "ceil": True}),
    ((1, 5, 5, 2), {"kernel_size": 2, "stride": 3, "padding": 2, "dilation": 4}),  # corners see padding only
    ((1, 4, 4, 2), {"kernel_size": 4, "stride": 4}),  # global
    ((0, 4, 4, 2), {"kernel_size": 2, "stride": 1}),
    ((1, 5, 7, 3), {"kernel_size": (1, 5), "stride": 1}),
    ((1, 3, 3, 2), {"kernel_size": 5, "stride": 5, "padding": 1}),  # a window larger than the image
    ((2, 69, 71, 5), {"kernel_size": 3, "stride": 2}),  # many bands of cells, and of windows
    *(((2, 5, 6, n), {"kernel_size": 2, "stride": 1, "padding": 1}) for n in SIZES),
    *(((2, 3, n, 3), {"kernel_size": 3, "stride": 2, "padding": 1}) for n in SIZES),
    # 3d
    ((2, 4, 5, 6, 3), {"kernel_size": 2}),
    ((1, 5, 4, 6, 2), {"kernel_size": (3, 2, 2), "stride": (2, 1, 2), "padding": 1, "ceil": True}),
]


def function(ops, kind, rank, direction):
    return getattr(ops, f"{kind}_pool{rank}d_{direction}")


def forward_and_backward(kind, parameters):
    def run(ops, x, dy):
        forward = function(ops, kind, x.ndim - 2, "forward")
        backward = function(ops, kind, x.ndim - 2, "backward")
        if kind == "max":
            y, argmax = forward(x, **parameters)
            return y, argmax, backward(dy, argmax, x_shape=x.shape)
        return forward(x, **parameters), backward(dy, x_shape=x.shape, **parameters)

    return run


def operands(rng, x_shape, parameters):
    x = normal(rng, *x_shape)
    return x, normal(rng, *function(reference, "sum", x.ndim - 2, "forward")(x, **parameters).shape)


def test_pool_worked_examples():
    x = np.array([[1.0, 2, 3, 4], [5, 9, 9, 6], [7, 8, 0, 0]]).reshape(1, 3, 4, 1)
    y, argmax = reference.max_pool2d_forward(x, kernel_size=2, stride=1)
    np.testing.assert_array_equal(y[0, :, :, 0], [[9, 9, 9], [9, 9, 9]])
    np.testing.assert_array_equal(argmax[0, :, :, 0], [[5, 5, 6], [5, 5, 6]])  # the first of equals
    dy = np.arange(1.0, 7).reshape(1, 2, 3, 1)
    dx = reference.max_pool2d_backward(dy, argmax, x_shape=x.shape)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 0, 0, 0], [0, 12, 9, 0], [0, 0, 0, 0]])
    y = reference.sum_pool2d_forward(x, kernel_size=(3, 2))
    np.testing.assert_array_equal(y[0, :, :, 0], [[32, 22]])
    y = reference.avg_pool2d_forward(x, kernel_size=2)
    np.testing.assert_array_equal(y[0, :, :, 0], [[17 / 4, 22 / 4]])
    signal = np.array([2.0, 4, 9]).reshape(1, 3, 1)
    average = {"kernel_size": 2, "stride": 2, "padding": 1}
    np.testing.assert_array_equal(reference.avg_pool1d_forward(signal, **average).ravel(), [2, 6.5])
    counted = reference.avg_pool1d_forward(signal, **average, count_padding=True)
    np.testing.assert_array_equal(counted.ravel(), [1, 6.5])
    dx = reference.avg_pool1d_backward(np.array([4.0, 6]).reshape(1, 2, 1), x_shape=(1, 3, 1), **average)
    np.testing.assert_array_equal(dx.ravel(), [4, 3, 3])


def test_pool_rounds_up_unless_the_window_starts_in_the_padding():
    signal = np.array([1.0, 2, 3, 4]).reshape(1, 4, 1)

    def sizes(**parameters):
        return reference.avg_pool1d_forward(signal, ceil=True, **parameters).ravel().tolist()

    assert sizes(kernel_size=3, stride=2) == [2, 3.5]  # the last window reaches beyond x
    assert sizes(kernel_size=2, stride=3, padding=1) == [1, 3.5]
    assert sizes(kernel_size=2, stride=5, padding=1) == [1]  # a second would start in the padding at the end
    assert sizes(kernel_size=3, stride=3, padding=1, count_padding=True) == [1, 7 / 3]
    assert sizes(kernel_size=3, stride=2, padding=((0, 1),), count_padding=True) == [2, 7 / 3]
    assert sizes(kernel_size=4, stride=2, padding=((0, 1),), count_padding=True) == [2.5, 7 / 3]


def test_max_pool_of_a_window_without_cells():
    y, argmax = reference.max_pool1d_forward(
        np.ones((1, 2, 1)), kernel_size=2, stride=1, padding=3, dilation=4
    )
    np.testing.assert_array_equal(argmax.ravel(), [1, -1, -1, 0])
    np.testing.assert_array_equal(y.ravel(), [1, -np.inf, -np.inf, 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("x_shape", "parameters"), [case for case in CASES if np.prod(case[0]) < 150], ids=str
)
def test_pool_gradients(kind, x_shape, parameters, rng):
    variants = [{}, {"count_padding": True}] if kind == "avg" else [{}]
    for variant in variants:
        run = forward_and_backward(kind, {**parameters, **variant})
        x, dy = operands(rng, x_shape, parameters)
        if kind == "max" and np.isneginf(run(reference, x, dy)[0]).any():
            continue  # the difference of two infinities says nothing
        check_gradients(
            lambda x, run=run, dy=dy: run(reference, x, dy)[0],
            lambda dy, x, run=run: run(reference, x, dy)[-1],
            x,
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("x_shape", "parameters"), CASES, ids=str)
def test_pool_agrees(kind, x_shape, parameters, backend, rng):
    x, dy = operands(rng, x_shape, parameters)
    agrees(f"{kind}_pool", backend, forward_and_backward(kind, parameters), x, dy)
    if kind == "avg":
        agrees("avg_pool", backend, forward_and_backward(kind, {**parameters, "count_padding": True}), x, dy)


def test_max_pool_of_ties_nan_and_infinity_agrees(backend, rng):
    for channels in (1, 5, 16, 19):
        x = rng.integers(0, 3, (2, 7, 8, channels)).astype(np.float32)
        x[rng.random(x.shape) < 0.1] = np.nan
        x[rng.random(x.shape) < 0.3] = -np.inf
        x[rng.random(x.shape) < 0.1] = np.inf
        for parameters in ({"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}):
            dy = operands(rng, x.shape, parameters)[1]
            agrees("max_pool", backend, forward_and_backward("max", parameters), x, dy)


@pytest.mark.parametrize("kind", KINDS)
def test_pool_bits_do_not_depend_on_threads(kind, backend, rng):
    for x_shape, parameters in (
        ((4, 1000, 17), {"kernel_size": 3, "stride": 2}),
        ((3, 41, 43, 33), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((1, 61, 63, 53), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((1, 12, 20, 21, 8), {"kernel_size": 2, "stride": 1}),
    ):
        same_bits(backend, forward_and_backward(kind, parameters), *operands(rng, x_shape, parameters))


@pytest.mark.parametrize("kind", KINDS)
def test_pool_rejects(kind):
    x, name = np.zeros((2, 6, 6, 3), np.float32), f"{kind}_pool2d"
    huge = 2**62
    wrong = [
        *({"kernel_size": bad} for bad in (0, -1, (2, 0), (2, 2, 2), (2,), 7, huge, 2**63 - 1)),
        *({"kernel_size": 2, "stride": bad} for bad in (0, -1, (1, 0), (1,))),
        *({"kernel_size": 2, "dilation": bad} for bad in (0, -1, 6, huge, 2**63 - 1)),
        *(
            {"kernel_size": 2, "padding": bad}
            for bad in (-1, 2, (1, 2), ((0, 2), (0, 0)), (1,), "full", huge)
        ),
    ]
    for ops in (_cpu, reference):
        forward, backward = function(ops, kind, 2, "forward"), function(ops, kind, 2, "backward")
        for parameters in wrong:
            rejects(ValueError, (name,), forward, x, **parameters)
            if kind != "max":
                dy = np.zeros((2, 3, 3, 3), np.float32)
                rejects(ValueError, (name,), backward, dy, x_shape=x.shape, **parameters)
        for bad in (x[0], x[None]):
            rejects(ValueError, (name, bad.shape), forward, bad, kernel_size=2)
        for bad in (x[:, :0], x[:, :, :0]):
            rejects(ValueError, (name,), forward, bad, kernel_size=1)
        for shape in ((2, 3, 3, 2), (2, 3, 4, 3), (1, 3, 3, 3), (2, 3, 3)):
            dy = np.zeros(shape, np.float32)
            if kind == "max":
                if shape == (2, 3, 4, 3):
                    continue  # any number of windows could have won
                argmax = np.zeros(shape, np.int32)
                rejects(ValueError, (name, shape, x.shape), backward, dy, argmax, x_shape=x.shape)
            else:
                rejects(ValueError, (name, shape), backward, dy, x_shape=x.shape, kernel_size=2)
        for x_shape in ((2, 6, 3), (2, 6, 6, 6, 3), ()):
            dy = np.zeros((2, 3, 3, 3), np.float32)
            rest = (np.zeros(dy.shape, np.int32),) if kind == "max" else ()
            options = {} if kind == "max" else {"kernel_size": 2}
            rejects(ValueError, (name,), backward, dy, *rest, x_shape=x_shape, **options)
    forward, backward = function(_cpu, kind, 2, "forward"), function(_cpu, kind, 2, "backward")
    rejects(TypeError, (name, "int32", x.shape), forward, x.astype(np.int32), kernel_size=2)
    dy = np.zeros((2, 3, 3, 3), np.float32)
    rest = (np.zeros(dy.shape, np.int32),) if kind == "max" else ()
    options = {} if kind == "max" else {"kernel_size": 2}
    for x_shape in ((2, -6, -6, 3), (2, huge, huge, 3), (2, 2**31, 2**31, 3)):
        rejects(ValueError, (name,), backward, dy, *rest, x_shape=x_shape, **options)


def test_max_pool_names_the_first_winner_outside_a_large_image():
    dy, argmax = np.zeros((1, 30, 30, 160), np.float32), np.zeros((1, 30, 30, 160), np.int32)
    argmax[0, 20, 3, 7] = 3600
    argmax[0, 20, 4, 6] = argmax[0, 29, 0, 0] = -2
    for ops in (_cpu, reference):
        wrong = ("max_pool2d", 3600, "(0, 20, 3, 7)")
        rejects(ValueError, wrong, ops.max_pool2d_backward, dy, argmax, x_shape=(1, 60, 60, 160))


def test_max_pool_rejects_winners_outside_the_image():
    dy = np.zeros((2, 3, 3, 3), np.float32)
    for bad in (-2, 36, 2**31 - 1, -(2**31)):
        argmax = np.zeros(dy.shape, np.int32)
        argmax[1, 2, 0, 1] = bad
        for ops in (_cpu, reference):
            rejects(
                ValueError,
                ("max_pool2d", bad, "(1, 2, 0, 1)"),
                ops.max_pool2d_backward,
                dy,
                argmax,
                x_shape=(2, 6, 6, 3),
            )
    for ops in (_cpu, reference):
        wrong = np.zeros(dy.shape, np.float32)
        rejects(TypeError, ("max_pool2d",), ops.max_pool2d_backward, dy, wrong, x_shape=(2, 6, 6, 3))
        wrong = np.zeros((2, 3, 3, 1), np.int32)
        rejects(
            ValueError,
            ("max_pool2d", dy.shape, (2, 3, 3, 1)),
            ops.max_pool2d_backward,
            dy,
            wrong,
            x_shape=(2, 6, 6, 3),
        )
