import numpy as np
import pytest
from checking import SIZES, agrees, check_gradients, normal, rejects, same_bits

from lec7 import _cpu, reference

REDUCTIONS = ("mean", "sum", "none")
LOSSES = ("binary_cross_entropy", "mean_squared_error")


def forward(name):
    return lambda ops, x: (getattr(ops, f"{name}_forward")(x),)


def backward(name):
    return lambda ops, dy, y: (getattr(ops, f"{name}_backward")(dy, y),)


def cross_entropy(**parameters):
    def run(ops, logits, labels, class_weight, dy):
        options = {**parameters, "class_weight": class_weight}
        loss, saved = ops.softmax_cross_entropy_forward(logits, labels, **options)
        return loss, ops.softmax_cross_entropy_backward(dy, logits, labels, saved, **options)

    return run


def loss_and_gradient(name, reduction):
    def run(ops, x, targets, dy):
        loss = getattr(ops, f"{name}_forward")(x, targets, reduction=reduction)
        return loss, getattr(ops, f"{name}_backward")(dy, x, targets, reduction=reduction)

    return run


def upstream(rng, shape, reduction):
    return np.asarray(normal(rng, *(shape if reduction == "none" else ())))


def test_softmax_worked_examples():
    x = np.log(np.array([[1.0, 2.0, 5.0]]))
    y = reference.softmax_forward(x)
    np.testing.assert_allclose(y, [[0.125, 0.25, 0.625]], rtol=1e-15)
    np.testing.assert_allclose(reference.log_softmax_forward(x), np.log(y), rtol=1e-15)
    dy = np.array([[8.0, 0.0, 0.0]])  # sum dy y = 1
    np.testing.assert_allclose(reference.softmax_backward(dy, y), [[0.875, -0.25, -0.625]], rtol=1e-15)
    np.testing.assert_allclose(reference.log_softmax_backward(dy, np.log(y)), [[7, -2, -5]], rtol=1e-14)


def test_cross_entropy_worked_examples():
    logits = np.log(np.array([[1.0, 3.0], [3.0, 1.0], [1.0, 1.0]]))
    labels = np.array([1, 1, 0])
    forward, backward = reference.softmax_cross_entropy_forward, reference.softmax_cross_entropy_backward
    rows = -np.log([0.75, 0.25, 0.5])
    loss, saved = forward(logits, labels, reduction="none")
    np.testing.assert_allclose(loss, rows, rtol=1e-14)
    np.testing.assert_allclose(saved, np.log([4, 4, 2]), rtol=1e-14)
    np.testing.assert_allclose(forward(logits, labels, reduction="sum")[0], rows.sum(), rtol=1e-14)
    np.testing.assert_allclose(forward(logits, labels)[0], rows.mean(), rtol=1e-14)
    weight = np.array([2.0, 0.5])
    weighted = (0.5 * rows[0] + 0.5 * rows[1] + 2 * rows[2]) / 3
    np.testing.assert_allclose(forward(logits, labels, class_weight=weight)[0], weighted, rtol=1e-14)
    np.testing.assert_allclose(forward(logits, labels, ignore_index=0)[0], rows[:2].mean(), rtol=1e-14)
    smooth = 0.9 * rows[:1] - 0.1 * np.log(
        [0.25]
    )  # label smoothing 0.2: 0.9 of the label, 0.1 of the other class
    np.testing.assert_allclose(forward(logits[:1], labels[:1], label_smoothing=0.2)[0], smooth[0], rtol=1e-14)
    dlogits = backward(3.0, logits, labels, saved)
    np.testing.assert_allclose(dlogits, [[0.25, -0.25], [0.75, -0.75], [-0.5, 0.5]], rtol=1e-14)


