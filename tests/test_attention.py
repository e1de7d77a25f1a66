import numpy as np
import pytest
from checking import (
    SIZES,
    agrees,
    check_gradients,
    honours_needs,
    near_in_half,
    normal,
    rejects,
    rounded,
    same_bits,
)

from lec7 import _cpu, reference

GRADIENTS = ("dq", "dk", "dv")

# N, heads, Tq, Tk, d, dv
SHAPES = (
    (1, 1, 1, 1, 1, 1),
    (2, 3, 4, 5, 6, 7),
    (1, 2, 5, 5, 8, 8),
    (3, 1, 1, 9, 16, 16),
    (2, 2, 7, 3, 5, 4),
    (1, 1, 33, 35, 17, 19),
    (1, 2, 65, 67, 64, 64),
    (0, 2, 3, 4, 5, 6),
    (2, 2, 1, 130, 32, 32),
    *((1, 2, n, 3, 4, 5) for n in SIZES),
    *((1, 1, 3, n, 4, 5) for n in SIZES),
    *((1, 1, 3, 4, n, 5) for n in SIZES),
    *((1, 1, 3, 4, 5, n) for n in SIZES),
)


HALVES = ("float16", "bfloat16")

# Around the tiles of tensor cores: 64 or 128 queries; 64, 32 or 16 keys; rows of 64, 128 or 256 numbers.
# Then what they do not take: few queries, rows that do not begin at 16 bytes, wide heads.
HALF_SHAPES = (
    (0, 2, 9, 4, 8, 8),
    (1, 1, 5, 1, 8, 8),
    (1, 2, 15, 17, 8, 16),
    (2, 1, 16, 16, 40, 40),
    (1, 1, 17, 15, 64, 64),
    (1, 2, 63, 65, 64, 72),
    (1, 1, 64, 64, 72, 64),
    (1, 1, 65, 129, 128, 128),
    (1, 1, 129, 65, 64, 64),
    (1, 1, 129, 63, 256, 256),
    (1, 1, 65, 33, 8, 136),
    (2, 2, 1, 130, 64, 64),
    (1, 1, 4, 300, 40, 24),
    (1, 2, 3, 5, 7, 9),
    (1, 1, 6, 10, 7, 9),
    (1, 1, 9, 20, 264, 8),
)


def operands(rng, n, heads, queries, keys, d, dv):
    shapes = ((n, heads, queries, d), (n, heads, keys, d), (n, heads, keys, dv), (n, heads, queries, dv))
    return [normal(rng, *shape) for shape in shapes]


def forward_and_backward(**parameters):
    def run(ops, q, k, v, dy, mask, key_lengths):
        options = {**parameters, "mask": mask, "key_lengths": key_lengths}
        y, lse, p = ops.attention_forward(q, k, v, weights=True, **options)
        alone = ops.attention_forward(q, k, v, **options)
        assert len(alone) == 2
        return y, lse, p, *alone, *ops.attention_backward(dy, q, k, v, y, lse=lse, **options)

    return run


def test_attention_worked_example():
    q, k = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    v = np.array([[4.0, 0.0], [8.0, 1.0], [100.0, 100.0]])
    q, k, v = (a[None, None] for a in (q, k, v))
    y, lse, p = reference.attention_forward(q, k, v, scale=np.log(3), key_lengths=np.array([2]), weights=True)
    np.testing.assert_allclose(p[0, 0], [[0.75, 0.25, 0]], rtol=1e-14)
    np.testing.assert_allclose(y[0, 0], [[5, 0.25]], rtol=1e-14)
    np.testing.assert_allclose(lse[0, 0], [np.log(4)], rtol=1e-14)
    keep = np.array([True, True, False])
    bias = np.array([0.0, np.log(3), -np.inf])
    for mask, expected in ((keep, [0.75, 0.25, 0]), (bias, [0.5, 0.5, 0])):
        p = reference.attention_forward(q, k, v, scale=np.log(3), mask=mask, weights=True)[2]
        np.testing.assert_allclose(p[0, 0, 0], expected, rtol=1e-14)
    half = reference.attention_forward(q, q, q)[1]
    np.testing.assert_allclose(half, [[[1 / np.sqrt(2)]]], rtol=1e-14)  # the default scale


