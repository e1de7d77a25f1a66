from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from lec7 import ops
from lec7.arrays import Array, each_time
from lec7.layers.base import Layer


class Dropout(Layer):
    """In training, each element is 0 with probability p and x / (1 - p) otherwise; else y = x.

    The mask is a function of ``buffers["philox"]``, a seed (drawn once from ``rng``) and the number of
    masks drawn so far; it is drawn again in the backward pass instead of being stored, and a checkpoint
    that keeps those two numbers continues with the same masks.

    Source:  Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov 2014 (inverted: scaled in training).
    """

    whole_channels: ClassVar[bool] = False

    def __init__(self, p: float = 0.5, *, rng: np.random.Generator) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"{type(self).__name__}: 0 <= p < 1, got {p}")
        self.p = p
        self._buffers["philox"] = np.array([rng.integers(2**64, dtype=np.uint64), 0], np.uint64)

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        if not training or self.p == 0:
            return x, None
        seed = each_time(lambda: int(self._buffers["philox"][0]), "int64", x)
        offset = each_time(self._next_offset, "int64", x)
        draw = {"p": self.p, "seed": seed, "offset": offset, "whole_channels": self.whole_channels}
        return ops.dropout_forward(x, **draw), draw

    def _next_offset(self) -> int:
        offset = int(self._buffers["philox"][1])
        self._buffers["philox"][1] = offset + 1
        return offset

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        if not needs_dx:
            return None
        return dy if cache is None else ops.dropout_backward(dy, **cache)


class SpatialDropout(Dropout):
    """Dropout of whole channels: x (N, ..., C), one draw for each n and c.

    Neighbouring cells of a feature map are alike, so a cell dropped alone would be filled in by them.
    Source:  Tompson, Goroshin, Jain, LeCun, Bregler 2015, section 3.2.
    """

    whole_channels = True
