"""Transposed convolution: each cell of x lays its filter, weighted, on the result."""

from collections.abc import Collection, Sequence
from operator import index

import numpy as np
from numpy import ndarray

from ._checks import delivers, expect_shape, wanted
from ._windows import Padding, Pads, Taps, crop_spatial, pad_spatial, per_axis, resolve_padding, window_taps
from .conv import Gradients, by_group, sum_of_outer_products


def conv_transpose2d_forward(
    x: ndarray,
    weight: ndarray,
    bias: ndarray | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
) -> ndarray:
    """Transposed convolution of images: what dx is to conv2d, as an op of its own; it makes images larger.

    y[n,p,q,f] = bias[f] + sum of x[n,i,j,c] * weight[a,b,f,c] where i*stride + a - before = p (j, b: q)

    The weight is the array of the convolution from y to x, with that convolution's C in the place of F:
    conv_transpose2d_forward(x, weight) is dx of conv2d_backward(x, y, weight), for the same stride, padding
    and groups. Several sizes of y give that convolution an output like x; output_padding chooses among them.
    The filters of group g (F/groups in a row) see the channels of group g (C/groups in a row).

    Args:    x: (N, H, W, C) float32|float64.  weight: (KH, KW, F/groups, C).  bias: (F,) or None.
             stride: a number or one per axis.
             padding: cells cut off y: a number, one per axis, a (before, after) pair per axis, "valid" (0),
             "same" or "same_lower" (OH is H * stride: that of conv2d on y).
             output_padding: cells more at the end, less than the stride; a number or one per axis.
             groups: divides C.
    Returns: y (N, OH, OW, F), OH = (H-1)*stride - before - after + KH + output_padding.
    Raises:  ValueError: shapes do not fit; the padding leaves nothing; a parameter is out of range;
             output_padding with "same".
    Source:  Dumoulin, Visin 2016, A guide to convolution arithmetic, section 4; Zeiler et al. 2010.
    """
    return _forward("conv_transpose2d", 2, x, weight, bias, stride, padding, output_padding, groups)


@delivers("conv_transpose2d", "dx", "dweight", "dbias")
def conv_transpose2d_backward(
    dy: ndarray,
    x: ndarray,
    weight: ndarray,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    needs: Collection[str] | None = None,
) -> Gradients:
    """Gradients of the transposed convolution of images.

    dx[n,i,j,c] = sum_{a,b,f} dy[n, i*stride + a - before, j*..., f] * weight[a,b,f,c], the convolution of dy
    dweight[a,b,f,c] = sum_{n,i,j} dy[n, i*stride + a - before, j*..., f] * x[n,i,j,c]
    dbias[f] = sum_{n,p,q} dy[n,p,q,f]

    Args:    dy: (N, OH, OW, F).  x, weight and parameters: those of the forward.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx (N, H, W, C), dweight (KH, KW, F/groups, C), dbias (F,); None for those not wanted.
    Raises:  as the forward; ValueError: dy does not fit; unknown gradient name.
    Source:  Dumoulin, Visin 2016, section 4.
    """
    return _backward("conv_transpose2d", 2, dy, x, weight, stride, padding, output_padding, groups, needs)


def conv_transpose1d_forward(
    x: ndarray,
    weight: ndarray,
    bias: ndarray | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
) -> ndarray:
    """Transposed convolution of signals: conv_transpose2d_forward with one spatial axis.

    y[n,p,f] = bias[f] + sum of x[n,i,c] * weight[a,f,c] where i*stride + a - before = p

    Args:    x: (N, L, C) float32|float64.  weight: (KL, F/groups, C).  bias: (F,) or None.
             Parameters: as conv_transpose2d_forward.
    Returns: y (N, OL, F), OL = (L-1)*stride - before - after + KL + output_padding.
    Raises:  as conv_transpose2d_forward.
    """
    return _forward("conv_transpose1d", 1, x, weight, bias, stride, padding, output_padding, groups)


@delivers("conv_transpose1d", "dx", "dweight", "dbias")
def conv_transpose1d_backward(
    dy: ndarray,
    x: ndarray,
    weight: ndarray,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    needs: Collection[str] | None = None,
) -> Gradients:
    """Gradients of the transposed convolution of signals: conv_transpose2d_backward with one spatial axis.

    Args:    dy: (N, OL, F).  x, weight and parameters: those of the forward.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx (N, L, C), dweight (KL, F/groups, C), dbias (F,); None for those not wanted.
    Raises:  as conv_transpose2d_backward.
    """
    return _backward("conv_transpose1d", 1, dy, x, weight, stride, padding, output_padding, groups, needs)


