"""Embedding: a row of a table for every token."""

import numpy as np
from numpy import ndarray

from ._checks import expect_indices


def embedding_forward(tokens: ndarray, weight: ndarray) -> ndarray:
    """Embedding lookup.

    y[..., d] = weight[tokens[...], d]

    Args:    tokens: any shape, int32|int64, in [0, V).  weight: (V, D) float32|float64.
    Returns: y (..., D).
    Raises:  ValueError: a token is outside [0, V); weight is not a matrix.
             TypeError: tokens are not int32|int64.
    Source:  Bengio, Ducharme, Vincent, Jauvin 2003, A neural probabilistic language model, section 2.
    """
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight must be (V, D); weight = {weight.shape}")
    expect_indices("embedding", "tokens", tokens, weight.shape[0])
    return weight[tokens]


def embedding_backward(dy: ndarray, tokens: ndarray, *, num_embeddings: int) -> ndarray:
    """Gradient of the embedding with respect to its table.

    dweight[v, d] = sum of dy[..., d] over the places where tokens[...] = v

    Args:    dy: (..., D).  tokens: (...), those of the forward.  num_embeddings: V.
    Returns: dweight (V, D).
    Raises:  ValueError: a token is outside [0, V); dy does not fit.  TypeError: tokens not int32|int64.
    """
    expect_indices("embedding", "tokens", tokens, num_embeddings)
    if dy.shape[:-1] != tokens.shape or dy.ndim == 0:
        raise ValueError(
            f"embedding: one row for each token; dy (..., D) = {dy.shape}, tokens = {tokens.shape}"
        )
    dweight = np.zeros((num_embeddings, dy.shape[-1]), dy.dtype)
    np.add.at(dweight, tokens, dy)
    return dweight
