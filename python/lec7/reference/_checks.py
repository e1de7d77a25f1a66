"""Checks of what NumPy would silently get wrong; the shape rules in cpp/lec7/ hold the full validation."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ParamSpec, TypeVar, cast

import numpy as np
from numpy import ndarray

P = ParamSpec("P")
R = TypeVar("R")


def expect_shape(op: str, name: str, array: ndarray, shape: Sequence[int]) -> None:
    """Refuse an array that would otherwise broadcast."""
    if array.shape != tuple(shape):
        raise ValueError(f"{op}: {name} must have shape {tuple(shape)}, has {array.shape}")


def expect_indices(
    op: str, name: str, array: ndarray, stop: int, *, start: int = 0, ignore: int | None = None
) -> None:
    """Refuse indices outside [start, stop), which would wrap around, and those that are not int32|int64."""
    if array.dtype not in (np.int32, np.int64):
        raise TypeError(f"{op}: {name} must be int32 or int64, is {array.dtype} with shape {array.shape}")
    wrong = (array < start) | (array >= stop)
    if ignore is not None:
        wrong &= array != ignore
    refuse_outside(op, name, array, wrong, f"[{start}, {stop})")


def refuse_outside(op: str, name: str, array: ndarray, wrong: ndarray, interval: str) -> None:
    """Refuse an array with wrong elements, those outside an interval; the message has the first."""
    if wrong.any():
        at = tuple(int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape))
        raise ValueError(f"{op}: {name} is {array[at]} at {at}, outside {interval}; {name} = {array.shape}")


def wanted(op: str, needs: Collection[str] | None, *names: str) -> tuple[bool, ...]:
    """One flag per gradient name: whether `needs` asks for it (None asks for all)."""
    unknown = set(needs or ()) - set(names)
    if unknown:
        raise ValueError(f"{op}: needs names {sorted(unknown)}; its gradients are {', '.join(names)}")
    return tuple(needs is None or name in needs for name in names)


def delivers(op: str, *names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A backward that writes its gradients to the arrays that `needs`, where it is a dict, gives."""

    def decorate(backward: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(backward)
        def delivering(*args: P.args, **kwargs: P.kwargs) -> R:
            gradients = backward(*args, **kwargs)
            needs = kwargs.get("needs")
            if not isinstance(needs, Mapping):
                return gradients
            pairs = zip(names, cast(tuple[ndarray | None, ...], gradients), strict=True)
            return cast(R, tuple(_deliver(op, name, gradient, needs.get(name)) for name, gradient in pairs))

        return delivering

    return decorate


def _deliver(op: str, name: str, gradient: ndarray | None, into: ndarray | None) -> ndarray | None:
    if gradient is None or into is None:
        return gradient
    expect_shape(op, name, into, gradient.shape)
    if into.dtype != gradient.dtype:
        raise TypeError(f"{op}: {name} is written as {gradient.dtype}; got {into.dtype} {into.shape}")
    into[...] = gradient
    return into
