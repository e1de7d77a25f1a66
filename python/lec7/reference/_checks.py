"""Checks of what NumPy would silently get wrong; the shape rules in cpp/lec7/ hold the full validation."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy import ndarray


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
    if wrong.any():
        at = np.unravel_index(wrong.argmax(), wrong.shape)
        position = tuple(int(i) for i in at)
        raise ValueError(
            f"{op}: {name} must be in [{start}, {stop}), is {array[at]} at {position}; shape {array.shape}"
        )


def wanted(op: str, needs: Collection[str] | None, *names: str) -> tuple[bool, ...]:
    """One flag per gradient name: whether `needs` asks for it (None asks for all)."""
    unknown = set(needs or ()) - set(names)
    if unknown:
        raise ValueError(f"{op}: needs names {sorted(unknown)}; its gradients are {', '.join(names)}")
    return tuple(needs is None or name in needs for name in names)
