from __future__ import annotations

import math
from typing import Any

import numpy as np

from lec7 import ops
from lec7.arrays import Array
from lec7.initializers import Initializer, glorot_uniform, he_uniform
from lec7.layers.base import Layer


class Linear(Layer):
    """y = activation(x @ weight + bias).

    x (..., in_features), weight (in_features, out_features), bias (out_features,), y (..., out_features).
    ``activation`` is None, "relu", "sigmoid" or "tanh", fused with the product. The weight starts as
    He's for ReLU and Glorot's otherwise, the bias as 0.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rng: np.random.Generator,
        activation: str | None = None,
        bias: bool = True,
        init: Initializer | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        init = init or (he_uniform if activation == "relu" else glorot_uniform)
        self.add_parameter("weight", init((in_features, out_features), rng))
        if bias:
            self.add_parameter("bias", np.zeros(out_features, np.float32))

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        y = ops.linear_forward(x, self.params["weight"], self.params.get("bias"), activation=self.activation)
        return y, (x, y if self.activation else None)

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        x, y = cache
        needs = self.wanted(*(["dx"] if needs_dx else []))
        dx, dweight, dbias = ops.linear_backward(
            dy, x, self.params["weight"], y=y, activation=self.activation, needs=needs
        )
        self.accumulate(weight=dweight, bias=dbias)
        return dx

    def flops(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        return 2 * math.prod(x_shape) * y_shape[-1]
