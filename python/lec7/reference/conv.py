"""Convolution of signals, images and volumes: one matrix product for each tap of the filter."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy import ndarray

from ._checks import delivers, expect_shape, wanted
from ._windows import (
    Padding,
    Pads,
    Taps,
    crop_spatial,
    output_size,
    pad_spatial,
    per_axis,
    resolve_padding,
    window_taps,
)
from .activation import activate, activate_backward

Gradients = tuple[ndarray | None, ndarray | None, ndarray | None]


def conv2d_forward(
    x: ndarray,
    weight: ndarray,
    bias: ndarray | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    flip: bool = False,
    activation: str | None = None,
) -> ndarray:
    """Convolution of images (cross-correlation; with flip=True true convolution).

    z[n,i,j,f] = bias[f] + sum_{a,b,c} x[n, i*stride + a*dilation - before, j*..., c] * weight[a,b,c,f]
    y = activation(z), with x = 0 outside; flip turns the filter by 180 degrees: weight[KH-1-a, KW-1-b, c, f]
    in place of weight[a,b,c,f]. The filters of group g (F/groups in a row) see the channels of group g
    (C/groups in a row).

    Args:    x: (N, H, W, C) float32|float64.  weight: (KH, KW, C/groups, F).  bias: (F,) or None.
             stride, dilation: a number or one per axis.
             padding: a number, one per axis, a (before, after) pair per axis, "valid" (0), "same" (the output
             is ceil(size/stride), an odd cell at the end) or "same_lower" (the odd cell at the beginning).
             groups: divides C and F.  activation: None, "relu", "sigmoid" or "tanh".
    Returns: y (N, OH, OW, F), OH = floor((H + before + after - (KH-1)*dilation - 1) / stride) + 1.
    Raises:  ValueError: shapes do not fit; the filter does not fit the padded image; a parameter is out of
             range.
    Source:  LeCun, Bottou, Bengio, Haffner 1998, section II.A; Dumoulin, Visin 2016, A guide to convolution
             arithmetic; Yu, Koltun 2016 (dilation); Krizhevsky, Sutskever, Hinton 2012, section 3.5 (groups).
    """
    return _forward("conv2d", 2, x, weight, bias, stride, padding, dilation, groups, flip, activation)


@delivers("conv2d", "dx", "dweight", "dbias")
def conv2d_backward(
    dy: ndarray,
    x: ndarray,
    weight: ndarray,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    flip: bool = False,
    activation: str | None = None,
    y: ndarray | None = None,
    needs: Collection[str] | None = None,
) -> Gradients:
    """Gradients of the convolution of images.

    dz = dy * activation'(y)
    dx[n,p,q,c] = sum of dz[n,i,j,f] * weight[a,b,c,f] where i*stride + a*dilation - before = p (j, b: q)
    dweight[a,b,c,f] = sum_{n,i,j} x[n, i*stride + a*dilation - before, j*..., c] * dz[n,i,j,f]
    dbias[f] = sum_{n,i,j} dz[n,i,j,f]

    Args:    dy: (N, OH, OW, F).  x, weight and parameters: those of the forward.
             y: (N, OH, OW, F), the forward's result, required with an activation.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx (N, H, W, C), dweight (KH, KW, C/groups, F), dbias (F,); None for those not wanted.
    Raises:  as the forward; ValueError: dy does not fit; y is missing; unknown gradient name.
    Source:  LeCun et al. 1989, Backpropagation applied to handwritten zip code recognition.
    """
    return _backward(
        "conv2d", 2, dy, x, weight, stride, padding, dilation, groups, flip, activation, y, needs
    )


def conv1d_forward(
    x: ndarray,
    weight: ndarray,
    bias: ndarray | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    flip: bool = False,
    activation: str | None = None,
) -> ndarray:
    """Convolution of signals: conv2d_forward with one spatial axis.

    y[n,i,f] = activation(bias[f] + sum_{a,c} x[n, i*stride + a*dilation - before, c] * weight[a,c,f])

    Args:    x: (N, L, C) float32|float64.  weight: (KL, C/groups, F).  bias: (F,) or None.
             Parameters: as conv2d_forward.
    Returns: y (N, OL, F).
    Raises:  as conv2d_forward.
    Source:  Waibel et al. 1989, Phoneme recognition using time-delay neural networks.
    """
    return _forward("conv1d", 1, x, weight, bias, stride, padding, dilation, groups, flip, activation)


@delivers("conv1d", "dx", "dweight", "dbias")
def conv1d_backward(
    dy: ndarray,
    x: ndarray,
    weight: ndarray,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    flip: bool = False,
    activation: str | None = None,
    y: ndarray | None = None,
    needs: Collection[str] | None = None,
) -> Gradients:
    """Gradients of the convolution of signals: conv2d_backward with one spatial axis.

    Args:    dy: (N, OL, F).  x, weight and parameters: those of the forward.
             y: (N, OL, F), the forward's result, required with an activation.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx (N, L, C), dweight (KL, C/groups, F), dbias (F,); None for those not wanted.
    Raises:  as conv2d_backward.
    """
    return _backward(
        "conv1d", 1, dy, x, weight, stride, padding, dilation, groups, flip, activation, y, needs
    )


def conv3d_forward(
    x: ndarray,
    weight: ndarray,
    bias: ndarray | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    flip: bool = False,
    activation: str | None = None,
) -> ndarray:
    """Convolution of volumes: conv2d_forward with three spatial axes.

    y[n,h,i,j,f] = activation(bias[f] + sum_{e,a,b,c} x[n, h*stride + e*dilation - before, i*..., j*..., c]
                                                     * weight[e,a,b,c,f])

    Args:    x: (N, D, H, W, C) float32|float64.  weight: (KD, KH, KW, C/groups, F).  bias: (F,) or None.
             Parameters: as conv2d_forward.
    Returns: y (N, OD, OH, OW, F).
    Raises:  as conv2d_forward.
    Source:  Ji, Xu, Yang, Yu 2013, 3D convolutional neural networks for human action recognition.
    """
    return _forward("conv3d", 3, x, weight, bias, stride, padding, dilation, groups, flip, activation)


@delivers("conv3d", "dx", "dweight", "dbias")
def conv3d_backward(
    dy: ndarray,
    x: ndarray,
    weight: ndarray,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    flip: bool = False,
    activation: str | None = None,
    y: ndarray | None = None,
    needs: Collection[str] | None = None,
) -> Gradients:
    """Gradients of the convolution of volumes: conv2d_backward with three spatial axes.

    Args:    dy: (N, OD, OH, OW, F).  x, weight and parameters: those of the forward.
             y: (N, OD, OH, OW, F), the forward's result, required with an activation.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx (N, D, H, W, C), dweight (KD, KH, KW, C/groups, F), dbias (F,); None for those not wanted.
    Raises:  as conv2d_backward.
    """
    return _backward(
        "conv3d", 3, dy, x, weight, stride, padding, dilation, groups, flip, activation, y, needs
    )


def _forward(
    op: str,
    rank: int,
    x: ndarray,
    weight: ndarray,
    bias: ndarray | None,
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
    flip: bool,
    activation: str | None,
) -> ndarray:
    taps, pads, output = _geometry(op, rank, x, weight, stride, padding, dilation, groups)
    weight = _rotate(weight, rank) if flip else weight
    padded = pad_spatial(x, pads)
    y = np.zeros((x.shape[0], *output, weight.shape[-1]), x.dtype)
    for tap, cells in taps:
        y += by_group(np.matmul, padded[cells], weight[tap], groups)
    if bias is not None:
        expect_shape(op, "bias (F,)", bias, weight.shape[-1:])
        y += bias
    return activate(op, y, activation)


def _backward(
    op: str,
    rank: int,
    dy: ndarray,
    x: ndarray,
    weight: ndarray,
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
    flip: bool,
    activation: str | None,
    y: ndarray | None,
    needs: Collection[str] | None,
) -> Gradients:
    need_x, need_weight, need_bias = wanted(op, needs, "dx", "dweight", "dbias")
    taps, pads, output = _geometry(op, rank, x, weight, stride, padding, dilation, groups)
    expect_shape(op, "dy (N, ..., F)", dy, (x.shape[0], *output, weight.shape[-1]))
    weight = _rotate(weight, rank) if flip else weight
    dz = activate_backward(op, dy, y, activation)
    padded = pad_spatial(x, pads)
    dx = dweight = dbias = None
    if need_x:
        dpadded = np.zeros_like(padded)
        for tap, cells in taps:
            dpadded[cells] += by_group(lambda d, w: d @ w.T, dz, weight[tap], groups)
        dx = crop_spatial(dpadded, pads, x.shape[1:-1])
    if need_weight:
        dweight = np.zeros_like(weight)
        for tap, cells in taps:
            dweight[tap] = by_group(sum_of_outer_products, padded[cells], dz, groups)
        dweight = _rotate(dweight, rank) if flip else dweight
    if need_bias:
        dbias = dz.reshape(-1, dz.shape[-1]).sum(axis=0)
    return dx, dweight, dbias


def by_group(product: Callable[[ndarray, ndarray], ndarray], a: ndarray, b: ndarray, groups: int) -> ndarray:
    """product(a, b) for each group of their last axes, side by side."""
    pairs = zip(np.split(a, groups, axis=-1), np.split(b, groups, axis=-1), strict=True)
    return np.concatenate([product(a_g, b_g) for a_g, b_g in pairs], axis=-1)


def sum_of_outer_products(cells: ndarray, dz: ndarray) -> ndarray:
    return cells.reshape(-1, cells.shape[-1]).T @ dz.reshape(-1, dz.shape[-1])


def _rotate(weight: ndarray, rank: int) -> ndarray:
    """The filter turned by 180 degrees in space."""
    return np.ascontiguousarray(np.flip(weight, axis=tuple(range(rank))))


def _geometry(
    op: str,
    rank: int,
    x: ndarray,
    weight: ndarray,
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
) -> tuple[Taps, Pads, tuple[int, ...]]:
    """The taps of the filter, the padding per axis, and the output's spatial size."""
    shapes = f"x (N, ..., C) = {x.shape}, weight (K..., C/groups, F) = {weight.shape}"
    if x.ndim != rank + 2 or weight.ndim != rank + 2:
        raise ValueError(f"{op}: x and weight must have {rank + 2} axes; {shapes}")
    channels, filters = x.shape[-1], weight.shape[-1]
    if groups < 1 or channels % groups or filters % groups:
        raise ValueError(
            f"{op}: groups {groups} must divide channels {channels} and filters {filters}; {shapes}"
        )
    if weight.shape[-2] * groups != channels:
        raise ValueError(
            f"{op}: filters have {weight.shape[-2] * groups} input channels, x has {channels}; {shapes}"
        )
    kernel, size = weight.shape[:rank], x.shape[1:-1]
    per_axis(op, "kernel size", kernel, rank)
    stride, dilation = per_axis(op, "stride", stride, rank), per_axis(op, "dilation", dilation, rank)
    pads = resolve_padding(op, padding, size, kernel, stride, dilation)
    output = output_size(op, size, kernel, stride, pads, dilation)
    return window_taps(kernel, output, stride, dilation), pads, output
