"""The checks that the tests of all ops share: against the reference, by differences, of bits, of errors."""

import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from devices import DeviceOps
from numpy import ndarray

import lec7
from lec7 import reference

# A compiled backend may differ from the float64 reference by
# 2 * (error of the float32 reference) + k * eps * scale. The scale is
# True: each element's own magnitude; False: the largest magnitude in the result.
TOLERANCE = {
    "relu": (0, True),
    "sigmoid": (4, True),
    "tanh": (4, True),
    "activation_backward": (4, False),  # 1 - y cancels where y is near 1
    "softmax": (8, True),
    "log_softmax": (4, False),
    "softmax_backward": (4, False),
    "softmax_cross_entropy": (8, False),
    "binary_cross_entropy": (16, False),
    "mean_squared_error": (16, False),
    "dropout": (0, True),
    "embedding": (4, False),
    "linear": (8, False),
    "matmul": (8, False),
    "conv": (8, False),
    "conv_accurate": (16, False),
    "conv_fast": (96, False),
    "locally_connected": (8, False),
    "concat": (0, True),
    "add": (0, True),
    "max_pool": (1, False),
    "avg_pool": (2, False),
    "sum_pool": (2, False),
    "local_response_norm": (8, False),
    "batch_norm": (8, False),
    "layer_norm": (8, False),
    "rnn": (8, False),
    "lstm": (8, False),
    "gru": (8, False),
    "attention": (8, False),
    "sgd": (4, False),
    "rmsprop": (8, False),
    "adam": (8, False),
    "global_norm": (1, True),
    "scale": (0, True),
}

HALVES = ("float16", "bfloat16")
# The most that one rounding to a type of 16 bits changes a number by, relative to it.
UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133}

# 1, W-1, W, W+1, 2W+3 for vectors of W = 4, 8 and 16 numbers, and two primes.
SIZES = (1, 3, 4, 5, 7, 8, 9, 11, 13, 15, 16, 17, 19, 31, 35)

Run = Callable[..., tuple[Any, ...]]


def required() -> set[str]:
    """LEC7_REQUIRE=avx512,cuda: the ISAs and devices whose absence is a failure, not a skip."""
    return {name for name in os.environ.get("LEC7_REQUIRE", "").split(",") if name}


def normal(rng: np.random.Generator, *shape: int) -> ndarray:
    return rng.standard_normal(shape, np.float32)


def agrees(op: str, backend: ModuleType, run: Run, *arrays: Any, floor: float = 0) -> None:
    """`run(ops, *arrays)` gives with the backend what it gives with the reference, in float32 and float64.

    (In float32 alone with CUDA.)

    Strided arrays, and contiguous ones at another alignment, give the same bits; no input is changed.
    `floor` is the least scale: the size of the terms where they may cancel in every element of a result.
    """
    exact, single = run(reference, *_as(np.float64, arrays)), run(reference, *arrays)
    for dtype, expected in ((np.float32, single), (np.float64, exact)):
        if dtype not in dtypes(backend):
            continue
        inputs = _as(dtype, arrays)
        kept = [np.copy(a) if isinstance(a, ndarray) else a for a in inputs]
        results = run(backend, *inputs)
        for before, after in zip(kept, inputs, strict=True):
            np.testing.assert_array_equal(after, before, err_msg=f"{op} changed an input")
        assert len(results) == len(expected)
        for i, result in enumerate(results):
            where = f"{op}: result {i}, {dtype.__name__}, {backend._isa()}"
            _close(op, where, result, expected[i], single[i], exact[i], floor)
        for layout in (_strided, _shifted):
            again = run(backend, *(layout(a) if isinstance(a, ndarray) else a for a in inputs))
            _same(f"{op}: {layout.__name__} inputs", results, again)


def dtypes(backend: Any) -> tuple[type, ...]:
    return getattr(backend, "dtypes", (np.float32, np.float64))


def _as(dtype: type, arrays: Sequence[Any]) -> list[Any]:
    """The arrays with their floats in dtype; everything else as it is."""
    return [a.astype(dtype) if isinstance(a, ndarray) and a.dtype.kind == "f" else a for a in arrays]


