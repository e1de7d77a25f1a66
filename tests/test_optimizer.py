import math

import numpy as np
import pytest
from checking import SIZES, agrees, normal, rejects, same_bits

from lec7 import _cpu, reference

SHAPES = ((), (0,), (2, 3, 5), *((n,) for n in SIZES), (1009,))

SGD = ({}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "grad_scale": 0.5})
RMSPROP = ({}, {"decay": 0.9, "eps": 1e-3, "weight_decay": 0.01, "grad_scale": 0.5})
ADAM = (
    {},
    {"beta1": 0.8, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.01, "grad_scale": 0.5},
    {"weight_decay": 0.1, "decoupled": True},
)
UPDATES = [
    *(("sgd", 1, options) for options in SGD),
    ("sgd", 0, {}),
    ("sgd", 0, {"weight_decay": 0.1, "grad_scale": 0.25}),
    *(("rmsprop", 1, options) for options in RMSPROP),
    *(("adam", 2, options) for options in ADAM),
]


def three_steps(name, options):
    """Parameters and optimizer state after three updates, with gradients that change."""

    def run(ops, params, grads, *state):
        arrays = [a.copy() for a in (params, *state)]
        update = getattr(ops, f"{name}_update_")
        for step in (1, 2, 3):
            extra = {"step": step} if name == "adam" else {}
            g = grads * grads.dtype.type(step)
            assert update(arrays[0], np.asarray(g), *arrays[1:], lr=0.01, **extra, **options) is None
        return tuple(arrays)

    return run


def one(value):
    return np.array([value])


def test_sgd_worked_examples():
    params, grads = one(1.0), one(2.0)
    reference.sgd_update_(params, grads, lr=0.1)
    np.testing.assert_allclose(params, [0.8], rtol=1e-15)
    params = one(1.0)
    reference.sgd_update_(params, grads, lr=0.1, grad_scale=0.5, weight_decay=3.0)
    np.testing.assert_allclose(params, [0.6], rtol=1e-15)  # g = 1 + 3
    for nesterov, expected in ((False, 0.6), (True, 0.6)):
        params, buffer = one(1.0), one(4.0)
        reference.sgd_update_(params, grads, buffer, lr=0.1, momentum=0.5, nesterov=nesterov)
        np.testing.assert_array_equal(buffer, [4])  # 0.5 * 4 + 2
        np.testing.assert_allclose(params, [expected], rtol=1e-15)
    params, buffer = one(1.0), one(0.0)
    reference.sgd_update_(params, grads, buffer, lr=0.1, momentum=0.5, nesterov=True)
    np.testing.assert_allclose(params, [0.7], rtol=1e-15)  # 2 + 0.5 * 2


def test_rmsprop_worked_example():
    params, square = one(1.0), one(16.0)
    reference.rmsprop_update_(params, one(2.0), square, lr=0.5, decay=0.75, eps=0.0)
    np.testing.assert_allclose(square, [13.0], rtol=1e-15)  # 0.75 * 16 + 0.25 * 4
    np.testing.assert_allclose(params, [1 - 1 / math.sqrt(13)], rtol=1e-15)


def test_adam_worked_examples():
    for decoupled, decayed in ((False, 1.0), (True, 0.9)):
        params, mean, variance = one(1.0), one(0.0), one(0.0)
        grads = one(2.0)
        options = {"lr": 0.1, "weight_decay": 1.0 if decoupled else 0.0, "decoupled": decoupled, "eps": 0.0}
        reference.adam_update_(params, grads, mean, variance, step=1, **options)
        np.testing.assert_allclose([mean[0], variance[0]], [0.2, 0.004], rtol=1e-13)
        np.testing.assert_allclose(
            params, [decayed - 0.1], rtol=1e-13
        )  # the first step is lr, whatever the gradient
    params, mean, variance = one(1.0), one(1.0), one(4.0)
    reference.adam_update_(params, one(3.0), mean, variance, lr=0.1, step=2, beta1=0.5, beta2=0.5, eps=1.0)
    np.testing.assert_allclose([mean[0], variance[0]], [2, 6.5], rtol=1e-15)
    np.testing.assert_allclose(params, [1 - 0.1 * (2 / 0.75) / (math.sqrt(6.5 / 0.75) + 1)], rtol=1e-14)


def test_global_norm_and_scale_worked_examples():
    assert reference.global_norm(np.array([[3.0, 0.0], [0.0, -4.0]], np.float32)) == 5.0
    x = np.array([1.0, -2.0])
    reference.scale_(x, 0.5)
    np.testing.assert_array_equal(x, [0.5, -1])