def test_loss_worked_examples():
    x, targets = np.array([0.0, np.log(3.0)]), np.array([1.0, 0.0])
    loss = reference.binary_cross_entropy_forward(x, targets, reduction="none")
    np.testing.assert_allclose(loss, np.log([2, 4]), rtol=1e-15)
    np.testing.assert_allclose(
        reference.binary_cross_entropy_backward(2.0, x, targets), [-0.5, 0.75], rtol=1e-15
    )
    x, targets = np.array([1.0, 3.0]), np.array([0.0, 1.0])
    assert reference.mean_squared_error_forward(x, targets) == 2.5
    np.testing.assert_array_equal(reference.mean_squared_error_backward(2.0, x, targets), [2, 4])


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_gradients(name, rng):
    forward, backward = getattr(reference, f"{name}_forward"), getattr(reference, f"{name}_backward")
    check_gradients(forward, lambda dy, x: backward(dy, forward(x)), rng.standard_normal((2, 3, 5)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "parameters",
    [{}, {"ignore_index": 2}, {"label_smoothing": 0.3}, {"ignore_index": -1, "label_smoothing": 0.1}],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_gradients(parameters, reduction, weighted, rng):
    labels = np.array([[0, 2, 4], [1, 2, 3]])
    if parameters.get("ignore_index") == -1:
        labels[0, 1] = -1
    options = {
        **parameters,
        "reduction": reduction,
        "class_weight": rng.uniform(0.5, 2, 5) if weighted else None,
    }

    def forward(logits):
        return reference.softmax_cross_entropy_forward(logits, labels, **options)[0]

    def backward(dy, logits):
        saved = reference.softmax_cross_entropy_forward(logits, labels, **options)[1]
        return reference.softmax_cross_entropy_backward(dy, logits, labels, saved, **options)

    check_gradients(forward, backward, rng.standard_normal((2, 3, 5)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_gradients(name, reduction, rng):
    targets = rng.uniform(0, 1, (3, 4))
    run = loss_and_gradient(name, reduction)
    check_gradients(
        lambda x: run(reference, x, targets, np.zeros((3, 4) if reduction == "none" else ()))[0],
        lambda dy, x: run(reference, x, targets, dy)[1],
        rng.standard_normal((3, 4)),
    )


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_agrees(name, backend, rng):
    for shape in ((0, 5), (2, 3, 5), (1009,), *((3, k) for k in SIZES), *((n, 3) for n in SIZES)):
        x, dy = 3 * normal(rng, *shape), normal(rng, *shape)
        (y,) = forward(name)(reference, x)
        agrees(name, backend, forward(name), x)
        agrees("softmax_backward", backend, backward(name), dy, y, floor=1)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_extreme_rows_agrees(name, backend, rng):
    x = normal(rng, 6, 21)
    x[0] *= 30
    x[1] += 1e4
    x[2] -= 1e4
    x[3, 5:] = -np.inf
    x[4, 7] = 3e38
    x[5] = -3e38
    agrees(name, backend, forward(name), x)
    agrees("softmax_backward", backend, backward(name), normal(rng, 6, 21), forward(name)(reference, x)[0])


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_nothing_is_nan(name, backend):
    x = np.array([[-np.inf] * 9, [np.nan] + [0.0] * 8, [1.0] * 9], np.float32)
    for ops in (reference, backend):
        y = getattr(ops, f"{name}_forward")(x)
        np.testing.assert_array_equal(np.isnan(y), [[True] * 9, [True] * 9, [False] * 9])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "parameters", [{}, {"ignore_index": -100}, {"ignore_index": 1, "label_smoothing": 0.1}]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_agrees(reduction, parameters, weighted, backend, rng):
    run = cross_entropy(reduction=reduction, **parameters)
    for shape in ((1, 2), (7, 1), (0, 4), (2, 3, 5), *((5, k) for k in SIZES), (37, 65)):
        labels = rng.integers(0, shape[-1], shape[:-1], np.int32 if weighted else np.int64)
        if parameters.get("ignore_index") == -100:
            labels[rng.random(labels.shape) < 0.3] = -100
        class_weight = rng.uniform(0.5, 2, shape[-1]).astype(np.float32) if weighted else None
        dy = upstream(rng, shape[:-1], reduction)
        floor = 2 * np.abs(dy).max(initial=0) if shape[-1] == 1 else 0  # one class: all terms cancel
        logits = 3 * normal(rng, *shape)
        agrees("softmax_cross_entropy", backend, run, logits, labels, class_weight, dy, floor=floor)


def test_cross_entropy_of_extreme_logits_agrees(backend, rng):
    logits = normal(rng, 5, 19)
    logits[0] *= 300
    logits[1] += 1e4
    logits[2, 3:] = -np.inf  # impossible classes cost nothing
    logits[3, 0] = -np.inf  # an impossible label costs infinity
    labels = np.array([4, 5, 1, 0, 3])
    for reduction in REDUCTIONS:
        dy = upstream(rng, (5,), reduction)
        agrees("softmax_cross_entropy", backend, cross_entropy(reduction=reduction), logits, labels, None, dy)


def test_cross_entropy_ignores_rows_whatever_they_hold(backend, rng):
    logits = normal(rng, 3, 10)
    logits[1] = np.nan
    labels = np.array([3, -1, 4])
    for ops in (reference, backend):
        loss, saved = ops.softmax_cross_entropy_forward(logits, labels, ignore_index=-1)
        dlogits = ops.softmax_cross_entropy_backward(1.0, logits, labels, saved, ignore_index=-1)
        kept, _ = reference.softmax_cross_entropy_forward(logits[::2], labels[::2])
        np.testing.assert_allclose(loss, kept, rtol=1e-6)
        np.testing.assert_array_equal(dlogits[1], np.zeros(10))
        assert np.isfinite(dlogits).all()


def test_cross_entropy_over_nothing_is_zero(backend, rng):
    logits, labels = normal(rng, 4, 3), np.full(4, -1)
    for ops in (reference, backend):
        for rows in (4, 0):
            loss, saved = ops.softmax_cross_entropy_forward(logits[:rows], labels[:rows], ignore_index=-1)
            assert loss == 0
            dlogits = ops.softmax_cross_entropy_backward(
                1.0, logits[:rows], labels[:rows], saved, ignore_index=-1
            )
            np.testing.assert_array_equal(dlogits, np.zeros((rows, 3)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_agrees(name, reduction, backend, rng):
    run = loss_and_gradient(name, reduction)
    for shape in ((), (0,), (0, 3), (2, 3, 5), *((n,) for n in SIZES), (2003,)):
        targets = np.asarray(rng.uniform(0, 1, shape), np.float32)
        agrees(
            name, backend, run, np.asarray(3 * normal(rng, *shape)), targets, upstream(rng, shape, reduction)
        )


def test_binary_cross_entropy_of_extreme_logits_agrees(backend, rng):
    x = np.array([-1e4, -100, -20, -1e-6, 0, 1e-6, 20, 100, 1e4] * 2, np.float32)
    targets = np.repeat(np.array([0, 1], np.float32), 9)
    agrees(
        "binary_cross_entropy",
        backend,
        loss_and_gradient("binary_cross_entropy", "none"),
        x,
        targets,
        normal(rng, 18),
    )


def test_losses_accept_a_number_as_dy(backend, rng):
    x, targets, labels = (
        normal(rng, 4, 3),
        rng.uniform(0, 1, (4, 3)).astype(np.float32),
        np.array([0, 1, 2, 0]),
    )
    _, saved = backend.softmax_cross_entropy_forward(x, labels)
    for dy in (2, 2.0, np.float32(2), np.float64(2), np.array(2, np.float32)):
        for result, expected in (
            (
                backend.softmax_cross_entropy_backward(dy, x, labels, saved),
                backend.softmax_cross_entropy_backward(np.array(2, np.float32), x, labels, saved),
            ),
            *(
                (
                    getattr(backend, f"{name}_backward")(dy, x, targets),
                    getattr(reference, f"{name}_backward")(2.0, x, targets),
                )
                for name in LOSSES
            ),
        ):
            assert result.dtype == np.float32
            np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_softmax_bits_do_not_depend_on_threads(backend, rng):
    for shape in ((1500, 97), (3, 70_001)):
        for name in ("softmax", "log_softmax"):
            same_bits(backend, forward(name), normal(rng, *shape))
            same_bits(
                backend, backward(name), normal(rng, *shape), forward(name)(backend, normal(rng, *shape))[0]
            )
        labels = rng.integers(0, shape[1], shape[0])
        weight = rng.uniform(0.5, 2, shape[1]).astype(np.float32)
        run = cross_entropy(reduction="mean", label_smoothing=0.1)
        same_bits(backend, run, normal(rng, *shape), labels, weight, np.float32(0.7))
    for name in LOSSES:
        x, targets = normal(rng, 300_001), rng.uniform(0, 1, 300_001).astype(np.float32)
        same_bits(backend, loss_and_gradient(name, "mean"), x, targets, np.float32(0.7))


def test_softmax_rejects():
    x = np.zeros((2, 3), np.float32)
    for name in ("softmax", "log_softmax"):
        forward, backward = getattr(_cpu, f"{name}_forward"), getattr(_cpu, f"{name}_backward")
        rejects(ValueError, (name, (2, 0)), forward, x[:, :0])
        rejects(ValueError, (name, ()), forward, x[0, 0])
        rejects(TypeError, (name, "int64", (2, 3)), forward, x.astype(int))
        rejects(ValueError, (name, (1, 3), (2, 3)), backward, x[:1], x)
        rejects(TypeError, (name, "float64", (2, 3)), backward, x.astype(np.float64), x)


def test_cross_entropy_rejects():
    op = "softmax_cross_entropy"
    logits, labels, lse = np.zeros((2, 3), np.float32), np.array([0, 2]), np.zeros(2, np.float32)
    for ops in (_cpu, reference):

        def forward(*args, ops=ops, **kwargs):
            return ops.softmax_cross_entropy_forward(*args, **kwargs)

        def backward(*args, ops=ops, **kwargs):
            return ops.softmax_cross_entropy_backward(*args, **kwargs)

        for bad in (-1, 3, 2**31 - 1, -(2**31)):
            rejects(ValueError, (op, bad, "(1,)"), forward, logits, np.array([0, bad]))
            rejects(ValueError, (op, bad, "(1,)"), backward, 1.0, logits, np.array([0, bad]), lse)
        rejects(ValueError, (op, 2**40, "(1,)"), forward, logits, np.array([0, 2**40]))
        rejects(ValueError, (op, -1, "(1,)"), forward, logits, np.array([0, -1]), ignore_index=-2)
        rejects(TypeError, (op, "float64", (2,)), forward, logits, np.array([0, np.nan]))
        rejects(TypeError, (op, "uint8", (2,)), forward, logits, labels.astype(np.uint8))
        rejects(TypeError, (op, "bool", (2,)), forward, logits, labels.astype(bool))
        rejects(ValueError, (op, (2, 3), (1,)), forward, logits, labels[:1])
        rejects(ValueError, (op, (2, 3), (2, 1)), forward, logits, labels[:, None])
        rejects(ValueError, (op, (1,)), forward, logits, labels, class_weight=np.ones(1, np.float32))
        rejects(ValueError, (op, "max"), forward, logits, labels, reduction="max")
        for smoothing in (-0.1, 1.1, np.nan):
            rejects(ValueError, (op, "label_smoothing"), forward, logits, labels, label_smoothing=smoothing)
        rejects(ValueError, (op, (2,)), backward, np.zeros(2, np.float32), logits, labels, lse)
        rejects(ValueError, (op, "dy"), backward, 1.0, logits, labels, lse, reduction="none")
        rejects(ValueError, (op, (1,)), backward, 1.0, logits, labels, lse[:1])
    rejects(ValueError, (op, (2, 0)), _cpu.softmax_cross_entropy_forward, logits[:, :0], labels)
    wrong = np.ones(3)
    rejects(
        TypeError,
        (op, "float64", (3,)),
        _cpu.softmax_cross_entropy_forward,
        logits,
        labels,
        class_weight=wrong,
    )
    rejects(
        TypeError,
        (op, "float64", (2,)),
        _cpu.softmax_cross_entropy_backward,
        1.0,
        logits,
        labels,
        lse.astype(np.float64),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_loss_rejects(name):
    x = np.zeros((2, 3), np.float32)
    for ops in (_cpu, reference):
        forward, backward = getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")
        rejects(ValueError, (name, (2, 3), (1, 3)), forward, x, x[:1])
        rejects(ValueError, (name, "max"), forward, x, x, reduction="max")
        rejects(ValueError, (name, (1, 3)), backward, x[:1], x, x, reduction="none")
        rejects(ValueError, (name, (2, 3)), backward, x, x, x)
    forward = getattr(_cpu, f"{name}_forward")
    rejects(TypeError, (name, "float64", (2, 3)), forward, x, x.astype(np.float64))
    rejects(TypeError, (name, "int64", (2, 3)), forward, x, x.astype(np.int64))


def test_binary_cross_entropy_rejects_targets():
    x = np.zeros((2, 3), np.float32)
    for bad in (-0.25, 1.5, np.nan, np.inf):
        targets = np.zeros((2, 3), np.float32)
        targets[1, 2] = bad
        for ops in (_cpu, reference):
            rejects(
                ValueError,
                ("binary_cross_entropy", bad, "(1, 2)"),
                ops.binary_cross_entropy_forward,
                x,
                targets,
            )