def _close(op: str, where: str, result: Any, expected: Any, single: Any, exact: Any, floor: float) -> None:
    if expected is None or result is None:
        assert result is expected, where
        return
    assert type(result) is type(expected) or isinstance(result, ndarray), where
    result, expected, single, exact = (np.asarray(a) for a in (result, expected, single, exact))
    assert result.dtype == expected.dtype, where
    assert result.shape == expected.shape, where
    assert result.flags.c_contiguous, where
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(result[~finite], exact[~finite], err_msg=where)
    if result.dtype.kind != "f":
        np.testing.assert_array_equal(result, expected, err_msg=where)
    elif finite.any():
        k, by_element = TOLERANCE[op]
        result, single, exact = (a[finite].astype(np.float64) for a in (result, single, exact))
        error, scale = np.abs(single - exact), np.maximum(np.abs(exact), floor)
        if not by_element:
            error, scale = error.max(), scale.max()
        eps32, info = np.finfo(np.float32).eps, np.finfo(expected.dtype)
        bound = 2 * error + k * eps32 * scale
        if expected.dtype == np.float64:
            bound = 2 * bound * (info.eps / eps32)  # twice, since the float64 reference rounds as well
        excess = np.abs(result - exact) - (bound + info.tiny)  # kernels flush denormals
        worst = excess.argmax()
        assert excess[worst] <= 0, (
            f"{where}: {result[worst]} where {exact[worst]} is right, over by {excess[worst]}"
        )


def rounded(dtype: str, a: ndarray) -> ndarray:
    """The nearest numbers of float16 or bfloat16, as float32."""
    if dtype == "float16":
        return a.astype(np.float16).astype(np.float32)
    bits = a.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def near_in_half(where: str, dtype: str, result: ndarray, exact: ndarray, roundings: int = 1) -> None:
    """A result that is stored as float16 or bfloat16, against float64 on inputs that are so rounded.

    It is computed in float32, so of one rounding it is that rounding away, plus 16 eps of float32 relative
    to the largest result. Where it is a sum over numbers that were stored too, `roundings` counts those that
    follow one another on the way to it, each relative to the largest result.
    """
    assert result.shape == exact.shape, where
    assert np.isfinite(result).all(), where
    if not exact.size:
        return
    size, largest = np.abs(exact), np.abs(exact).max()
    scale = size if roundings == 1 else roundings * largest
    bound = UNIT_ROUNDOFF[dtype] * scale + 16 * np.finfo(np.float32).eps * largest + SMALLEST[dtype]
    excess = np.abs(result - exact) - bound
    worst = np.unravel_index(excess.argmax(), excess.shape)
    assert excess[worst] <= 0, (
        f"{where}: {result[worst]} where {exact[worst]} is right, over by {excess[worst]}"
    )


def stored_dz(dtype: str, activation: str | None, dy: ndarray, y: ndarray) -> tuple[ndarray, int]:
    """dy through the activation as a backward stores it, in float64, and the roundings of a sum over it.

    sigmoid's and tanh's slope may come out as another float32 here, so that some may be rounded otherwise.
    """
    one = np.float32(1)
    slope = {"relu": (y > 0).astype(np.float32), "sigmoid": y * (one - y), "tanh": one - y * y}
    dz = dy if activation is None else rounded(dtype, dy * slope[activation])
    return dz.astype(np.float64), 1 if activation in (None, "relu") else 2


def _strided(a: ndarray) -> ndarray:
    """Equal to a, but every other cell of a larger array in the order of Fortran."""
    wide = np.zeros((2, *a.shape), a.dtype, order="F")
    wide[1] = a
    return wide[1, ...]


def _shifted(a: ndarray) -> ndarray:
    """Equal to a and contiguous, but one element off the allocator's alignment."""
    buffer = np.zeros(a.size + 1, a.dtype)
    buffer[1:] = a.ravel()
    return buffer[1:].reshape(a.shape)


def _same(where: str, first: Sequence[Any], second: Sequence[Any]) -> None:
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert (a is None) == (b is None), f"{where}, result {i}"
        same = a is None or np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert same, f"{where}: the bits of result {i} differ"


