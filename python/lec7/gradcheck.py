"""Backward passes against central differences."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from lec7.arrays import Array
from lec7.layers.base import Layer


def gradcheck(
    layer: Layer,
    x: Array,
    *,
    rng: np.random.Generator,
    training: bool = False,
    eps: float = 1e-6,
    checks: int = 100,
    **options: Any,
) -> dict[str, float]:
    """How far each gradient is from (L(p + eps) - L(p - eps)) / (2 eps), with L = sum(y * dy), dy random.

    It works on a float64 copy of the layer, element by element; where an array has more than ``checks``
    elements, on that many of them, drawn by ``rng``.

    Args:    x: the layer's input; integers (tokens) are not differentiated.
             training, options: for ``forward``.
    Returns: for "x" and for each parameter (not of frozen layers), max |difference| / max(|gradient|, 1).
             About 1e-9 for a right backward pass.
    """
    layer = copy.deepcopy(layer)
    for _, owner in layer.owners():
        owner._params = {name: value.astype(np.float64) for name, value in owner._params.items()}
        owner._buffers = {
            name: value.astype(np.float64) if value.dtype == np.float32 else value
            for name, value in owner._buffers.items()
        }
        owner._unwritten.clear()
        owner._grads = {name: np.zeros_like(value) for name, value in owner._params.items()}
    floating = np.issubdtype(x.dtype, np.floating)
    x = x.astype(np.float64) if floating else x

    def forward() -> tuple[Array, Any]:
        with layer.keeping_buffers():  # every call draws the same dropout mask, from the same state
            return layer.forward(x, training=training, **options)

    learning = {
        prefix + name for prefix, owner in layer.owners() for name in owner._params if not owner.frozen
    }
    y, cache = forward()
    dy = rng.standard_normal(y.shape)
    dx = layer.backward(dy, cache)

    gradients = {
        **({"x": (x, dx)} if floating else {}),
        **{n: (p, layer.grads[n]) for n, p in layer.params.items() if n in learning},
    }
    errors = {}
    for name, (array, gradient) in gradients.items():
        assert gradient is not None
        values, grads = array.reshape(-1), gradient.reshape(-1)
        chosen = rng.permutation(values.size)[:checks]
        numeric = np.empty(len(chosen))
        for j, i in enumerate(chosen):
            kept = values[i]
            values[i] = kept + eps
            above = np.sum(forward()[0] * dy)
            values[i] = kept - eps
            below = np.sum(forward()[0] * dy)
            values[i] = kept
            numeric[j] = (above - below) / (2 * eps)
        errors[name] = float(np.max(np.abs(numeric - grads[chosen])) / max(np.max(np.abs(grads)), 1.0))
    return errors
