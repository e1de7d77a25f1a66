"""Layers made of layers."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from lec7 import ops
from lec7.arrays import Array, on_device, recording, stay
from lec7.layers.base import Layer
from lec7.layers.recurrent import RecurrentLayer, State


def _may_keep(keeper: Any, array: Array) -> bool:
    """Whether a cache, or another array, may hold the memory of ``array``: True for what this cannot read."""
    if isinstance(keeper, np.ndarray):
        return np.may_share_memory(keeper, array)
    if isinstance(keeper, tuple | list):
        return any(_may_keep(item, array) for item in keeper)
    return keeper is not None and not isinstance(keeper, bool | int | float | str)


def _sum(y: Array, x: Array, *keepers: Any) -> Array:
    """y + x, written over y unless x or one of ``keepers`` may hold it, or it cannot be written to."""
    if on_device(y):
        return y + x
    if y.flags.c_contiguous and y.flags.writeable and not _may_keep((x, *keepers), y):
        ops.add_(y, x)
        return y
    return y + x


class Sequential(Layer):
    """Each layer's output is the next one's input. ``backward`` empties the cache, layer by layer."""

    def __init__(self, *layers: Layer) -> None:
        super().__init__({str(i): layer for i, layer in enumerate(layers)})

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        caches = []
        for layer in self.children.values():
            x, cache = layer.forward(x, training=training)
            caches.append(cache)
        return x, caches

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        layers = list(self.children.values())
        if len(cache) != len(layers):
            raise RuntimeError("Sequential: an earlier backward has used this cache up")
        # Below the first layer that learns, nobody asks for a gradient.
        first = 0 if needs_dx else next((i for i, layer in enumerate(layers) if layer.learns), len(layers))
        grad = dy
        for i in range(len(layers) - 1, first - 1, -1):
            # A cache goes as soon as its layer is done: the gradients below can take its memory.
            grad = layers[i].backward(grad, cache.pop(), needs_dx=needs_dx or i > first)
        cache.clear()
        return grad if needs_dx else None


class Residual(Layer):
    """y = layer(x) + shortcut(x); without a shortcut, y = layer(x) + x.

    Source:  He, Zhang, Ren, Sun 2016, equations 1 and 2.
    """

    def __init__(self, layer: Layer, shortcut: Layer | None = None) -> None:
        super().__init__({"layer": layer, **({"shortcut": shortcut} if shortcut else {})})

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        y, cache = self.children["layer"].forward(x, training=training)
        around, shortcut_cache = x, None
        if "shortcut" in self.children:
            around, shortcut_cache = self.children["shortcut"].forward(x, training=training)
        if y.shape != around.shape:
            raise ValueError(f"Residual: the layer's output {y.shape} and the shortcut {around.shape} differ")
        return _sum(y, around, x, cache, shortcut_cache), (cache, shortcut_cache)

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        around: Array | None = dy
        if "shortcut" in self.children:
            around = self.children["shortcut"].backward(dy, cache[1], needs_dx=needs_dx)
        dx = self.children["layer"].backward(dy, cache[0], needs_dx=needs_dx)
        return None if dx is None or around is None else _sum(dx, around, dy, cache)


class Concat(Layer):
    """The outputs of several layers on the same input, one after the other along ``axis`` (the channels).

    ``Concat(LSTM(...), LSTM(..., reverse=True))`` is a bidirectional LSTM; parallel convolutions joined
    along the channels are an Inception module.
    Source:  Schuster, Paliwal 1997; Szegedy et al. 2015.
    """

    def __init__(self, *layers: Layer, axis: int = -1) -> None:
        super().__init__({str(i): layer for i, layer in enumerate(layers)})
        self.axis = axis

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        ys, caches = zip(
            *(layer.forward(x, training=training) for layer in self.children.values()), strict=True
        )
        # Along another axis than the last, what follows the axis counts as channels.
        y = ops.concat_forward([self._flat(y) for y in ys])
        shape, axis = list(ys[0].shape), self.axis
        shape[axis] = sum(y.shape[axis] for y in ys)
        return y.reshape(tuple(shape)), (caches, [y.shape for y in ys])

    def _flat(self, array: Array) -> Array:
        """As a matrix whose columns are ``axis`` and what follows it."""
        axis = self.axis % array.ndim
        return array.reshape((math.prod(array.shape[:axis]), math.prod(array.shape[axis:])))

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        caches, shapes = cache
        dx: Array | None = None
        columns = [math.prod(shape[self.axis % len(shape) :]) for shape in shapes]
        parts = ops.concat_backward(self._flat(dy), channels=columns)
        for layer, part, shape, layer_cache in zip(
            self.children.values(), parts, shapes, caches, strict=True
        ):
            grad = layer.backward(part.reshape(shape), layer_cache, needs_dx=needs_dx)
            dx = grad if dx is None or grad is None else _sum(dx, grad, dy, caches)
        return dx


class Flatten(Layer):
    """x (N, ...) -> y (N, the product of the rest)."""

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        return x.reshape(x.shape[0], -1), x.shape

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        return dy.reshape(cache) if needs_dx else None


class Recurrent(Layer):
    """A recurrent layer as a layer of a network: what goes in, what comes out, and what is remembered.

    ======================  ==================  ======================
    mode                    x                   y
    ======================  ==================  ======================
    "one_to_one"            (N, input_size)     (N, H), one step
    "many_to_one"           (T, N, input_size)  (N, H), the last state
    "many_to_many"          (T, N, input_size)  (T, N, H), every step
    ======================  ==================  ======================

    With ``carry`` each call starts from the state that the call before left, which is kept in ``buffers``
    until ``reset()``; without, from zeros. Gradients stay inside a call: truncated back-propagation
    through time.
    Source:  Williams, Peng 1990 (truncation).
    """

    def __init__(
        self,
        layer: RecurrentLayer,
        *,
        mode: Literal["one_to_one", "many_to_one", "many_to_many"] = "many_to_many",
        carry: bool = False,
    ) -> None:
        if mode not in ("one_to_one", "many_to_one", "many_to_many"):
            raise ValueError(f"Recurrent: mode is one_to_one, many_to_one or many_to_many, got {mode!r}")
        super().__init__({"layer": layer})
        self.layer = layer
        self.mode = mode
        self.carry = carry

    def reset(self) -> None:
        self._buffers.clear()

    def forward(self, x: Array, *, training: bool = False, lengths: Array | None = None) -> tuple[Array, Any]:
        steps = x[None] if self.mode == "one_to_one" else x
        names = ("h", "c")[: self.layer.state_size]
        state: State | None = tuple(self._buffers[name] for name in names) if self._buffers else None
        in_place = self.carry and recording(x) is not None
        if in_place:
            if state is None:
                raise RuntimeError("Recurrent: take a step before a graph records, so that there is a state")
            stay(self, "_buffers", x)
            state = tuple(array.copy() for array in state)
        hs, cache = self.layer.forward(steps, training=training, state=state, lengths=lengths)
        if in_place:
            for name, array in zip(names, cache.state, strict=True):
                self._buffers[name][...] = array
        elif self.carry:
            self._buffers.update(zip(names, cache.state, strict=True))
            if self.mode != "many_to_many" and on_device(x):  # replays write over what is carried, not over y
                self._buffers["h"] = cache.state[0].copy()
        return (hs if self.mode == "many_to_many" else cache.state[0]), cache

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        if self.mode == "many_to_many":
            return self.layer.backward(dy, cache, needs_dx=needs_dx)
        dstate = (dy, *(None,) * (self.layer.state_size - 1))
        dx, _ = self.layer.backward_state(None, dstate, cache, needs_dx=needs_dx, needs_dstate=False)
        return dx[0] if self.mode == "one_to_one" and dx is not None else dx