@pytest.mark.parametrize(("name", "count", "options"), UPDATES, ids=str)
def test_update_agrees(name, count, options, backend, rng):
    for shape in SHAPES:
        state = [np.asarray(np.abs(normal(rng, *shape))) for _ in range(count)]
        params, grads = np.asarray(normal(rng, *shape)), np.asarray(normal(rng, *shape))
        agrees(name, backend, three_steps(name, options), params, grads, *state)


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_update_of_zero_gradients_agrees(name, backend, rng):
    zero = np.zeros(37, np.float32)
    count = 2 if name == "adam" else 1
    agrees(name, backend, three_steps(name, {}), normal(rng, 37), zero, *(zero for _ in range(count)))


def test_adam_late_in_training_agrees(backend, rng):
    def run(ops, params, grads, mean, variance):
        params, mean, variance = params.copy(), mean.copy(), variance.copy()
        ops.adam_update_(params, grads, mean, variance, lr=1e-3, step=2_000_000_000)
        return params, mean, variance

    agrees("adam", backend, run, *(normal(rng, 33) for _ in range(3)), np.abs(normal(rng, 33)))


def test_global_norm_agrees(backend, rng):
    for shape in SHAPES:
        agrees("global_norm", backend, lambda ops, x: (ops.global_norm(x),), np.asarray(normal(rng, *shape)))
    assert isinstance(_cpu.global_norm(normal(rng, 3)), float)


def test_global_norm_accumulates_in_double(backend):
    # float32 sums would lose the small terms, and float32 squares would overflow and vanish.
    x = np.full(1_000_003, 1e-3, np.float32)
    x[0] = 1e3
    exact = math.sqrt(math.fsum([float(x[0]) ** 2] + [float(x[1]) ** 2] * (x.size - 1)))
    assert backend.global_norm(x) == pytest.approx(exact, rel=1e-12)
    for value in (1e30, 1e-30):
        x = np.full(100, value, np.float32)
        assert backend.global_norm(x) == pytest.approx(10 * float(x[0]), rel=1e-12)
    assert math.isnan(backend.global_norm(np.array([1, np.nan], np.float32)))
    assert math.isinf(backend.global_norm(np.array([1, -np.inf], np.float32)))


def test_scale_agrees(backend, rng):
    def run(ops, x):
        x = x.copy()
        assert ops.scale_(x, 0.3) is None
        return (x,)

    for shape in SHAPES:
        agrees("scale", backend, run, np.asarray(normal(rng, *shape)))


def test_update_of_a_range_leaves_the_rest(backend, rng):
    # Parameters live in one buffer; a frozen part is a range left out.
    buffer, grads = normal(rng, 60), normal(rng, 60)
    before = buffer.copy()
    backend.sgd_update_(buffer[7:40], grads[7:40], lr=0.1)
    np.testing.assert_array_equal(buffer[:7], before[:7])
    np.testing.assert_array_equal(buffer[40:], before[40:])
    np.testing.assert_allclose(buffer[7:40], before[7:40] - 0.1 * grads[7:40], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "count", "options"), UPDATES, ids=str)
def test_update_bits_do_not_depend_on_threads(name, count, options, backend, rng):
    arrays = [
        normal(rng, 300_007),
        normal(rng, 300_007),
        *(np.abs(normal(rng, 300_007)) for _ in range(count)),
    ]
    same_bits(backend, three_steps(name, options), *arrays)


def test_global_norm_bits_do_not_depend_on_threads(backend, rng):
    for size in (300_007, 1_000_003):
        same_bits(backend, lambda ops, x: (ops.global_norm(x),), normal(rng, size))


@pytest.mark.parametrize(("name", "count"), [("sgd", 1), ("rmsprop", 1), ("adam", 2)])
def test_update_rejects(name, count):
    extra = {
        "lr": 0.1,
        **({"step": 1} if name == "adam" else {}),
        **({"momentum": 0.5} if name == "sgd" else {}),
    }
    op = f"{name}_update_"
    good = [np.zeros((4, 6), np.float32) for _ in range(2 + count)]
    for i in range(len(good)):
        for shape in ((1, 6), (6, 4), (24,), (4, 6, 1)):
            arrays = [*good[:i], np.zeros(shape, np.float32), *good[i + 1 :]]
            for ops in (_cpu, reference):
                rejects(ValueError, (op, shape, (4, 6)), getattr(ops, op), *arrays, **extra)
        arrays = [*good[:i], np.zeros((4, 6)), *good[i + 1 :]]
        rejects(TypeError, (op, "float64", (4, 6)), getattr(_cpu, op), *arrays, **extra)
    for i in [0, *range(2, len(good))]:  # what changes in place cannot be a copy
        read_only = np.zeros((4, 6), np.float32)
        read_only.flags.writeable = False
        for wrong in (np.zeros((4, 12), np.float32)[:, ::2], np.zeros((6, 4), np.float32).T, read_only):
            arrays = [*good[:i], wrong, *good[i + 1 :]]
            rejects(ValueError, (op, (4, 6)), getattr(_cpu, op), *arrays, **extra)
        arrays = [*good[:i], [[0.0] * 6] * 4, *good[i + 1 :]]
        rejects(TypeError, (op,), getattr(_cpu, op), *arrays, **extra)
    for bad in ({"lr": np.nan}, {"lr": np.inf}, {"weight_decay": np.nan}, {"grad_scale": -np.inf}):
        rejects(ValueError, (op, next(iter(bad))), getattr(_cpu, op), *good, **{**extra, **bad})


