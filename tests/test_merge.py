import numpy as np
import pytest
from checking import SIZES, agrees, check_gradients, normal, rejects, same_bits
from devices import DeviceOps

from lec7 import _cpu, reference

# The shape before the channels, and each array's channels.
CASES = [
    ((), (3,)),
    ((), (3, 4)),
    ((5,), (1, 1, 1)),
    ((0,), (2, 3)),
    ((2, 0), (2, 3)),
    ((3, 4), (0, 5, 0)),
    ((3, 4), (0, 0)),
    ((2, 3, 4), (64, 128, 32, 32)),
    ((2, 3), (31, 17, 1000)),
    ((700,), (17, 35)),
    ((1, 2, 3, 2, 2), (6, 5)),
    ((3, 2), (4, 8, 4, 12, 4, 4, 8, 4, 4, 16, 4)),  # more than one launch of CUDA's has room for
    ((3, 2), (1, 2, 3, 4, 5, 6, 7, 8, 9)),
    *(((3, 5), (n, 2 * n + 1, 3)) for n in SIZES),
]


def concat(ops, *arrays):
    return (ops.concat_forward(arrays),)


def test_concat_worked_example():
    a, b = np.arange(4.0).reshape(2, 2), np.array([[10.0], [20]])
    y = reference.concat_forward([a, b])
    np.testing.assert_array_equal(y, [[0, 1, 10], [2, 3, 20]])
    dy = np.arange(6.0).reshape(2, 3)
    da, db = reference.concat_backward(dy, channels=[2, 1])
    np.testing.assert_array_equal(da, [[0, 1], [3, 4]])
    np.testing.assert_array_equal(db, [[2], [5]])


def test_concat_gradients(rng):
    def backward(dy, *arrays):
        return tuple(reference.concat_backward(dy, channels=[a.shape[-1] for a in arrays]))

    arrays = [rng.standard_normal((2, 3, c)) for c in (3, 1, 4)]
    check_gradients(lambda *arrays: reference.concat_forward(arrays), backward, *arrays)


@pytest.mark.parametrize(("rows", "channels"), CASES, ids=str)
def test_concat_agrees(rows, channels, backend, rng):
    agrees("concat", backend, concat, *(normal(rng, *rows, c) for c in channels))

    def take_apart(ops, dy):
        parts = ops.concat_backward(dy, channels=channels)
        assert isinstance(parts, list)
        return tuple(parts)

    dy = normal(rng, *rows, sum(channels))
    agrees("concat", backend, take_apart, dy)
    parts = take_apart(backend, dy)
    assert not any(np.shares_memory(part, dy) for part in parts)
    assert concat(backend, *parts)[0].tobytes() == dy.tobytes()


def test_concat_past_the_caches(backend, rng):
    """Results too large for a cache are stored in another way by the CPU: whole vectors, or a rest of one."""
    rows = 1000 if isinstance(backend, DeviceOps) else 100_000
    for channels in ((32, 64), (17, 79)):
        arrays = [normal(rng, rows, c) for c in channels]
        y = backend.concat_forward(arrays)
        np.testing.assert_array_equal(y, np.concatenate(arrays, axis=1))
        for dx, a in zip(backend.concat_backward(y, channels=channels), arrays, strict=True):
            np.testing.assert_array_equal(dx, a)


def test_concat_of_one_array_is_a_copy(rng):
    a = normal(rng, 3, 4)
    for ops in (_cpu, reference):
        assert not np.shares_memory(ops.concat_forward([a]), a)
        assert not np.shares_memory(ops.concat_backward(a, channels=[4])[0], a)