def _forward(
    op: str,
    rank: int,
    x: ndarray,
    weight: ndarray,
    bias: ndarray | None,
    stride: int | Sequence[int],
    padding: Padding,
    output_padding: int | Sequence[int],
    groups: int,
) -> ndarray:
    taps, pads, output = _geometry(op, rank, x, weight, stride, padding, output_padding, groups)
    filters = weight.shape[-2] * groups
    padded = pad_spatial(np.zeros((x.shape[0], *output, filters), x.dtype), pads)
    for tap, cells in taps:
        padded[cells] += by_group(lambda a, w: a @ w.T, x, weight[tap], groups)
    y = crop_spatial(padded, pads, output)
    if bias is not None:
        expect_shape(op, "bias (F,)", bias, (filters,))
        y += bias
    return y


def _backward(
    op: str,
    rank: int,
    dy: ndarray,
    x: ndarray,
    weight: ndarray,
    stride: int | Sequence[int],
    padding: Padding,
    output_padding: int | Sequence[int],
    groups: int,
    needs: Collection[str] | None,
) -> Gradients:
    need_x, need_weight, need_bias = wanted(op, needs, "dx", "dweight", "dbias")
    taps, pads, output = _geometry(op, rank, x, weight, stride, padding, output_padding, groups)
    expect_shape(op, "dy (N, ..., F)", dy, (x.shape[0], *output, weight.shape[-2] * groups))
    padded = pad_spatial(dy, pads)
    dx = dweight = dbias = None
    if need_x:
        dx = np.zeros_like(x)
        for tap, cells in taps:
            dx += by_group(np.matmul, padded[cells], weight[tap], groups)
    if need_weight:
        dweight = np.zeros_like(weight)
        for tap, cells in taps:
            dweight[tap] = by_group(sum_of_outer_products, padded[cells], x, groups)
    if need_bias:
        dbias = dy.reshape(-1, dy.shape[-1]).sum(axis=0)
    return dx, dweight, dbias


def _geometry(
    op: str,
    rank: int,
    x: ndarray,
    weight: ndarray,
    stride: int | Sequence[int],
    padding: Padding,
    output_padding: int | Sequence[int],
    groups: int,
) -> tuple[Taps, Pads, tuple[int, ...]]:
    """The taps of the filter, with the cells of y for each of x; the padding per axis; y's spatial size."""
    shapes = f"x (N, ..., C) = {x.shape}, weight (K..., F/groups, C) = {weight.shape}"
    if x.ndim != rank + 2 or weight.ndim != rank + 2:
        raise ValueError(f"{op}: x and weight must have {rank + 2} axes; {shapes}")
    if min(weight.shape[-2:]) < 1:
        raise ValueError(f"{op}: there must be at least one channel and one filter; {shapes}")
    if weight.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"{op}: filters have {weight.shape[-1]} input channels, x has {x.shape[-1]}; {shapes}"
        )
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(f"{op}: groups {groups} must divide channels {x.shape[-1]}; {shapes}")
    kernel, size = weight.shape[:rank], x.shape[1:-1]
    if min(*kernel, *size) < 1:
        raise ValueError(f"{op}: x and the filters must have at least one cell along each axis; {shapes}")
    stride = per_axis(op, "stride", stride, rank)
    more = tuple(output_padding) if isinstance(output_padding, Sequence) else (index(output_padding),) * rank
    if len(more) != rank or any(m < 0 or m >= s for m, s in zip(more, stride, strict=True)):
        raise ValueError(
            f"{op}: output_padding must be a number or {rank} of them, not negative and less than the stride"
            f" {stride}, is {output_padding}; {shapes}"
        )
    same = isinstance(padding, str) and padding != "valid"
    if same and any(more):
        raise ValueError(f"{op}: padding {padding!r} leaves no choice of output_padding {output_padding}")
    upsampled = tuple(n * s for n, s in zip(size, stride, strict=True))
    pads = resolve_padding(op, padding, upsampled, kernel, stride, (1,) * rank)
    taps = window_taps(kernel, size, stride, (1,) * rank)
    if same:
        return taps, pads, upsampled
    output = tuple(
        (n - 1) * s - before - after + k + m
        for n, s, (before, after), k, m in zip(size, stride, pads, kernel, more, strict=True)
    )
    if min(output) < 1:
        raise ValueError(f"{op}: padding {padding} leaves nothing of the output, {output}; {shapes}")
    return taps, pads, output
