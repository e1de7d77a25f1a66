from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lec7.initializers import Initializer, he_uniform
from lec7.layers.conv import ConvLayer, Padding, kernel_axes


class _ConvTranspose(ConvLayer):
    kind = "conv_transpose"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        rng: np.random.Generator,
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        init: Initializer = he_uniform,
    ) -> None:
        super().__init__()
        kernel = kernel_axes(self, kernel_size, self.dims, in_channels, out_channels, groups)
        self._options = {
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "groups": groups,
        }
        # The initializers take (K..., inputs, outputs) = (K..., C/groups, F), of which each group is turned.
        drawn = init((*kernel, in_channels // groups, out_channels), rng)
        drawn = drawn.reshape(*kernel, in_channels // groups, groups, out_channels // groups)
        weight = drawn.swapaxes(-1, -3).reshape(*kernel, out_channels // groups, in_channels)
        self.add_parameter("weight", np.ascontiguousarray(weight))
        if bias:
            self.add_parameter("bias", np.zeros(out_channels, np.float32))

    def flops(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        return 2 * math.prod(x_shape) * math.prod(self.params["weight"].shape[:-1])


class ConvTranspose1d(_ConvTranspose):
    """Transposed convolution over signals: x (N, L, C), weight (KL, F/groups, C), y (N, OL, F)."""

    dims = 1


class ConvTranspose2d(_ConvTranspose):
    """Transposed convolution over images: x (N, H, W, C), weight (KH, KW, F/groups, C), y (N, OH, OW, F).

    Options as in ``ops.conv_transpose2d_forward``. The weight starts as He's for KH*KW*C/groups inputs (with
    a stride fewer of them meet in a cell of y), the bias as 0.
    """

    dims = 2