def test_concat_rejects(rng):
    a, b = normal(rng, 2, 3, 4), normal(rng, 2, 3, 5)
    for ops in (_cpu, reference):
        rejects(ValueError, ("concat", "at least one"), ops.concat_forward, [])
        for wrong in (b[:1], b[0], b[:, 1:], b[None]):
            rejects(ValueError, ("concat", a.shape, wrong.shape), ops.concat_forward, [a, wrong])
        rejects(ValueError, ("concat", "axis of channels"), ops.concat_forward, [np.float32(1) * np.ones(())])
        rejects(TypeError, ("concat", "float64", "float32"), ops.concat_forward, [a, b.astype(np.float64)])
        for channels in ((3,), (2, 3), (-1, 5), (5, -1), (2, 2, 1), (), (2**62, 2**62, 4)):
            rejects(ValueError, ("concat", "channels"), ops.concat_backward, a, channels=channels)
        rejects(ValueError, ("concat",), ops.concat_backward, np.ones((), np.float32), channels=(1,))
    rejects(TypeError, ("concat", "arrays"), _cpu.concat_forward, 3)
    rejects(TypeError, ("concat", "arrays[1]", "int64"), _cpu.concat_forward, [a, b.astype(np.int64)])
    rejects(TypeError, ("concat", "channels"), _cpu.concat_backward, a, channels=4)
    rejects(TypeError, ("concat", "channels"), _cpu.concat_backward, a, channels=(1.5, 2.5))
    rejects(ValueError, ("concat", "channels"), _cpu.concat_backward, a, channels=(2**70,))


def added(ops, y, x):
    y = y.copy()
    assert ops.add_(y, x) is None
    return (y,)


def test_add_worked_example():
    y = np.array([[1.0, 2], [3, 4]])
    reference.add_(y, np.array([[10.0, 20], [30, 40]]))
    np.testing.assert_array_equal(y, [[11, 22], [33, 44]])


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (3, 4, 5), (40000,), *((n,) for n in SIZES)], ids=str)
def test_add_agrees(shape, backend, rng):
    y, x = normal(rng, *shape), normal(rng, *shape)
    agrees("add", backend, added, y, x)
    np.testing.assert_array_equal(added(backend, y, x)[0], y + x)


def test_add_of_the_array_itself_doubles_it(backend, rng):
    y = normal(rng, 5, 7)
    for ops in (backend, reference):
        for same in (lambda a: a, lambda a: a[:]):
            twice = y.copy()
            ops.add_(twice, same(twice))
            np.testing.assert_array_equal(twice, 2 * y)


def test_add_rejects(rng):
    y = normal(rng, 4, 4)
    buffer = normal(rng, 40)
    read_only = y.copy()
    read_only.flags.writeable = False
    for ops in (_cpu, reference):
        for wrong in (y[:1], y[0], y[None], y.reshape(2, 8), y.reshape(16)):
            rejects(ValueError, ("add_", y.shape, wrong.shape), ops.add_, y.copy(), wrong)
        rejects(TypeError, ("add_", "float64", "float32"), ops.add_, y.copy(), y.astype(np.float64))
        rejects(ValueError, ("add_", "read-only"), ops.add_, read_only, y)
        rejects(ValueError, ("add_", "contiguous"), ops.add_, y.T, y.copy())
        rejects(ValueError, ("add_", "contiguous"), ops.add_, buffer[::2], buffer[:20].copy())
        kept = y.copy()
        for overlapping in (y.T, y[::-1]):
            rejects(ValueError, ("add_", "overlaps"), ops.add_, y, overlapping)
        np.testing.assert_array_equal(y, kept)
        for overlapping in (buffer[1:21], buffer[19:39], buffer[:40:2], buffer[19::-1]):
            rejects(ValueError, ("add_", "overlaps"), ops.add_, buffer[:20], overlapping)
        for apart in (buffer[20:], buffer[39:19:-1]):
            ops.add_(buffer[:20].copy(), apart)
            ops.add_(buffer[:20], apart)
    rejects(TypeError, ("add_", "NumPy array"), _cpu.add_, y.tolist(), y)
    rejects(TypeError, ("add_", "int32"), _cpu.add_, y.astype(np.int32), y.astype(np.int32))


def test_merge_bits_do_not_depend_on_threads(backend, rng):
    arrays = [normal(rng, 8, 28, 28, c) for c in (17, 64, 3)]
    same_bits(backend, concat, *arrays)
    same_bits(backend, lambda ops, dy: ops.concat_backward(dy, channels=(20, 44)), arrays[1])
    same_bits(backend, added, arrays[1], -arrays[1] + 1)
