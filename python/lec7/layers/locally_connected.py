from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lec7 import ops
from lec7.arrays import Array
from lec7.initializers import Initializer, he_uniform
from lec7.layers.base import Layer
from lec7.layers.conv import kernel_axes


class LocallyConnected2d(Layer):
    """A convolution over images with filters of its own at each position.

    x (N, H, W, C) with (H, W) = ``input_size``, weight (OH, OW, KH, KW, C, F), bias (OH, OW, F),
    y (N, OH, OW, F); no padding. Each position's filters start as a convolution's, the bias as 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        input_size: Sequence[int],
        rng: np.random.Generator,
        stride: int | Sequence[int] = 1,
        bias: bool = True,
        init: Initializer = he_uniform,
    ) -> None:
        super().__init__()
        kernel = kernel_axes(self, kernel_size, 2, in_channels, out_channels, 1)
        strides = (stride,) * 2 if isinstance(stride, int) else tuple(stride)
        if len(input_size) != 2 or len(strides) != 2 or min(strides) < 1:
            raise ValueError(
                f"LocallyConnected2d: input_size and stride have 2 axes, strides are at least 1, "
                f"got input_size = {tuple(input_size)}, stride = {stride}"
            )
        output = [(n - k) // s + 1 for n, k, s in zip(input_size, kernel, strides, strict=True)]
        if min(output) < 1:
            raise ValueError(
                f"LocallyConnected2d: the kernel {kernel} does not fit the input_size {tuple(input_size)}"
            )
        self._stride = strides
        # One draw for each position: the initializers would count the positions as taps.
        positions = [init((*kernel, in_channels, out_channels), rng) for _ in range(math.prod(output))]
        weight = np.stack(positions).reshape(*output, *kernel, in_channels, out_channels)
        self.add_parameter("weight", weight)
        if bias:
            self.add_parameter("bias", np.zeros((*output, out_channels), np.float32))

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        weight, bias = self.params["weight"], self.params.get("bias")
        return ops.locally_connected2d_forward(x, weight, bias, stride=self._stride), x

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        needs = self.wanted(*(["dx"] if needs_dx else []))
        dx, dweight, dbias = ops.locally_connected2d_backward(
            dy, cache, self.params["weight"], stride=self._stride, needs=needs
        )
        self.accumulate(weight=dweight, bias=dbias)
        return dx

    def flops(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        return 2 * x_shape[0] * self.params["weight"].size
