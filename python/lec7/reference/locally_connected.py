"""Locally connected layers: a convolution with filters of its own at each position."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy import ndarray

from ._checks import delivers, expect_shape, wanted
from ._windows import output_size, per_axis, window_taps
from .conv import Gradients


def locally_connected2d_forward(
    x: ndarray, weight: ndarray, bias: ndarray | None = None, *, stride: int | Sequence[int] = 1
) -> ndarray:
    """Locally connected layer on images: conv2d without padding, whose filters are not shared.

    y[n,i,j,f] = bias[i,j,f] + sum_{a,b,c} x[n, i*stride + a, j*stride + b, c] * weight[i,j,a,b,c,f]

    Args:    x: (N, H, W, C) float32|float64.  weight: (OH, OW, KH, KW, C, F).  bias: (OH, OW, F) or None.
             stride: a number or one per axis.
    Returns: y (N, OH, OW, F), OH = floor((H - KH) / stride) + 1.
    Raises:  ValueError: shapes do not fit; the filter does not fit the image; a parameter is out of range.
    Source:  LeCun 1989, Generalization and network design strategies; Taigman, Yang, Ranzato, Wolf 2014,
             DeepFace, section 3.
    """
    stride = _geometry(x, weight, stride)
    output = weight.shape[:2]
    y = np.zeros((x.shape[0], *output, weight.shape[-1]), x.dtype)
    for (a, b), cells in window_taps(weight.shape[2:4], output, stride, (1, 1)):
        y += np.einsum("nijc,ijcf->nijf", x[cells], weight[:, :, a, b])
    if bias is not None:
        expect_shape("locally_connected2d", "bias (OH, OW, F)", bias, y.shape[1:])
        y += bias
    return y


@delivers("locally_connected2d", "dx", "dweight", "dbias")
def locally_connected2d_backward(
    dy: ndarray,
    x: ndarray,
    weight: ndarray,
    *,
    stride: int | Sequence[int] = 1,
    needs: Collection[str] | None = None,
) -> Gradients:
    """Gradients of the locally connected layer.

    dx[n,p,q,c] = sum of dy[n,i,j,f] * weight[i,j,a,b,c,f] where i*stride + a = p, j*stride + b = q
    dweight[i,j,a,b,c,f] = sum_n x[n, i*stride + a, j*stride + b, c] * dy[n,i,j,f]
    dbias[i,j,f] = sum_n dy[n,i,j,f]

    Args:    dy: (N, OH, OW, F).  x, weight and parameters: those of the forward.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx (N, H, W, C), dweight (OH, OW, KH, KW, C, F), dbias (OH, OW, F); None for those not wanted.
    Raises:  as the forward; ValueError: dy does not fit; unknown gradient name.
    Source:  Taigman, Yang, Ranzato, Wolf 2014, section 3.
    """
    need_x, need_weight, need_bias = wanted("locally_connected2d", needs, "dx", "dweight", "dbias")
    stride = _geometry(x, weight, stride)
    output = weight.shape[:2]
    expect_shape("locally_connected2d", "dy (N, OH, OW, F)", dy, (x.shape[0], *output, weight.shape[-1]))
    dx = np.zeros_like(x) if need_x else None
    dweight = np.zeros_like(weight) if need_weight else None
    for (a, b), cells in window_taps(weight.shape[2:4], output, stride, (1, 1)):
        if dx is not None:
            dx[cells] += np.einsum("nijf,ijcf->nijc", dy, weight[:, :, a, b])
        if dweight is not None:
            dweight[:, :, a, b] = np.einsum("nijc,nijf->ijcf", x[cells], dy)
    return dx, dweight, dy.sum(axis=0) if need_bias else None


def _geometry(x: ndarray, weight: ndarray, stride: int | Sequence[int]) -> tuple[int, ...]:
    """Stride per axis, once the shapes fit."""
    op = "locally_connected2d"
    shapes = f"x (N, H, W, C) = {x.shape}, weight (OH, OW, KH, KW, C, F) = {weight.shape}"
    if x.ndim != 4 or weight.ndim != 6:
        raise ValueError(f"{op}: x must have 4 axes and weight 6; {shapes}")
    if min(weight.shape[-2:]) < 1:
        raise ValueError(f"{op}: there must be at least one channel and one filter; {shapes}")
    if weight.shape[4] != x.shape[3]:
        raise ValueError(f"{op}: filters have {weight.shape[4]} input channels, x has {x.shape[3]}; {shapes}")
    stride = per_axis(op, "stride", stride, 2)
    kernel = per_axis(op, "kernel size", weight.shape[2:4], 2)
    output = output_size(op, x.shape[1:3], kernel, stride, [(0, 0), (0, 0)], (1, 1))
    if weight.shape[:2] != output:
        raise ValueError(
            f"{op}: there are filters for {weight.shape[:2]} positions, the windows have {output}; {shapes}"
        )
    return stride