def same_bits(backend: ModuleType, run: Run, *arrays: Any) -> None:
    """`run` gives the same bits with 1, 2, 3 threads, and again with 2; with CUDA, in any order of them."""
    if isinstance(backend, DeviceOps):
        first = run(backend, *arrays)
        for seed in (1, 2):
            backend.set_schedule(workers=2, shuffle=True, seed=seed)
            _same("another order of the threads", first, run(backend, *arrays))
        backend.set_schedule()
        return
    before = lec7.get_num_threads()
    try:
        lec7.set_num_threads(1)
        one = run(backend, *arrays)
        for threads in (2, 3, 2):
            lec7.set_num_threads(threads)
            _same(f"{threads} threads against 1", one, run(backend, *arrays))
    finally:
        lec7.set_num_threads(before)


def honours_needs(
    backend: ModuleType, backward: Callable[..., tuple[Any, ...]], names: Sequence[str]
) -> None:
    """`backward(ops, needs)` gives the gradients asked for, equal to those of needs=None, and no others.

    Where `needs` is a dict with arrays, it writes to them; those that do not fit are refused.
    """
    for ops in (reference, backend):
        every = backward(ops, None)
        assert len(every) == len(names)
        assert all(gradient is not None for gradient in every)
        for needs in ((), *((name,) for name in names), names[:2], list(names), set(names)):
            expected = [g if name in needs else None for name, g in zip(names, every, strict=True)]
            _same(f"needs={needs}", expected, backward(ops, needs))
        for wrong in (("dnothing",), (names[0], "weight")):
            with pytest.raises(ValueError, match="needs"):
                backward(ops, wrong)
        into: dict[str, Any] = {
            name: np.full_like(g, np.nan) for name, g in zip(names, every, strict=True) if name != names[0]
        }
        for needs in (into, {names[0]: None, **into}):
            written = backward(ops, needs)
            expected = [g if name in needs else None for name, g in zip(names, every, strict=True)]
            _same(f"needs={needs.keys()}", expected, written)
            assert all(a is into[name] for name, a in zip(names, written, strict=True) if name in into)
        name, gradient = names[-1], np.asarray(every[-1])
        with pytest.raises(ValueError, match=name):
            backward(ops, {name: np.empty((*gradient.shape, 2), gradient.dtype)})
        other = np.float32 if gradient.dtype == np.float64 else np.float64
        with pytest.raises(TypeError, match=name):
            backward(ops, {name: np.empty(gradient.shape, other)})


def check_gradients(forward: Callable[..., Any], backward: Callable[..., Any], *arrays: ndarray) -> None:
    """`backward(*dys, *arrays)` against central differences of `forward(*arrays)`, in float64.

    The loss is sum(dy * y) over all results with a random dy, so that no gradient cancels by symmetry.
    """
    arrays = tuple(a.astype(np.float64) for a in arrays)
    rng = np.random.default_rng(11)
    dys = tuple(rng.standard_normal(np.shape(y)) for y in _tuple(forward(*arrays)))

    def loss() -> float:
        return sum(float(np.vdot(dy, y)) for dy, y in zip(dys, _tuple(forward(*arrays)), strict=True))

    gradients = _tuple(backward(*dys, *arrays))
    assert len(gradients) == len(arrays)
    step = 1e-5
    for i, (array, gradient) in enumerate(zip(arrays, gradients, strict=True)):
        assert gradient.shape == array.shape, f"gradient {i}"
        numeric = np.empty_like(array)
        for at in np.ndindex(array.shape):
            here = array[at]
            array[at] = here + step
            above = loss()
            array[at] = here - step
            below = loss()
            array[at] = here
            numeric[at] = (above - below) / (2 * step)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-7, err_msg=f"gradient {i}")


def _tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def rejects(
    error: type[Exception] | tuple[type[Exception], ...],
    mentions: Sequence[Any],
    function: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> None:
    """`function(*args, **kwargs)` raises the error, with every mention (op, shape, value) in its message."""
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    for mention in mentions:
        assert str(mention) in str(caught.value), f"{mention} is not in: {caught.value}"
