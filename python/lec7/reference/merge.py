"""Where the branches of a network meet: side by side, or added."""

from collections.abc import Sequence

import numpy as np
from numpy import ndarray


def concat_forward(arrays: Sequence[ndarray]) -> ndarray:
    """Concatenation of channels.

    y[..., C_0 + ... + C_(i-1) + c] = arrays[i][..., c]

    Args:    arrays: one or more (N, ..., C_i) float32|float64, alike in all axes but the last.
    Returns: y (N, ..., sum of C_i).
    Raises:  ValueError: no arrays; shapes differ before the last axis.  TypeError: dtypes differ.
    Source:  Szegedy et al. 2015, Going deeper with convolutions, section 4.
    """
    if not arrays:
        raise ValueError("concat: there must be at least one array")
    shapes = ", ".join(f"arrays[{i}] = {a.shape}" for i, a in enumerate(arrays))
    if any(a.ndim == 0 for a in arrays):
        raise ValueError(f"concat: each array needs an axis of channels; {shapes}")
    if any(a.shape[:-1] != arrays[0].shape[:-1] for a in arrays):
        raise ValueError(f"concat: the arrays must agree in all axes but the last; {shapes}")
    if any(a.dtype != arrays[0].dtype for a in arrays):
        dtypes = ", ".join(str(a.dtype) for a in arrays)
        raise TypeError(f"concat: all arrays must have one dtype, have {dtypes}; {shapes}")
    return np.concatenate(arrays, axis=-1)


def concat_backward(dy: ndarray, *, channels: Sequence[int]) -> list[ndarray]:
    """Gradients of the concatenation: dy taken apart again.

    dx_i[..., c] = dy[..., C_0 + ... + C_(i-1) + c]

    Args:    dy: (N, ..., sum of C_i).  channels: each array's C_i.
    Returns: [dx_i (N, ..., C_i)], arrays of their own.
    Raises:  ValueError: channels do not add up to those of dy.
    """
    if dy.ndim == 0:
        raise ValueError("concat: dy needs an axis of channels; dy = ()")
    if not channels or min(channels) < 0 or sum(channels) != dy.shape[-1]:
        raise ValueError(
            f"concat: channels {tuple(channels)} must add up to those of dy; dy (N, ..., C) = {dy.shape}"
        )
    return [dx.copy() for dx in np.split(dy, np.cumsum(channels)[:-1], axis=-1)]


def add_(y: ndarray, x: ndarray) -> None:
    """Addition in place: y += x, a residual connection.

    Args:    y: any shape, float32|float64, contiguous, changed in place.  x: like y, or y itself.
    Raises:  ValueError: shapes differ; y is read-only or not contiguous; the arrays' bounds in memory overlap
             and x is not y.  TypeError: dtypes differ.
    Source:  He, Zhang, Ren, Sun 2016, Deep residual learning, equation 1.
    """
    shapes = f"y = {y.shape}, x = {x.shape}"
    if y.dtype != x.dtype:
        raise TypeError(f"add_: y and x must have one dtype, have {y.dtype} and {x.dtype}; {shapes}")
    if y.shape != x.shape:
        raise ValueError(f"add_: y and x must have the same shape; {shapes}")
    if not (y.flags.c_contiguous and y.flags.writeable):
        raise ValueError(f"add_: y must be contiguous and not read-only; {shapes}")
    same = y.ctypes.data == x.ctypes.data and x.flags.c_contiguous
    if not same and np.may_share_memory(y, x):
        raise ValueError(f"add_: x overlaps y in memory without being y; {shapes}")
    y += x