def test_attention_causal_lets_the_last_query_see_every_key():
    q, k, v = np.zeros((1, 1, 2, 3)), np.zeros((1, 1, 4, 3)), np.ones((1, 1, 4, 1))
    p = reference.attention_forward(q, k, v, causal=True, weights=True)[2]
    np.testing.assert_allclose(p[0, 0], [[1 / 3, 1 / 3, 1 / 3, 0], [0.25] * 4])
    y, lse, p = reference.attention_forward(k, q, q, causal=True, weights=True)  # more queries than keys
    np.testing.assert_allclose(p[0, 0], [[0, 0], [0, 0], [1, 0], [0.5, 0.5]])
    np.testing.assert_array_equal(lse[0, 0, :2], [-np.inf] * 2)
    np.testing.assert_array_equal(y[0, 0, :2], np.zeros((2, 3)))


def masks(rng, n, heads, queries, keys):
    yield None
    yield rng.random((queries, keys)) < 0.6
    yield rng.random((n, 1, 1, keys)) < 0.6
    yield rng.random((heads, 1, keys)) < 0.6
    yield rng.random(()) < 2
    yield normal(rng, n, heads, queries, keys)
    yield np.where(rng.random((n, 1, queries, keys)) < 0.4, -np.inf, normal(rng, n, 1, queries, keys)).astype(
        np.float32
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_attention_gradients(causal, ragged, rng):
    shape = (2, 2, 3, 4, 3, 2)
    for mask in masks(rng, *shape[:4]):
        options = {
            "causal": causal,
            "key_lengths": np.array([3, 0]) if ragged else None,
            "mask": mask if mask is None or mask.dtype == bool else mask.astype(np.float64),
        }

        def forward(q, k, v, options=options):
            return reference.attention_forward(q, k, v, **options)[0]

        def backward(dy, q, k, v, options=options):
            y, lse = reference.attention_forward(q, k, v, **options)
            return reference.attention_backward(dy, q, k, v, y, lse, **options)

        check_gradients(forward, backward, *operands(rng, *shape)[:3])


@pytest.mark.parametrize("causal", [False, True])
def test_attention_agrees(causal, backend, rng):
    for shape in SHAPES:
        agrees("attention", backend, forward_and_backward(causal=causal), *operands(rng, *shape), None, None)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_several_tiles_agrees(causal, backend, rng):
    # CUDA's tiles have 64 queries, keys and columns; a block takes 128 columns, or 256 keys of few queries.
    wide = (1, 2, 6, 65, 200, 260), (1, 1, 5, 99, 801, 3)
    for shape in ((1, 1, 65, 130, 66, 130), (2, 2, 3, 515, 68, 65), *wide):
        keys = np.array([shape[3], shape[3] - 66][: shape[0]])
        run = forward_and_backward(causal=causal)
        agrees("attention", backend, run, *operands(rng, *shape), None, keys)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_attention_with_masks_agrees(causal, ragged, backend, rng):
    for shape in ((2, 3, 5, 6, 7, 4), (3, 2, 1, 19, 8, 9), (2, 2, 18, 17, 5, 16)):
        for mask in masks(rng, *shape[:4]):
            n, _, _, keys, *_ = shape
            lengths = np.array([0, keys, *rng.integers(0, keys + 1, n)], np.int32)[:n] if ragged else None
            run = forward_and_backward(causal=causal, scale=0.7)
            agrees("attention", backend, run, *operands(rng, *shape), mask, lengths)


def test_attention_of_large_scores_agrees(backend, rng):
    q, k, v, dy = operands(rng, 1, 2, 5, 7, 8, 4)
    agrees("attention", backend, forward_and_backward(scale=100.0), q, k, v, dy, None, None)


def test_attention_that_sees_nothing_is_zero(backend, rng):
    q, k, v, dy = operands(rng, 2, 2, 3, 17, 5, 6)
    hidden = np.zeros((2, 1, 3, 17), bool)
    hidden[1] = True
    minus = np.where(hidden, 0, -np.inf).astype(np.float32)
    for options in ({"mask": hidden}, {"mask": minus}, {"key_lengths": np.array([0, 17])}):
        for ops in (reference, backend):
            y, lse, p = ops.attention_forward(q, k, v, weights=True, **options)
            gradients = ops.attention_backward(dy, q, k, v, y, lse, **options)
            for result in (y, p, *gradients):
                np.testing.assert_array_equal(result[0], np.zeros_like(result[0]))
                assert np.isfinite(result).all()
                assert result[1].any()
            np.testing.assert_array_equal(lse[0], np.full((2, 3), -np.inf))


def test_attention_honours_needs(backend, rng):
    q, k, v, dy = operands(rng, 2, 2, 9, 11, 8, 5)

    def backward(ops, needs):
        y, lse = ops.attention_forward(q, k, v, causal=True)
        return ops.attention_backward(dy, q, k, v, y, lse, causal=True, needs=needs)

    honours_needs(backend, backward, GRADIENTS)


def test_attention_bits_do_not_depend_on_threads(backend, rng):
    for shape in ((3, 5, 70, 67, 32, 33), (1, 1, 300, 310, 64, 64), (9, 1, 1, 500, 64, 64)):
        keys = np.minimum(rng.integers(1, 2 * shape[3], shape[0]), shape[3])
        same_bits(backend, forward_and_backward(causal=True), *operands(rng, *shape), None, keys)


def agrees_in_half(device, half, q, k, v, dy, **options):
    """Forward and backward near the reference on the rounded arrays (backward: on y as it was stored).

    Two roundings of the type lead to a result: of p or ds before a product, and its own. A product has many
    of the first, so three are allowed. lse is as exact as in float32.
    """
    q, k, v, dy = (rounded(half, a) for a in (q, k, v, dy))
    ops = device.storing(half)
    y, lse = ops.attention_forward(q, k, v, **options)
    results = y, *ops.attention_backward(dy, q, k, v, y, lse=lse, **options)
    exact_options = {
        name: value.astype(np.float64) if getattr(value, "dtype", None) == np.float32 else value
        for name, value in options.items()
    }
    wide = [a.astype(np.float64) for a in (dy, q, k, v, y)]
    exact_y, exact_lse = reference.attention_forward(*wide[1:4], **exact_options)
    exact = exact_y, *reference.attention_backward(*wide, exact_lse, **exact_options)
    finite = np.isfinite(exact_lse)
    np.testing.assert_array_equal(lse[~finite], exact_lse[~finite])
    np.testing.assert_allclose(lse[finite], exact_lse[finite], rtol=4e-6, atol=4e-6)
    for name, result, expected in zip(("y", *GRADIENTS), results, exact, strict=True):
        if name in ("dq", "dk") and k.shape[2] == 1:  # one key alone: its p does not change
            np.testing.assert_allclose(result, 0, atol=1e-5)
        else:
            near_in_half(f"{name} of {q.shape}, {v.shape}, {options}", half, result, expected, roundings=3)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_16_bits_agrees(half, causal, device, rng):
    for shape in HALF_SHAPES:
        agrees_in_half(device, half, *operands(rng, *shape), causal=causal)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_attention_of_16_bits_with_masks_agrees(half, causal, ragged, device, rng):
    for shape in ((3, 2, 70, 67, 16, 8), (2, 1, 9, 40, 72, 128)):
        n, _, _, keys, *_ = shape
        lengths = np.array([0, keys, 35], np.int32)[:n] if ragged else None
        for mask in masks(rng, *shape[:4]):
            options = {"mask": mask, "key_lengths": lengths, "causal": causal, "scale": 0.4}
            agrees_in_half(device, half, *operands(rng, *shape), **options)


@pytest.mark.parametrize("half", HALVES)
def test_attention_of_16_bits_of_large_scores_agrees(half, device, rng):
    for shape in ((1, 2, 20, 150, 64, 64), (1, 1, 3, 20, 64, 8)):
        q, k, v, dy = operands(rng, *shape)
        agrees_in_half(device, half, q, k, v, dy, scale=10.0)
        agrees_in_half(device, half, q, k, v, dy, scale=-10.0)
        agrees_in_half(device, half, 60 * q, 60 * k, v, dy, scale=1 / 360)  # q k^T is beyond float16


@pytest.mark.parametrize("half", HALVES)
def test_attention_of_16_bits_gives_weights(half, device, rng):
    for shape in ((2, 1, 2, 300, 16, 8), (1, 2, 9, 70, 64, 64)):
        q, k, v, _ = (rounded(half, a) for a in operands(rng, *shape))
        y, lse, p = device.storing(half).attention_forward(q, k, v, causal=True, weights=True)
        exact = reference.attention_forward(
            *(a.astype(np.float64) for a in (q, k, v)), causal=True, weights=True
        )
        near_in_half("y", half, y, exact[0])
        near_in_half("p", half, p, exact[2])
        np.testing.assert_allclose(lse, exact[1], rtol=4e-6)


@pytest.mark.parametrize("half", HALVES)
def test_attention_of_16_bits_that_sees_nothing_is_zero(half, device, rng):
    q, k, v, dy = operands(rng, 2, 2, 9, 17, 8, 8)
    hidden = np.zeros((2, 1, 9, 17), bool)
    hidden[1] = True
    minus = np.where(hidden, 0, -np.inf).astype(np.float32)
    ops = device.storing(half)
    for options in ({"mask": hidden}, {"mask": minus}, {"key_lengths": np.array([0, 17])}):
        y, lse = ops.attention_forward(q, k, v, **options)
        for result in (y, *ops.attention_backward(dy, q, k, v, y, lse=lse, **options)):
            np.testing.assert_array_equal(result[0], np.zeros_like(result[0]))
            assert np.isfinite(result).all()
            assert result[1].any()
        np.testing.assert_array_equal(lse[0], np.full((2, 9), -np.inf))


@pytest.mark.parametrize("half", HALVES)
def test_attention_of_16_bits_takes_any_alignment(half, cuda, rng):
    for queries in (3, 9):
        arrays = [rounded(half, a) for a in operands(rng, 1, 2, queries, 20, 16, 8)]
        aligned = [cuda.to_device(a).astype(half) for a in arrays]
        shifted = [
            cuda.to_device(np.append(np.float32(0), a)).astype(half)[1:].reshape(a.shape) for a in arrays
        ]
        results = []
        for q, k, v, dy in (aligned, shifted):
            y, lse = cuda.attention_forward(q, k, v)
            results.append((y, *cuda.attention_backward(dy, q, k, v, y, lse)))
        for name, one, other in zip(("y", *GRADIENTS), *results, strict=True):
            assert str(one.dtype) == str(other.dtype) == half
            exact = other.astype("float32").numpy().astype(np.float64)
            near_in_half(name, half, one.astype("float32").numpy(), exact, roundings=3)


@pytest.mark.parametrize("half", HALVES)
def test_attention_of_16_bits_honours_needs(half, device, rng):
    for queries in (2, 9):
        q, k, v, dy = (rounded(half, a) for a in operands(rng, 2, 2, queries, 11, 8, 16))
        y, lse = device.storing(half).attention_forward(q, k, v, causal=True)

        def backward(ops, needs, arrays=(dy, q, k, v, y), lse=lse):
            return ops.attention_backward(*arrays, lse=lse, causal=True, needs=needs)

        honours_needs(device.storing(half), backward, GRADIENTS)


@pytest.mark.parametrize("half", HALVES)
def test_attention_of_16_bits_does_not_depend_on_the_order_of_threads(half, device, rng):
    for shape in ((2, 2, 70, 67, 32, 40), (1, 1, 130, 140, 72, 128), (1, 1, 33, 50, 256, 136)):
        q, k, v, dy = (rounded(half, a) for a in operands(rng, *shape))

        def run(ops, *arrays):
            *arrays, dy = arrays
            y, lse = ops.attention_forward(*arrays, causal=True)
            return y, lse, *ops.attention_backward(dy, *arrays, y, lse=lse, causal=True)

        same_bits(device.storing(half), run, q, k, v, dy)


def test_attention_of_16_bits_rejects(cuda, rng):
    single = [cuda.to_device(a) for a in operands(rng, 1, 1, 5, 6, 8, 8)]
    q, k, v, dy = (a.astype("bfloat16") for a in single)
    y, lse = cuda.attention_forward(q, k, v)
    assert (y.dtype, lse.dtype) == ("bfloat16", np.float32)
    rejects(TypeError, ("attention", "bfloat16", "float32"), cuda.attention_forward, q, single[1], v)
    rejects(
        TypeError, ("attention", "bfloat16", "float16"), cuda.attention_forward, q, k, v.astype("float16")
    )
    rejects(TypeError, ("attention", "mask", "bfloat16"), cuda.attention_forward, q, k, v, mask=q)
    rejects(
        TypeError,
        ("attention", "lse", "bfloat16"),
        cuda.attention_backward,
        dy,
        q,
        k,
        v,
        y,
        lse.astype("bfloat16"),
    )
    rejects(
        TypeError, ("attention", "bfloat16", "float32"), cuda.attention_backward, single[3], q, k, v, y, lse
    )


def test_attention_rejects(rng):
    q, k, v, dy = operands(rng, 2, 3, 4, 5, 6, 7)
    op = "attention"
    for ops in (_cpu, reference):
        forward, backward = ops.attention_forward, ops.attention_backward
        for wrong in (q[0], q[:1], q[:, :1], q[..., :5], q[None]):
            rejects(ValueError, (op, wrong.shape), forward, wrong, k, v)
        for wrong in (k[0], k[:1], k[:, :1], k[..., :5], k[:, :, :4]):
            rejects(ValueError, (op, wrong.shape), forward, q, wrong, v)
        for wrong in (v[0], v[:1], v[:, :1], v[:, :, :4]):
            rejects(ValueError, (op, wrong.shape), forward, q, k, wrong)
        for bad in (-1, 6, 2**40):
            lengths = np.array([1, bad])
            wrong = f"attention: key_lengths is {bad} at (1,), outside [0, 6)"
            rejects(ValueError, (wrong, (2,)), forward, q, k, v, key_lengths=lengths)
        for lengths in (np.array([1]), np.array([[1, 1]])):
            rejects(ValueError, (op, lengths.shape), forward, q, k, v, key_lengths=lengths)
        rejects(TypeError, (op, "float64", (2,)), forward, q, k, v, key_lengths=np.array([1.0, np.nan]))
        y, lse = forward(q, k, v)
        for wrong in (dy[:1], dy[..., :6], dy[0]):
            rejects(ValueError, (op, wrong.shape), backward, wrong, q, k, v, y, lse)
            rejects(ValueError, (op, wrong.shape), backward, dy, q, k, v, wrong, lse)
        for wrong in (lse[:1], lse[..., :1], lse[0]):
            rejects(ValueError, (op, wrong.shape), backward, dy, q, k, v, y, wrong)
    for shape in ((4, 4), (2, 3, 5), (3, 1, 4, 5), (1, 2, 3, 4, 5), (2, 1, 1, 1, 5)):
        wrong = np.ones(shape, bool)
        rejects(ValueError, (op, shape), _cpu.attention_forward, q, k, v, mask=wrong)
    rejects(TypeError, (op, "float64", k.shape), _cpu.attention_forward, q, k.astype(np.float64), v)
    rejects(TypeError, (op, "float16", q.shape), _cpu.attention_forward, q.astype(np.float16), k, v)
    for dtype in (np.float64, np.int64, np.uint8):
        mask = np.ones((4, 5), dtype)
        rejects(TypeError, (op, mask.dtype, (4, 5)), _cpu.attention_forward, q, k, v, mask=mask)
