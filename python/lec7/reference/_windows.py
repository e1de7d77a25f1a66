"""Window arithmetic that convolution and pooling share, for any number of spatial axes."""

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np
from numpy import ndarray

Pads = list[tuple[int, int]]
Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]
Taps = list[tuple[tuple[int, ...], tuple[slice, ...]]]


def per_axis(op: str, name: str, value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """A parameter that is one positive number, or one per axis, as one per axis."""
    values = tuple(value) if isinstance(value, Sequence) else (index(value),) * rank
    if len(values) != rank:
        raise ValueError(f"{op}: {name} must be a number or {rank} of them, is {value}")
    if min(values) < 1:
        raise ValueError(f"{op}: {name} must be at least 1, is {value}")
    return values


def resolve_padding(
    op: str,
    padding: Padding,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Pads:
    """Padding in any of its forms as one (before, after) pair per axis.

    "same" makes the output ceil(size / stride), with an odd cell at the end ("same_lower": at the beginning).
    """
    rank = len(size)
    if isinstance(padding, str):
        if padding not in ("valid", "same", "same_lower"):
            raise ValueError(
                f'{op}: padding must be "valid", "same", "same_lower" or numbers, is {padding!r}'
            )
        pads = []
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            total = 0 if padding == "valid" else max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            small, large = total // 2, total - total // 2
            pads.append((large, small) if padding == "same_lower" else (small, large))
        return pads
    values: list[Any] = list(padding) if isinstance(padding, Sequence) else [index(padding)] * rank
    if len(values) != rank:
        raise ValueError(f"{op}: padding must be a number, {rank} numbers or {rank} pairs, is {padding}")
    pads = [(v[0], v[1]) if isinstance(v, Sequence) else (index(v), index(v)) for v in values]
    if min(min(pair) for pair in pads) < 0:
        raise ValueError(f"{op}: padding must not be negative, is {padding}")
    return pads


def output_size(
    op: str,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Pads,
    dilation: Sequence[int],
    *,
    ceil: bool = False,
) -> tuple[int, ...]:
    """floor((size + before + after - extent) / stride) + 1 per axis, extent = (kernel - 1) * dilation + 1.

    With ceil the division rounds up, unless the last window would then start in the padding at the end.
    """
    output = []
    for n, k, s, (before, after), d in zip(size, kernel, stride, pads, dilation, strict=True):
        room = n + before + after - (k - 1) * d - 1
        count = (-(-room // s) if ceil else room // s) + 1
        if ceil and (count - 1) * s >= n + before:
            count -= 1
        if n < 1 or count < 1:
            raise ValueError(
                f"{op}: a window of {(k - 1) * d + 1} does not fit {n} cells with padding {before} + {after};"
                f" spatial size {tuple(size)}, kernel {tuple(kernel)}, dilation {tuple(dilation)}"
            )
        output.append(count)
    return tuple(output)


def window_taps(
    kernel: Sequence[int], output: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Taps:
    """Each tap of the kernel, and the cells of a padded (N, ..., C) array that meet it: one per output."""
    taps = []
    for tap in np.ndindex(*kernel):
        axes = zip(tap, output, stride, dilation, strict=True)
        spatial = (slice(i * d, i * d + (o - 1) * s + 1, s) for i, o, s, d in axes)
        taps.append((tap, (slice(None), *spatial, slice(None))))
    return taps


def pad_spatial(x: ndarray, pads: Pads, value: float = 0) -> ndarray:
    """x (N, ..., C) with `value` around its spatial axes."""
    return np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def crop_spatial(x: ndarray, pads: Pads, size: Sequence[int]) -> ndarray:
    """The inverse of pad_spatial."""
    inner = (slice(before, before + n) for (before, _), n in zip(pads, size, strict=True))
    return np.ascontiguousarray(x[(slice(None), *inner, slice(None))])
