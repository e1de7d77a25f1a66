"""What networks need of arrays besides the ops, for NumPy's and a GPU's alike."""

from __future__ import annotations

from collections.abc import Callable
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


def recording(model: Array) -> Any:
    """The CUDA graph that records what is done now, where ``model`` is a GPU's array; else None."""
    if not on_device(model):
        return None
    from lec7 import cuda

    return cuda.recording()


def each_time(number: Callable[[], Any], dtype: str, model: Array) -> Any:
    """``number()``; while a CUDA graph records, an array that each replay sets to what ``number()`` is then.

    So what the host counts (steps, a dropout's masks) goes on with each replay, and not with the recording.
    """
    graph = recording(model)
    return number() if graph is None else graph.each_replay(number, dtype)


def stay(owner: Any, name: str, model: Array) -> None:
    """While a CUDA graph records: its replays work on the arrays that the dict ``owner.name`` has now.

    What took their places until a replay (a state that was restored, or zeros where it was reset) is copied
    into them, and they take its place again.
    """
    graph = recording(model)
    if graph is None:
        return
    arrays = dict(getattr(owner, name))

    def put_back() -> None:
        now = getattr(owner, name)
        for key, array in arrays.items():
            if key not in now:
                array.fill(0)
            elif now[key] is not array:
                array[...] = now[key]
            now[key] = array

    graph.each_replay(put_back)
