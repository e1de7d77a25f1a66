"""A character-level language model: embedding -> recurrent layers with dropout -> linear -> softmax.

Source:  Sutskever, Martens, Hinton 2011; Graves 2013; Zaremba, Sutskever, Vinyals 2014 (dropout on the
connections between layers, never along time).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from lec7 import ops
from lec7.arrays import Array, host, like
from lec7.layers import Dropout, Embedding, Linear, Recurrent, Sequential
from lec7.layers.base import Layer
from lec7.layers.recurrent import CELLS


class CharLM(Sequential):
    """tokens (T, N) -> logits (T, N, V) of each next token.

    The state is carried from call to call, so that a text can be read in chunks; ``reset()`` begins anew.

    Args:    vocabulary_size: V.  cell: "rnn", "lstm" or "gru".  dropout: after each recurrent layer.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        rng: np.random.Generator,
        cell: str = "lstm",
        layers: int = 2,
        hidden: int = 256,
        embedding: int = 64,
        dropout: float = 0.0,
    ) -> None:
        if cell not in CELLS:
            raise ValueError(f"CharLM: cell is one of {', '.join(CELLS)}, got {cell!r}")
        self.embedding = Embedding(vocabulary_size, embedding, rng=rng)
        sizes = [embedding, *[hidden] * layers]
        self.cells = [CELLS[cell](sizes[i], sizes[i + 1], rng=rng) for i in range(layers)]
        self.output = Linear(hidden, vocabulary_size, rng=rng)
        stack: list[Layer] = []
        for recurrent in self.cells:
            stack += [Recurrent(recurrent, carry=True), *([Dropout(dropout, rng=rng)] if dropout else [])]
        super().__init__(self.embedding, *stack, self.output)

    def evaluate(self, tokens: Array, *, chunk: int = 1000) -> float:
        """Mean cross-entropy in nats of tokens[1:], each given all before it (the state is carried)."""
        table, losses = self.embedding.params["weight"], []
        with self.keeping_buffers():
            self.reset()
            for start in range(0, len(tokens) - 1, chunk):
                stop = min(start + chunk, len(tokens) - 1)
                x, labels = (
                    like(tokens[i : i + stop - start, np.newaxis], table) for i in (start, start + 1)
                )
                logits, _ = self.forward(x)
                losses.append(ops.softmax_cross_entropy_forward(logits, labels, reduction="sum")[0])
        return sum(map(float, losses)) / (len(tokens) - 1)  # a GPU is waited for here alone

    def generate(
        self, prime: Array, *, length: int, temperature: float, rng: np.random.Generator
    ) -> Iterator[int]:
        """Tokens that go on from ``prime``, drawn from softmax(logits / temperature); 0 takes the likeliest.

        They are drawn by the Gumbel-max trick: argmax(logits + temperature * Gumbel noise) has the
        softmax's distribution and needs no normalization.
        Source:  Gumbel 1954; Maddison, Tarlow, Minka 2014, section 2.
        """
        if not 0 <= temperature < math.inf:
            raise ValueError(f"generate: the temperature is 0 or more, got {temperature}")
        if not len(prime):
            raise ValueError("generate: the prime has at least one token")
        table = self.embedding.params["weight"]
        weight, bias = self.output.params["weight"], self.output.params["bias"]
        states = [cell.zero_state(1) for cell in self.cells]
        x = ops.embedding_forward(like(prime[:, np.newaxis], table), table)
        for i, cell in enumerate(self.cells):
            x, cache = cell.forward(x)
            states[i] = cache.state
        h = x[-1]
        # A step takes the time in which its weights come from memory: the first layer's product with each
        # token's embedding is kept.
        first, *rest = self.cells
        products: dict[int, Array] = {}
        one = like(np.ones((1, 1), np.float32), table)
        block = 256
        for done in range(length):
            if done % block == 0:
                noise = temperature * rng.gumbel(size=(block, len(bias))).astype(np.float32)
            token = int((host(ops.linear_forward(h, weight, bias))[0] + noise[done % block]).argmax())
            yield token
            if token not in products:
                products[token] = ops.matmul(table[token : token + 1], first.params["weight_x"])
            states[0] = first.step(one, states[0], weight_x=products[token])
            h = states[0][0]
            for i, cell in enumerate(rest, 1):
                states[i] = cell.step(h, states[i])
                h = states[i][0]


def text_batches(
    tokens: Array, *, steps: int, batch: int
) -> tuple[Callable[[np.random.Generator], Iterator[tuple[Array, Array]]], int]:
    """Chunks of a text for truncated back-propagation through time, and how many make an epoch.

    The text is laid out as ``batch`` streams of equal length, read side by side in chunks of ``steps``:
    x and targets are (steps, batch) int32, and chunk k+1 goes on where chunk k ended. Each epoch begins at
    another place of the text (its end joins its beginning), so that chunks end elsewhere each time.

    Raises:  ValueError: the text is too short.
    """
    length = (len(tokens) - 1) // batch
    chunks = length // steps
    if chunks < 1:
        raise ValueError(
            f"the training text has {len(tokens)} characters; {batch} streams of {steps} steps need at least "
            f"{batch * steps + 1}: use a longer text, a smaller batch or fewer steps"
        )

    def batches(rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
        start = rng.integers(len(tokens))
        # Time-major, so that every chunk is a view.
        places = start + np.arange(length + 1)[:, np.newaxis] + length * np.arange(batch)
        streams = tokens.take(places, mode="wrap")
        for k in range(chunks):
            t = k * steps
            yield streams[t : t + steps], streams[t + 1 : t + steps + 1]

    return batches, chunks
