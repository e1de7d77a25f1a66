"""What networks need of arrays besides the ops, for NumPy's and a GPU's alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def on_device(array: Any) -> bool:
    """Whether it is a ``lec7.cuda.Array``."""
    return hasattr(type(array), "__cuda_array_interface__")


def like(array: Array, model: Array) -> Array:
    """The array where ``model`` is: a copy on the GPU, or NumPy's own."""
    if on_device(model) and not on_device(array):
        from lec7 import cuda

        return cuda.to_device(array)
    return array if on_device(model) else host(array)


def host(array: Any) -> Array:
    """The array as NumPy's: itself, or a copy of a GPU's."""
    return array.numpy() if on_device(array) else array


def zeros(shape: int | tuple[int, ...], model: Array) -> Array:
    """Zeros of ``model``'s dtype, where it is (a GPU's numbers are float32)."""
    if on_device(model):
        from lec7 import cuda

        return cuda.zeros(shape if isinstance(shape, tuple) else (shape,))
    return np.zeros(shape, model.dtype)


def contiguous(array: Array) -> Array:
    """The array in row-major order (a GPU's are)."""
    return array if on_device(array) else np.ascontiguousarray(array)