def test_update_rejects_parameters():
    x, y, z, w = (np.zeros(5, np.float32) for _ in range(4))
    for ops in (_cpu, reference):
        rejects(ValueError, ("sgd_update_", "momentum"), ops.sgd_update_, x, y, lr=0.1, momentum=0.5)
        rejects(ValueError, ("sgd_update_", "nesterov"), ops.sgd_update_, x, y, z, lr=0.1, nesterov=True)
        for step in (0, -1):
            rejects(ValueError, ("adam_update_", "step"), ops.adam_update_, x, y, z, w, lr=0.1, step=step)
    for bad in ({"beta1": 1.0}, {"beta1": -0.1}, {"beta2": 1.0}, {"beta2": np.nan}, {"eps": -1.0}):
        rejects(
            ValueError,
            ("adam_update_", next(iter(bad))),
            _cpu.adam_update_,
            x,
            y,
            z,
            w,
            lr=0.1,
            step=1,
            **bad,
        )
    for bad in ({"decay": 1.5}, {"decay": -0.1}, {"eps": -1.0}):
        rejects(
            ValueError, ("rmsprop_update_", next(iter(bad))), _cpu.rmsprop_update_, x, y, z, lr=0.1, **bad
        )
    rejects(TypeError, (), _cpu.adam_update_, x, y, z, w, lr=0.1, step=1.5)
    rejects(TypeError, ("global_norm", "int32", (5,)), _cpu.global_norm, x.astype(np.int32))
    rejects(TypeError, ("scale_", "int32", (5,)), _cpu.scale_, x.astype(np.int32), 2.0)
    rejects(ValueError, ("scale_", (5,)), _cpu.scale_, np.zeros(10, np.float32)[::2], 2.0)


# --- numbers that lie on a GPU ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count", "options"), UPDATES, ids=str)
def test_update_reads_numbers_on_the_device(name, count, options, device, rng):
    """Those of the host give the same bits, whichever of them are there."""
    arrays = [normal(rng, 1009), normal(rng, 1009), *(np.abs(normal(rng, 1009)) for _ in range(count))]
    for step in (1, 3, 1000, 2_000_000_000):
        numbers = {"lr": 0.0123, "grad_scale": 0.7, **({"step": step} if name == "adam" else {})}
        results = []
        for there in ((), ("lr",), ("grad_scale",), ("step",), tuple(numbers)):
            given = {k: np.array(v) if k in there else v for k, v in numbers.items()}
            copies = [a.copy() for a in arrays]
            getattr(device, f"{name}_update_")(*copies, **{**options, **given})
            results.append(np.concatenate(copies).tobytes())
        assert len(set(results)) == 1


def test_adam_on_the_device_knows_its_step(device, rng):
    """The corrections of a late step, in double: float32 would lose them."""
    arrays = [np.abs(normal(rng, 5)) for _ in range(4)]
    for step in (1, 2, 10_000, 2**40):
        expected, got = ([a.copy() for a in arrays] for _ in range(2))
        reference.adam_update_(*expected, lr=0.1, step=step)
        device.adam_update_(*got, lr=np.array(0.1), step=np.array(step))
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)


def test_clip_scale_stays_on_the_device(cuda):
    for norm, limit, scale in ((0.0, 1.0, 1.0), (2.0, 2.0, 1.0), (8.0, 2.0, 0.25), (np.inf, 1.0, 0.0)):
        assert float(cuda._clip_scale(cuda.to_device(np.array(norm)), limit)) == scale
    assert math.isnan(float(cuda._clip_scale(cuda.to_device(np.array(np.nan)), 1.0)))
    with pytest.raises(TypeError, match="clip_scale"):
        cuda._clip_scale(2.0, 1.0)


def test_numbers_on_the_device_are_of_one_kind(cuda):
    x = [cuda.to_device(np.zeros(3, np.float32)) for _ in range(4)]
    for bad, error in (
        ({"lr": np.float32(1)}, "lr must be float64 on a GPU; got dtype float32"),
        ({"lr": np.zeros(1)}, r"lr is a number, or an array of shape \(\); lr = \(1,\)"),
        ({"step": np.float64(1)}, "step must be int64 on a GPU; got dtype float64"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"adam_update_: {error}"):
            cuda.adam_update_(*x, **{"lr": 0.1, "step": 1, **{k: cuda.to_device(v) for k, v in bad.items()}})
    with pytest.raises(TypeError, match="adam_update_: lr is a number; got 'fast'"):
        cuda.adam_update_(*x, lr="fast", step=1)
