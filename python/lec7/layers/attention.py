from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from lec7 import ops
from lec7.arrays import Array, contiguous
from lec7.layers.base import Layer
from lec7.layers.linear import Linear


def _split_heads(x: Array, heads: int) -> Array:
    """(T, N, heads*d) -> (N, heads, T, d)"""
    return contiguous(x.reshape(*x.shape[:2], heads, -1).transpose(1, 2, 0, 3))


def _join_heads(x: Array) -> Array:
    """(N, heads, T, d) -> (T, N, heads*d)"""
    return contiguous(x.transpose(2, 0, 1, 3)).reshape(x.shape[2], x.shape[0], -1)


class _Heads(NamedTuple):
    q: Array
    k: Array
    v: Array
    y: Array
    lse: Array
    options: dict[str, Any]


def _attend(q: Array, k: Array, v: Array, heads: int, **options: Any) -> tuple[Array, _Heads]:
    """ops.attention_forward between time-major arrays."""
    q, k, v = (_split_heads(a, heads) for a in (q, k, v))
    y, lse = ops.attention_forward(q, k, v, **options)
    return _join_heads(y), _Heads(q, k, v, y, lse, options)


def _attend_backward(dy: Array, c: _Heads, heads: int) -> tuple[Array, Array, Array]:
    backward: Any = ops.attention_backward
    dq, dk, dv = backward(_split_heads(dy, heads), c.q, c.k, c.v, c.y, c.lse, **c.options)
    return _join_heads(dq), _join_heads(dk), _join_heads(dv)


class _Attention(Layer):
    """``attend`` from queries to a memory; ``forward`` is a sequence's attention to itself."""

    def attend(
        self,
        queries: Array,
        memory: Array,
        *,
        key_lengths: Array | None = None,
        mask: Array | None = None,
        causal: bool = False,
    ) -> tuple[Array, Any]:
        """queries (Tq, N, query_size), memory (Tk, N, memory_size) -> y (Tq, N, ...), cache.

        key_lengths (N,), mask and causal as in ``ops.attention_forward``.
        """
        raise NotImplementedError

    def attend_backward(self, dy: Array, cache: Any) -> tuple[Array, Array]:
        """dqueries, dmemory."""
        raise NotImplementedError

    def forward(
        self,
        x: Array,
        *,
        training: bool = False,
        key_lengths: Array | None = None,
        mask: Array | None = None,
        causal: bool = False,
    ) -> tuple[Array, Any]:
        return self.attend(x, x, key_lengths=key_lengths, mask=mask, causal=causal)

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        dqueries, dmemory = self.attend_backward(dy, cache)
        return dqueries + dmemory if needs_dx else None

    def flops(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        steps, batch, size = y_shape
        return 4 * batch * steps * steps * size  # the two products; the projections count themselves


class Attention(_Attention):
    """y = softmax(score(queries, memory)) memory, one head, the memory as keys and values.

    ``score``: "dot" q k, "scaled" q k / sqrt(size), "bilinear" q W k with W (query_size, memory_size).
    Source:  Luong, Pham, Manning 2015, section 3.1 (dot, bilinear = "general");
    Vaswani et al. 2017, equation 1 (scaled).
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        *,
        rng: np.random.Generator,
        score: Literal["dot", "scaled", "bilinear"] = "scaled",
    ) -> None:
        if score not in ("dot", "scaled", "bilinear"):
            raise ValueError(f"Attention: score is dot, scaled or bilinear, got {score!r}")
        if score != "bilinear" and query_size != memory_size:
            raise ValueError(
                f"Attention: score {score!r} needs queries and memory of one size, "
                f"got query_size = {query_size}, memory_size = {memory_size}"
            )
        bilinear = score == "bilinear"
        super().__init__(
            {"project": Linear(query_size, memory_size, rng=rng, bias=False)} if bilinear else None
        )
        self.scale = 1 / math.sqrt(memory_size) if score == "scaled" else 1.0

    def attend(
        self,
        queries: Array,
        memory: Array,
        *,
        key_lengths: Array | None = None,
        mask: Array | None = None,
        causal: bool = False,
    ) -> tuple[Array, Any]:
        projected, cache = queries, None
        if "project" in self.children:
            projected, cache = self.children["project"].forward(queries)
        y, heads = _attend(
            projected, memory, memory, 1, key_lengths=key_lengths, mask=mask, causal=causal, scale=self.scale
        )
        return y, (cache, heads)

    def attend_backward(self, dy: Array, cache: Any) -> tuple[Array, Array]:
        project_cache, heads = cache
        dqueries, dk, dv = _attend_backward(dy, heads, 1)
        if "project" in self.children:
            dqueries = self.children["project"].backward(dqueries, project_cache)
        return dqueries, dk + dv


class MultiHeadAttention(_Attention):
    """y = concat_i(softmax(q_i k_i / sqrt(d)) v_i) Wo + bo, with q = x Wq + bq and so on; d = size / heads.

    Source:  Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(
        self, size: int, heads: int, *, rng: np.random.Generator, memory_size: int | None = None
    ) -> None:
        if heads < 1 or size % heads:
            raise ValueError(f"MultiHeadAttention: heads divides size, got size = {size}, heads = {heads}")
        memory_size = memory_size or size
        inputs = {"query": size, "key": memory_size, "value": memory_size, "output": size}
        super().__init__({name: Linear(n, size, rng=rng) for name, n in inputs.items()})
        self.heads = heads

    def attend(
        self,
        queries: Array,
        memory: Array,
        *,
        key_lengths: Array | None = None,
        mask: Array | None = None,
        causal: bool = False,
    ) -> tuple[Array, Any]:
        q, q_cache = self.children["query"].forward(queries)
        k, k_cache = self.children["key"].forward(memory)
        v, v_cache = self.children["value"].forward(memory)
        joined, heads = _attend(q, k, v, self.heads, key_lengths=key_lengths, mask=mask, causal=causal)
        y, y_cache = self.children["output"].forward(joined)
        return y, (q_cache, k_cache, v_cache, heads, y_cache)

    def attend_backward(self, dy: Array, cache: Any) -> tuple[Array, Array]:
        q_cache, k_cache, v_cache, heads, y_cache = cache
        djoined = self.children["output"].backward(dy, y_cache)
        dq, dk, dv = _attend_backward(djoined, heads, self.heads)
        dqueries = self.children["query"].backward(dq, q_cache)
        dmemory = self.children["key"].backward(dk, k_cache) + self.children["value"].backward(dv, v_cache)
        return dqueries, dmemory
