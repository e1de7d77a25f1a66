"""Initial values for parameters: functions ``(shape, rng) -> float32 array``.

The last axis of a weight is its outputs, the one before its inputs, and any axes before those are
the taps of a filter: dense ``(in, out)``, convolution ``(KH, KW, C, F)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Initializer = Callable[[tuple[int, ...], np.random.Generator], Array]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of one unit: ``(taps * in, taps * out)``.

    Raises:  ValueError: the shape has fewer than two axes.
    """
    if len(shape) < 2:
        raise ValueError(f"initializer: a weight has at least two axes (..., in, out), the shape is {shape}")
    taps = math.prod(shape[:-2])
    return taps * shape[-2], taps * shape[-1]


def _uniform(shape: tuple[int, ...], rng: np.random.Generator, limit: float) -> Array:
    return rng.uniform(-limit, limit, shape).astype(np.float32)


def glorot_uniform(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out)), for sigmoid, tanh and linear units.

    Source:  Glorot, Bengio 2010, equation 16.
    """
    return _uniform(shape, rng, math.sqrt(6 / sum(fans(shape))))


def he_uniform(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """U(-a, a) with a = sqrt(6 / fan_in), for ReLU units.

    Source:  He, Zhang, Ren, Sun 2015, equation 10 (the variance 2 / fan_in).
    """
    return _uniform(shape, rng, math.sqrt(6 / fans(shape)[0]))


def he_normal(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """N(0, 2 / fan_in), for ReLU units.

    Source:  He, Zhang, Ren, Sun 2015, equation 10.
    """
    return (rng.standard_normal(shape) * math.sqrt(2 / fans(shape)[0])).astype(np.float32)


def standard_normal(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """N(0, 1), for embeddings: one token selects one row, so there is no fan to divide by."""
    return rng.standard_normal(shape).astype(np.float32)


def zeros(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """All 0, for biases."""
    return np.zeros(shape, np.float32)


def orthogonal(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Square blocks ``(H, H)`` side by side in ``(H, blocks*H)``, each a random rotation.

    A recurrence through a rotation neither grows nor shrinks its state.
    Source:  Saxe, McClelland, Ganguli 2014, section 3.
    """
    if len(shape) != 2 or shape[1] % shape[0]:
        raise ValueError(f"orthogonal: the shape is (H, blocks * H), got {shape}")
    blocks = []
    for _ in range(shape[1] // shape[0]):
        q, r = np.linalg.qr(rng.standard_normal((shape[0], shape[0])))
        # QR leaves the signs to the algorithm; with r's diagonal positive, q is uniform over rotations.
        blocks.append(q * np.sign(np.diag(r)))
    return np.concatenate(blocks, axis=1).astype(np.float32)
