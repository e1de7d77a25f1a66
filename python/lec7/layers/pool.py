from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from lec7 import ops
from lec7.arrays import Array
from lec7.layers.base import Layer
from lec7.layers.conv import Padding


class _Pool(Layer):
    """Options as those of the op of the same name."""

    dims: ClassVar[int]
    kind: ClassVar[str]

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        ceil: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self._options = {
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "ceil": ceil,
            **options,
        }

    def _op(self, direction: str) -> Any:
        return getattr(ops, f"{self.kind}_pool{self.dims}d_{direction}")

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        return self._op("forward")(x, **self._options), x.shape

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        return self._op("backward")(dy, x_shape=cache, **self._options) if needs_dx else None

    def flops(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        size = self.kernel_size
        return math.prod(y_shape) * (size**self.dims if isinstance(size, int) else math.prod(size))


class _MaxPool(_Pool):
    kind = "max"

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        y, argmax = self._op("forward")(x, **self._options)
        return y, (argmax, x.shape)

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        argmax, x_shape = cache
        return self._op("backward")(dy, argmax, x_shape=x_shape) if needs_dx else None


class _AvgPool(_Pool):
    kind = "avg"

    def __init__(
        self, kernel_size: int | Sequence[int], *, count_padding: bool = False, **options: Any
    ) -> None:
        super().__init__(kernel_size, count_padding=count_padding, **options)


class _SumPool(_Pool):
    kind = "sum"


class MaxPool1d(_MaxPool):
    """The largest value of each window: x (N, L, C), y (N, OL, C)."""

    dims = 1


class MaxPool2d(_MaxPool):
    """The largest value of each window: x (N, H, W, C), y (N, OH, OW, C)."""

    dims = 2


class MaxPool3d(_MaxPool):
    """The largest value of each window: x (N, D, H, W, C)."""

    dims = 3


class AvgPool1d(_AvgPool):
    """The mean of each window: x (N, L, C), y (N, OL, C)."""

    dims = 1


class AvgPool2d(_AvgPool):
    """The mean of each window: x (N, H, W, C), y (N, OH, OW, C)."""

    dims = 2


class AvgPool3d(_AvgPool):
    """The mean of each window: x (N, D, H, W, C)."""

    dims = 3


class SumPool1d(_SumPool):
    """The sum of each window: x (N, L, C), y (N, OL, C)."""

    dims = 1


class SumPool2d(_SumPool):
    """The sum of each window: x (N, H, W, C), y (N, OH, OW, C)."""

    dims = 2


class SumPool3d(_SumPool):
    """The sum of each window: x (N, D, H, W, C)."""

    dims = 3


class _GlobalPool(Layer):
    pools: ClassVar[tuple[type[_Pool], ...]]

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        dims = x.ndim - 2
        if not 1 <= dims <= 3:
            raise ValueError(
                f"{type(self).__name__}: x is (N, 1 to 3 axes of space, C), its shape is {x.shape}"
            )
        pool = self.pools[dims - 1](x.shape[1:-1])
        y, cache = pool.forward(x)
        return y.reshape(x.shape[0], x.shape[-1]), (pool, cache, y.shape)

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        pool, pool_cache, y_shape = cache
        return pool.backward(dy.reshape(y_shape), pool_cache, needs_dx=needs_dx)

    def flops(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        return math.prod(x_shape)


class GlobalAvgPool(_GlobalPool):
    """The mean over all of space: x (N, ..., C), y (N, C).

    Source:  Lin, Chen, Yan 2014, section 3.2.
    """

    pools = (AvgPool1d, AvgPool2d, AvgPool3d)


class GlobalMaxPool(_GlobalPool):
    """The largest value over all of space: x (N, ..., C), y (N, C)."""

    pools = (MaxPool1d, MaxPool2d, MaxPool3d)
