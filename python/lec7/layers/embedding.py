from __future__ import annotations

from typing import Any

import numpy as np

from lec7 import ops
from lec7.arrays import Array
from lec7.initializers import Initializer, standard_normal
from lec7.layers.base import Layer


class Embedding(Layer):
    """y[...] = weight[tokens[...]]: a row of the table for each token.

    tokens (...) int32|int64 in [0, num_embeddings), weight (num_embeddings, size), y (..., size).
    Tokens have no gradient: ``backward`` returns None.
    """

    input_dtype = np.int32

    def __init__(
        self, num_embeddings: int, size: int, *, rng: np.random.Generator, init: Initializer = standard_normal
    ) -> None:
        super().__init__()
        self.add_parameter("weight", init((num_embeddings, size), rng))

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        return ops.embedding_forward(x, self.params["weight"]), x

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> None:
        weight = self.params["weight"]
        if not self.frozen:
            self.accumulate(weight=ops.embedding_backward(dy, cache, num_embeddings=weight.shape[0]))
