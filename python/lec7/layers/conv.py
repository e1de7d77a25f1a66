from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from lec7 import ops
from lec7.arrays import Array
from lec7.initializers import Initializer, he_uniform
from lec7.layers.base import Layer

Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]


def kernel_axes(
    layer: Layer,
    kernel_size: int | Sequence[int],
    dims: int,
    in_channels: int,
    out_channels: int,
    groups: int,
) -> tuple[int, ...]:
    """The kernel's size along each axis, once the sizes of a layer's filters fit."""
    kernel = (kernel_size,) * dims if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(kernel) != dims:
        raise ValueError(f"{type(layer).__name__}: kernel_size has {dims} axes, got {kernel}")
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(
            f"{type(layer).__name__}: groups divides both channel counts, got groups = {groups}, "
            f"in_channels = {in_channels}, out_channels = {out_channels}"
        )
    return kernel


class ConvLayer(Layer):
    """The passes of a convolution, transposed or not: ops named by ``kind`` and ``dims``."""

    kind: ClassVar[str]
    dims: ClassVar[int]
    _options: dict[str, Any]

    def _op(self, direction: str) -> Any:
        return partial(getattr(ops, f"{self.kind}{self.dims}d_{direction}"), **self._options)

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        y = self._op("forward")(x, self.params["weight"], self.params.get("bias"))
        return y, (x, {"y": y} if self._options.get("activation") else {})

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        x, saved = cache
        needs = self.wanted(*(["dx"] if needs_dx else []))
        dx, dweight, dbias = self._op("backward")(dy, x, self.params["weight"], needs=needs, **saved)
        self.accumulate(weight=dweight, bias=dbias)
        return dx


class _Conv(ConvLayer):
    kind = "conv"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        rng: np.random.Generator,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        flip: bool = False,
        activation: str | None = None,
        bias: bool = True,
        init: Initializer = he_uniform,
    ) -> None:
        super().__init__()
        kernel = kernel_axes(self, kernel_size, self.dims, in_channels, out_channels, groups)
        self._options = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "flip": flip,
            "activation": activation,
        }
        self.add_parameter("weight", init((*kernel, in_channels // groups, out_channels), rng))
        if bias:
            self.add_parameter("bias", np.zeros(out_channels, np.float32))

    def flops(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        return 2 * math.prod(y_shape) * math.prod(self.params["weight"].shape[:-1])


class Conv1d(_Conv):
    """Convolution over signals: x (N, L, C), weight (KL, C/groups, F), y (N, OL, F)."""

    dims = 1


class Conv2d(_Conv):
    """Convolution over images: x (N, H, W, C), weight (KH, KW, C/groups, F), y (N, OH, OW, F).

    Options as in ``ops.conv2d_forward``: ``padding`` is a number, one per axis, a (before, after) pair
    per axis, "valid", "same" or "same_lower"; ``activation`` is fused. The weight starts as He's, the
    bias as 0.
    """

    dims = 2


class Conv3d(_Conv):
    """Convolution over volumes: x (N, D, H, W, C), weight (KD, KH, KW, C/groups, F), y (N, OD, OH, OW, F)."""

    dims = 3
