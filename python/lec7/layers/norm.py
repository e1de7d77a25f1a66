from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from lec7 import ops
from lec7.arrays import Array, stay
from lec7.layers.base import Layer
from lec7.layers.containers import Concat, Residual, Sequential
from lec7.layers.conv import Conv1d, Conv2d, Conv3d
from lec7.layers.linear import Linear


class LocalResponseNorm(Layer):
    """Each number over a power of the squares of its neighbours: x, y (N, ..., C), ``size`` channels (odd).

    y[c] = x[c] / (k + alpha / size * sum_j x[j]^2) ** beta, j within size // 2 of c. The paper's alpha is
    not divided by the size: AlexNet is ``LocalResponseNorm(5, alpha=5e-4, k=2)``.
    Source:  Krizhevsky, Sutskever, Hinton 2012, section 3.3.
    """

    def __init__(self, size: int, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"LocalResponseNorm: size is odd and positive, got {size}")
        self.k = k
        self._options: dict[str, Any] = {"size": size, "alpha": alpha, "beta": beta}

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        y, saved = ops.local_response_norm_forward(x, k=self.k, **self._options)
        return y, (x, saved)

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        return ops.local_response_norm_backward(dy, *cache, **self._options) if needs_dx else None

    def flops(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        return math.prod(x_shape) * (self._options["size"] + 4)


class BatchNorm(Layer):
    """y = gamma (x - mean) / sqrt(var + eps) + beta for each channel: x, y (N, ..., C), gamma, beta (C,).

    In training, mean and var are the batch's, and ``buffers["running_mean"]`` and ``["running_var"]`` (C,)
    follow them: running = (1 - momentum) running + momentum new. Otherwise the running averages are used;
    ``fold_batch_norm`` then makes the layer part of the convolution before it. A ``frozen`` layer uses and
    keeps its running averages in training too: they fit the weights that it was trained with. gamma starts
    as 1, beta as 0.

    Source:  Ioffe, Szegedy 2015, algorithms 1 and 2.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.add_parameter("gamma", np.ones(channels, np.float32))
        self.add_parameter("beta", np.zeros(channels, np.float32))
        self._buffers["running_mean"] = np.zeros(channels, np.float32)
        self._buffers["running_var"] = np.ones(channels, np.float32)

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        training = training and not self.frozen
        if training:
            stay(self, "_buffers", x)
        y, saved = ops.batch_norm_forward(
            x, **self.params, **self.buffers, training=training, momentum=self.momentum, eps=self.eps
        )
        return y, (x, saved, training)

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        x, saved, training = cache
        needs = self.wanted(*(["dx"] if needs_dx else []))
        dx, dgamma, dbeta = ops.batch_norm_backward(
            dy, x, self.params["gamma"], saved, training=training, needs=needs
        )
        self.accumulate(gamma=dgamma, beta=dbeta)
        return dx

    def flops(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        return 2 * math.prod(x_shape)


class LayerNorm(Layer):
    """y = gamma (x - mean) / sqrt(var + eps) + beta for each row: x, y (..., size), gamma, beta (size,).

    gamma starts as 1, beta as 0.
    Source:  Ba, Kiros, Hinton 2016, equations 3 and 4.
    """

    def __init__(self, size: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.add_parameter("gamma", np.ones(size, np.float32))
        self.add_parameter("beta", np.zeros(size, np.float32))

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        y, saved = ops.layer_norm_forward(x, **self.params, eps=self.eps)
        return y, (x, saved)

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        x, saved = cache
        needs = self.wanted(*(["dx"] if needs_dx else []))
        dx, dgamma, dbeta = ops.layer_norm_backward(dy, x, self.params["gamma"], saved, needs=needs)
        self.accumulate(gamma=dgamma, beta=dbeta)
        return dx

    def flops(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        return 7 * math.prod(x_shape)


def fold_batch_norm(network: Layer) -> Layer:
    """A copy of a network for inference: batch norms are folded into the convolution or linear layer before.

    In every ``Sequential`` (also inside ``Residual`` and ``Concat``), a layer without an activation and the
    ``BatchNorm`` that follows it become one layer, with scale = gamma / sqrt(running_var + eps):
    weight' = weight * scale, bias' = (bias - running_mean) * scale + beta. Other layers are copied.

    Source:  Jacob et al. 2018, equation 14.
    """
    if type(network).forward is Sequential.forward:
        folded: list[Layer] = []
        for layer in network.children.values():
            if folded and isinstance(layer, BatchNorm) and _is_affine(folded[-1]):
                _fold_into(folded[-1], layer)
            else:
                folded.append(fold_batch_norm(layer))
        return Sequential(*folded)
    if isinstance(network, Residual | Concat):
        outer = copy.copy(network)
        outer.children = {name: fold_batch_norm(child) for name, child in network.children.items()}
        return outer
    return copy.deepcopy(network)


def _is_affine(layer: Layer) -> bool:
    if isinstance(layer, Linear):
        return layer.activation is None
    return isinstance(layer, Conv1d | Conv2d | Conv3d) and layer._options["activation"] is None


def _fold_into(layer: Layer, norm: BatchNorm) -> None:
    scale = norm.params["gamma"] / np.sqrt(norm.buffers["running_var"] + np.float32(norm.eps))
    bias = layer.params.get("bias", np.float32(0)) - norm.buffers["running_mean"]
    layer.add_parameter("weight", layer.params["weight"] * scale)
    layer.add_parameter("bias", bias * scale + norm.params["beta"])
