from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from lec7 import ops
from lec7.arrays import Array
from lec7.layers.base import Layer


class _Activation(Layer):
    _forward: ClassVar[Callable[..., Array]]
    _backward: ClassVar[Callable[..., Array]]

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        y = type(self)._forward(x)
        return y, y

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        return type(self)._backward(dy, cache) if needs_dx else None

    def flops(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        return math.prod(y_shape)


class Relu(_Activation):
    """y = max(x, 0), any shape."""

    _forward = staticmethod(ops.relu_forward)
    _backward = staticmethod(ops.relu_backward)


class Sigmoid(_Activation):
    """y = 1 / (1 + exp(-x)), any shape."""

    _forward = staticmethod(ops.sigmoid_forward)
    _backward = staticmethod(ops.sigmoid_backward)


class Tanh(_Activation):
    """y = tanh(x), any shape."""

    _forward = staticmethod(ops.tanh_forward)
    _backward = staticmethod(ops.tanh_backward)
