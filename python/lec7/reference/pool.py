"""Pooling of signals, images and volumes: maximum, average and sum over windows, one tap at a time."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from ._checks import expect_indices, expect_shape
from ._windows import (
    Padding,
    Pads,
    crop_spatial,
    output_size,
    pad_spatial,
    per_axis,
    resolve_padding,
    window_taps,
)

Sizes = int | Sequence[int]


# --- maximum ------------------------------------------------------------------------------------------------


def max_pool2d_forward(
    x: ndarray,
    *,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
) -> tuple[ndarray, ndarray]:
    """Maximum over windows of images.

    y[n,i,j,c] = max over a < KH, b < KW of x[n, i*stride + a*dilation - before, j*..., c], cells of x only

    Args:    x: (N, H, W, C) float32|float64.
             kernel_size, stride (None: kernel_size), dilation: a number or one per axis.
             padding: as conv2d_forward's, each less than the window's extent (K-1)*dilation+1.
             ceil: round the output's size up, but drop a last window that would start in the end padding.
    Returns: y (N, OH, OW, C);
             argmax like y, int32: the winner's index h*W + w; the first of equals wins, NaN wins over
             numbers; -1 where a window holds no cell of x, and y is -inf there.
    Raises:  ValueError: x has another rank; a window does not fit; a parameter is out of range.
    Source:  Ranzato, Huang, Boureau, LeCun 2007;
             Krizhevsky, Sutskever, Hinton 2012, section 3.4 (overlapping).
    """
    return _max_forward("max_pool2d", 2, x, kernel_size, stride, padding, dilation, ceil)


def max_pool2d_backward(dy: ndarray, argmax: ndarray, *, x_shape: Sequence[int]) -> ndarray:
    """Gradient of the maximum over windows of images.

    dx[n,p,q,c] = sum of dy[n,i,j,c] over the windows that (p, q) won, those with argmax[n,i,j,c] = p*W + q

    Args:    dy, argmax: (N, OH, OW, C); argmax from the forward.  x_shape: (N, H, W, C).
    Returns: dx (N, H, W, C).
    Raises:  ValueError: shapes do not fit; an index is outside [-1, H*W).
             TypeError: argmax is not int32|int64.
    """
    return _max_backward("max_pool2d", 2, dy, argmax, x_shape)


def max_pool1d_forward(
    x: ndarray,
    *,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
) -> tuple[ndarray, ndarray]:
    """Maximum over windows of signals: max_pool2d_forward with one spatial axis.

    Args:    x: (N, L, C) float32|float64.  Parameters: as max_pool2d_forward.
    Returns: y (N, OL, C); argmax like y, int32.
    Raises:  as max_pool2d_forward.
    """
    return _max_forward("max_pool1d", 1, x, kernel_size, stride, padding, dilation, ceil)


def max_pool1d_backward(dy: ndarray, argmax: ndarray, *, x_shape: Sequence[int]) -> ndarray:
    """Gradient of the maximum over windows of signals: max_pool2d_backward with one spatial axis.

    Args:    dy, argmax: (N, OL, C); argmax from the forward.  x_shape: (N, L, C).
    Returns: dx (N, L, C).
    Raises:  as max_pool2d_backward.
    """
    return _max_backward("max_pool1d", 1, dy, argmax, x_shape)


def max_pool3d_forward(
    x: ndarray,
    *,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
) -> tuple[ndarray, ndarray]:
    """Maximum over windows of volumes: max_pool2d_forward with three spatial axes.

    Args:    x: (N, D, H, W, C) float32|float64.  Parameters: as max_pool2d_forward.
    Returns: y (N, OD, OH, OW, C); argmax like y, int32: (d*H + h)*W + w.
    Raises:  as max_pool2d_forward.
    """
    return _max_forward("max_pool3d", 3, x, kernel_size, stride, padding, dilation, ceil)


def max_pool3d_backward(dy: ndarray, argmax: ndarray, *, x_shape: Sequence[int]) -> ndarray:
    """Gradient of the maximum over windows of volumes: max_pool2d_backward with three spatial axes.

    Args:    dy, argmax: (N, OD, OH, OW, C); argmax from the forward.  x_shape: (N, D, H, W, C).
    Returns: dx (N, D, H, W, C).
    Raises:  as max_pool2d_backward.
    """
    return _max_backward("max_pool3d", 3, dy, argmax, x_shape)


def _max_forward(
    op: str,
    rank: int,
    x: ndarray,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    ceil: bool,
) -> tuple[ndarray, ndarray]:
    kernel, stride, dilation, pads, beyond, output = _geometry(
        op, rank, x.shape, kernel_size, stride, padding, dilation, ceil
    )
    size = x.shape[1:-1]
    padded = pad_spatial(pad_spatial(x, pads), beyond)
    index = np.arange(math.prod(size), dtype=np.int32).reshape(1, *size, 1)
    index = pad_spatial(pad_spatial(index, pads, -1), beyond, -1)  # -1: not a cell of x
    y = np.full((x.shape[0], *output, x.shape[-1]), -np.inf, x.dtype)
    argmax = np.full(y.shape, -1, np.int32)
    for _, cells in window_taps(kernel, output, stride, dilation):
        value, cell = padded[cells], index[cells]
        better = (value > y) | (np.isnan(value) & ~np.isnan(y)) | (argmax < 0)
        better &= cell >= 0
        y = np.where(better, value, y)
        argmax = np.where(better, cell, argmax)
    return y, argmax


def _max_backward(op: str, rank: int, dy: ndarray, argmax: ndarray, x_shape: Sequence[int]) -> ndarray:
    expect_shape(op, "argmax", argmax, dy.shape)
    if (
        dy.ndim != rank + 2
        or len(x_shape) != rank + 2
        or (dy.shape[0], dy.shape[-1]) != (x_shape[0], x_shape[-1])
    ):
        raise ValueError(
            f"{op}: dy and x_shape must have {rank + 2} axes and agree in N and C; "
            f"dy (N, ..., C) = {dy.shape}, x_shape (N, ..., C) = {tuple(x_shape)}"
        )
    cells = math.prod(x_shape[1:-1])
    expect_indices(op, "argmax", argmax, cells, start=-1)
    at, won = np.indices(dy.shape), argmax >= 0
    dx = np.zeros((x_shape[0], cells, x_shape[-1]), dy.dtype)
    np.add.at(dx, (at[0][won], argmax[won], at[-1][won]), dy[won])
    return dx.reshape(x_shape)


# --- average ------------------------------------------------------------------------------------------------


def avg_pool2d_forward(
    x: ndarray,
    *,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
    count_padding: bool = False,
) -> ndarray:
    """Average over windows of images.

    y[n,i,j,c] = sum over a < KH, b < KW of x[n, i*stride + a*dilation - before, j*..., c] / count[i,j]
    count: the window's cells that lie in x, with count_padding also those in the padding (cells beyond the
    padding, which ceil can reach, never count); a window with no cell gives 0.

    Args:    x: (N, H, W, C) float32|float64.
             kernel_size, stride (None: kernel_size), dilation: a number or one per axis.
             padding: as conv2d_forward's, each less than the window's extent (K-1)*dilation+1.
             ceil: round the output's size up, but drop a last window that would start in the end padding.
    Returns: y (N, OH, OW, C).
    Raises:  ValueError: x has another rank; a window does not fit; a parameter is out of range.
    Source:  LeCun, Bottou, Bengio, Haffner 1998, section II.A (subsampling).
    """
    return _avg_forward("avg_pool2d", 2, x, kernel_size, stride, padding, dilation, ceil, count_padding)


def avg_pool2d_backward(
    dy: ndarray,
    *,
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
    count_padding: bool = False,
) -> ndarray:
    """Gradient of the average over windows of images.

    dx[n,p,q,c] = sum of dy[n,i,j,c] / count[i,j] over the windows that hold (p, q)

    Args:    dy: (N, OH, OW, C).  x_shape: (N, H, W, C).  Parameters: those of the forward.
    Returns: dx (N, H, W, C).
    Raises:  as the forward; ValueError: dy does not fit.
    """
    return _avg_backward(
        "avg_pool2d", 2, dy, x_shape, kernel_size, stride, padding, dilation, ceil, count_padding
    )


def avg_pool1d_forward(
    x: ndarray,
    *,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
    count_padding: bool = False,
) -> ndarray:
    """Average over windows of signals: avg_pool2d_forward with one spatial axis.

    Args:    x: (N, L, C) float32|float64.  Parameters: as avg_pool2d_forward.
    Returns: y (N, OL, C).
    Raises:  as avg_pool2d_forward.
    """
    return _avg_forward("avg_pool1d", 1, x, kernel_size, stride, padding, dilation, ceil, count_padding)


def avg_pool1d_backward(
    dy: ndarray,
    *,
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
    count_padding: bool = False,
) -> ndarray:
    """Gradient of the average over windows of signals: avg_pool2d_backward with one spatial axis.

    Args:    dy: (N, OL, C).  x_shape: (N, L, C).  Parameters: those of the forward.
    Returns: dx (N, L, C).
    Raises:  as avg_pool2d_backward.
    """
    return _avg_backward(
        "avg_pool1d", 1, dy, x_shape, kernel_size, stride, padding, dilation, ceil, count_padding
    )


def avg_pool3d_forward(
    x: ndarray,
    *,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
    count_padding: bool = False,
) -> ndarray:
    """Average over windows of volumes: avg_pool2d_forward with three spatial axes.

    Args:    x: (N, D, H, W, C) float32|float64.  Parameters: as avg_pool2d_forward.
    Returns: y (N, OD, OH, OW, C).
    Raises:  as avg_pool2d_forward.
    """
    return _avg_forward("avg_pool3d", 3, x, kernel_size, stride, padding, dilation, ceil, count_padding)


def avg_pool3d_backward(
    dy: ndarray,
    *,
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
    count_padding: bool = False,
) -> ndarray:
    """Gradient of the average over windows of volumes: avg_pool2d_backward with three spatial axes.

    Args:    dy: (N, OD, OH, OW, C).  x_shape: (N, D, H, W, C).  Parameters: those of the forward.
    Returns: dx (N, D, H, W, C).
    Raises:  as avg_pool2d_backward.
    """
    return _avg_backward(
        "avg_pool3d", 3, dy, x_shape, kernel_size, stride, padding, dilation, ceil, count_padding
    )


def _avg_forward(
    op: str,
    rank: int,
    x: ndarray,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    ceil: bool,
    count_padding: bool,
) -> ndarray:
    windows = kernel_size, stride, padding, dilation, ceil
    total = _sum_forward(op, rank, x, *windows)
    return total / _cell_count(op, rank, x.shape, *windows, count_padding).astype(x.dtype)


def _avg_backward(
    op: str,
    rank: int,
    dy: ndarray,
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    ceil: bool,
    count_padding: bool,
) -> ndarray:
    windows = kernel_size, stride, padding, dilation, ceil
    _check_dy(op, rank, dy, x_shape, *windows)
    count = _cell_count(op, rank, x_shape, *windows, count_padding).astype(dy.dtype)
    return _sum_backward(op, rank, dy / count, x_shape, *windows)


def _cell_count(
    op: str,
    rank: int,
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    ceil: bool,
    count_padding: bool,
) -> ndarray:
    """Cells that count in each window, (1, O..., 1), and 1 for a window without any."""
    kernel, stride, dilation, pads, beyond, output = _geometry(
        op, rank, x_shape, kernel_size, stride, padding, dilation, ceil
    )
    cells = np.ones((1, *x_shape[1:-1], 1))
    cells = pad_spatial(pad_spatial(cells, pads, float(count_padding)), beyond)
    return np.maximum(_sum_taps(cells, kernel, stride, dilation, output), 1)


# --- sum ----------------------------------------------------------------------------------------------------


def sum_pool2d_forward(
    x: ndarray,
    *,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
) -> ndarray:
    """Sum over windows of images.

    y[n,i,j,c] = sum over a < KH, b < KW of x[n, i*stride + a*dilation - before, j*..., c], cells of x only

    Args:    x: (N, H, W, C) float32|float64.
             kernel_size, stride (None: kernel_size), dilation: a number or one per axis.
             padding: as conv2d_forward's, each less than the window's extent (K-1)*dilation+1.
             ceil: round the output's size up, but drop a last window that would start in the end padding.
    Returns: y (N, OH, OW, C).
    Raises:  ValueError: x has another rank; a window does not fit; a parameter is out of range.
    Source:  LeCun, Bottou, Bengio, Haffner 1998, section II.A (subsampling).
    """
    return _sum_forward("sum_pool2d", 2, x, kernel_size, stride, padding, dilation, ceil)


def sum_pool2d_backward(
    dy: ndarray,
    *,
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
) -> ndarray:
    """Gradient of the sum over windows of images.

    dx[n,p,q,c] = sum of dy[n,i,j,c] over the windows that hold (p, q)

    Args:    dy: (N, OH, OW, C).  x_shape: (N, H, W, C).  Parameters: those of the forward.
    Returns: dx (N, H, W, C).
    Raises:  as the forward; ValueError: dy does not fit.
    """
    return _sum_backward("sum_pool2d", 2, dy, x_shape, kernel_size, stride, padding, dilation, ceil)


def sum_pool1d_forward(
    x: ndarray,
    *,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
) -> ndarray:
    """Sum over windows of signals: sum_pool2d_forward with one spatial axis.

    Args:    x: (N, L, C) float32|float64.  Parameters: as sum_pool2d_forward.
    Returns: y (N, OL, C).
    Raises:  as sum_pool2d_forward.
    """
    return _sum_forward("sum_pool1d", 1, x, kernel_size, stride, padding, dilation, ceil)


def sum_pool1d_backward(
    dy: ndarray,
    *,
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
) -> ndarray:
    """Gradient of the sum over windows of signals: sum_pool2d_backward with one spatial axis.

    Args:    dy: (N, OL, C).  x_shape: (N, L, C).  Parameters: those of the forward.
    Returns: dx (N, L, C).
    Raises:  as sum_pool2d_backward.
    """
    return _sum_backward("sum_pool1d", 1, dy, x_shape, kernel_size, stride, padding, dilation, ceil)


def sum_pool3d_forward(
    x: ndarray,
    *,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
) -> ndarray:
    """Sum over windows of volumes: sum_pool2d_forward with three spatial axes.

    Args:    x: (N, D, H, W, C) float32|float64.  Parameters: as sum_pool2d_forward.
    Returns: y (N, OD, OH, OW, C).
    Raises:  as sum_pool2d_forward.
    """
    return _sum_forward("sum_pool3d", 3, x, kernel_size, stride, padding, dilation, ceil)


def sum_pool3d_backward(
    dy: ndarray,
    *,
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil: bool = False,
) -> ndarray:
    """Gradient of the sum over windows of volumes: sum_pool2d_backward with three spatial axes.

    Args:    dy: (N, OD, OH, OW, C).  x_shape: (N, D, H, W, C).  Parameters: those of the forward.
    Returns: dx (N, D, H, W, C).
    Raises:  as sum_pool2d_backward.
    """
    return _sum_backward("sum_pool3d", 3, dy, x_shape, kernel_size, stride, padding, dilation, ceil)


def _sum_forward(
    op: str,
    rank: int,
    x: ndarray,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    ceil: bool,
) -> ndarray:
    kernel, stride, dilation, pads, beyond, output = _geometry(
        op, rank, x.shape, kernel_size, stride, padding, dilation, ceil
    )
    padded = pad_spatial(pad_spatial(x, pads), beyond)
    return _sum_taps(padded, kernel, stride, dilation, output)


def _sum_taps(
    padded: ndarray,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    output: Sequence[int],
) -> ndarray:
    total = np.zeros((padded.shape[0], *output, padded.shape[-1]), padded.dtype)
    for _, cells in window_taps(kernel, output, stride, dilation):
        total += padded[cells]
    return total


def _sum_backward(
    op: str,
    rank: int,
    dy: ndarray,
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    ceil: bool,
) -> ndarray:
    _check_dy(op, rank, dy, x_shape, kernel_size, stride, padding, dilation, ceil)
    kernel, stride, dilation, pads, beyond, output = _geometry(
        op, rank, x_shape, kernel_size, stride, padding, dilation, ceil
    )
    dpadded = pad_spatial(pad_spatial(np.zeros(x_shape, dy.dtype), pads), beyond)
    for _, cells in window_taps(kernel, output, stride, dilation):
        dpadded[cells] += dy
    return crop_spatial(dpadded, pads, x_shape[1:-1])


def _check_dy(op: str, rank: int, dy: ndarray, x_shape: Sequence[int], *windows: Any) -> None:
    *_, output = _geometry(op, rank, x_shape, *windows)
    expect_shape(op, "dy (N, ..., C)", dy, (x_shape[0], *output, x_shape[-1]))


def _geometry(
    op: str,
    rank: int,
    x_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Padding,
    dilation: Sizes,
    ceil: bool,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Pads, Pads, tuple[int, ...]]:
    """Kernel, stride, dilation and padding per axis, the cells beyond the padding that the last window
    reaches, and the output's spatial size."""
    if len(x_shape) != rank + 2:
        raise ValueError(f"{op}: x must have {rank + 2} axes (N, ..., C); x = {tuple(x_shape)}")
    size = tuple(x_shape[1:-1])
    kernel = per_axis(op, "kernel_size", kernel_size, rank)
    stride = kernel if stride is None else per_axis(op, "stride", stride, rank)
    dilation = per_axis(op, "dilation", dilation, rank)
    pads = resolve_padding(op, padding, size, kernel, stride, dilation)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if any(max(pair) >= e for pair, e in zip(pads, extent, strict=True)):
        raise ValueError(
            f"{op}: padding {pads} must be less than the window {tuple(extent)}; x = {tuple(x_shape)}"
        )
    output = output_size(op, size, kernel, stride, pads, dilation, ceil=ceil)
    beyond = [
        (0, max((o - 1) * s + e - n - before - after, 0))
        for o, s, e, n, (before, after) in zip(output, stride, extent, size, pads, strict=True)
    ]
    return kernel, stride, dilation, pads, beyond, output
