"""What every layer is, and the one buffer in which a network's parameters live."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import numpy as np

from lec7 import arrays
from lec7.arrays import Array


class Layer:
    """A differentiable function with parameters.

    ``y, cache = layer.forward(x, training=False)`` and ``dx = layer.backward(dy, cache)``. The cache
    holds all that the backward pass needs, so one layer can be used many times (at many time steps)
    before its gradients are taken: they are *added* to ``grads``, keyed and shaped like ``params``.
    ``buffers`` is state that no gradient trains (a dropout's counter) and that a checkpoint keeps.

    A leaf fills ``params`` with ``add_parameter``; a container fills ``children`` and its ``params``,
    ``grads`` and ``buffers`` are those of its children under dotted names.
    """

    #: what ``summary`` feeds a network that begins with this layer
    input_dtype: ClassVar[type[np.generic]] = np.float32

    def __init__(self, children: Mapping[str, Layer] | None = None) -> None:
        self.children: dict[str, Layer] = dict(children or {})
        self._params: dict[str, Array] = {}
        self._grads: dict[str, Array] = {}
        self._buffers: dict[str, Array] = {}
        # Gradients that are zero, whatever their memory holds: the next one is written over it. See `wanted`.
        self._unwritten: set[str] = set()
        #: whether all of its own parameters are: set by ``Parameters``
        self.frozen = False
        #: whether its parameters are views of one buffer: set by ``Parameters``
        self.flat = False

    def add_parameter(self, name: str, value: Array) -> None:
        self._params[name] = value
        self._grads[name] = np.zeros_like(value)
        self._unwritten.add(name)

    def share_parameter(self, name: str, other: Layer, other_name: str | None = None) -> None:
        """Use another layer's parameter as this one's: one array, one gradient, used twice."""
        other_name = other_name or name
        mine, its = self._params[name], other._params[other_name]
        if mine.shape != its.shape:
            raise ValueError(
                f"share_parameter: {name} {mine.shape} and {other_name} {its.shape} differ in shape"
            )
        for layer in (self, other):  # neither may write over the other's
            layer._fill_unwritten()
        self._params[name], self._grads[name] = its, other._grads[other_name]

    def owners(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """Every layer of the tree, this one first, with the prefix of its names."""
        yield prefix, self
        for name, child in self.children.items():
            yield from child.owners(f"{prefix}{name}.")

    def _gather(self, kind: str) -> dict[str, Array]:
        return {p + name: a for p, layer in self.owners() for name, a in getattr(layer, kind).items()}

    @property
    def params(self) -> dict[str, Array]:
        return self._gather("_params") if self.children else self._params

    @property
    def grads(self) -> dict[str, Array]:
        for _, layer in self.owners():
            layer._fill_unwritten()
        return self._gather("_grads") if self.children else self._grads

    @property
    def buffers(self) -> dict[str, Array]:
        return self._gather("_buffers") if self.children else self._buffers

    def _fill_unwritten(self) -> None:
        for name in self._unwritten:
            self._grads[name].fill(0)
        self._unwritten.clear()

    def keep_buffers(self) -> Callable[[], None]:
        """A function that puts ``buffers`` back to what they are now."""
        kept = [(layer, {k: a.copy() for k, a in layer._buffers.items()}) for _, layer in self.owners()]

        def put_back() -> None:
            for layer, buffers in kept:
                layer._buffers = buffers

        return put_back

    @contextmanager
    def keeping_buffers(self) -> Iterator[None]:
        """Whatever runs inside leaves no trace in ``buffers``."""
        put_back = self.keep_buffers()
        try:
            yield
        finally:
            put_back()

    def to(self, device: str) -> Self:
        """Move the parameters, gradients and buffers to "cpu", "cuda" or "cuda:N"; returns the layer.

        What the host reads itself (a dropout's counter) stays. Move a network before a ``Trainer`` is made.

        Raises:  ValueError, RuntimeError: as ``lec7.cuda.select``.  RuntimeError: the parameters lie in one
                 buffer already.
        """
        move = arrays.host
        if device != "cpu":
            from lec7 import cuda

            cuda.select(device)
            move = cuda.to_device
        moved: dict[int, tuple[Array, Array]] = {}  # what layers share stays shared

        def place(array: Array) -> Array:
            if array.dtype != np.float32:
                return array
            if id(array) not in moved:
                moved[id(array)] = array, move(array)
            return moved[id(array)][1]

        for _, layer in self.owners():
            if layer.flat:
                raise RuntimeError("to: the parameters lie in one buffer; move the network before that")
        for _, layer in self.owners():
            layer._fill_unwritten()
            for kind in (layer._params, layer._grads, layer._buffers):
                kind.update({name: place(array) for name, array in kind.items()})
        return self

    @property
    def learns(self) -> bool:
        """Whether it has parameters that are not frozen."""
        return any(layer._params and not layer.frozen for _, layer in self.owners())

    def reset(self) -> None:
        """Forget what was carried over from earlier calls: the state of ``Recurrent(carry=True)``."""
        for child in self.children.values():
            child.reset()

    def forward(self, x: Array, *, training: bool = False) -> tuple[Array, Any]:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy: Array, cache: Any, *, needs_dx: bool = True) -> Any:
        """Add to ``grads``; return dx, or None where ``needs_dx`` is False or x has no gradient."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def flops(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        """Floating-point operations of one forward pass; a multiply-add counts as two."""
        return 0

    def wanted(self, *names: str) -> dict[str, Array | None]:
        """The ``needs`` of an op's backward: ``names``, and, of a layer that learns, the gradient of each
        parameter.

        A gradient to which nothing was added yet is given as the array to write to: setting it to zero, a
        second array of that size, and adding it up are saved. ``accumulate`` takes the results.
        """
        needs: dict[str, Array | None] = dict.fromkeys(names)
        if not self.frozen:
            needs |= {f"d{k}": grad if k in self._unwritten else None for k, grad in self._grads.items()}
        return needs

    def accumulate(self, **grads: Array | None) -> None:
        """Add each gradient that is wanted and there to ``self.grads``, unless it was written there."""
        for name, grad in grads.items():
            if grad is None or name not in self._grads:
                continue
            if grad is not self._grads[name]:
                if name in self._unwritten:
                    self._grads[name][...] = grad
                else:
                    self._grads[name] += grad
            self._unwritten.discard(name)


def _aligned_zeros(size: int) -> Array:
    """Zeros that start on a cache line, so that no vector load of a weight straddles two."""
    raw = np.zeros(size * 4 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * 4].view(np.float32)


class Parameters:
    """All parameters of a network in one contiguous float32 buffer, all gradients in another.

    Building it moves the network's parameters into ``values`` and leaves views in their layers, so one
    fused update, one norm and one tensor in a checkpoint serve the whole network. An array that two
    layers share is stored once. Names that start with one of ``frozen`` lie behind ``trainable``
    elements, out of the optimizer's range; a layer that has no others is ``frozen``.
    """

    def __init__(self, model: Layer, *, frozen: Iterable[str] = ()) -> None:
        self.model = model
        prefixes = tuple(frozen)
        places: dict[int, list[tuple[Layer, str]]] = {}
        first_names: dict[int, str] = {}
        for prefix, layer in model.owners():
            for name, value in layer._params.items():
                if value.dtype != np.float32:
                    raise TypeError(f"Parameters: {prefix}{name} is {value.dtype}, parameters are float32")
                places.setdefault(id(value), []).append((layer, name))
                first_names.setdefault(id(value), prefix + name)
        for prefix in prefixes:
            if not any(name.startswith(prefix) for name in first_names.values()):
                raise ValueError(f"Parameters: no parameter's name starts with frozen {prefix!r}")
        order = sorted(places, key=lambda i: bool(prefixes) and first_names[i].startswith(prefixes))

        #: name -> (offset, shape); offsets are multiples of 16 elements, one cache line
        self.layout: dict[str, tuple[int, tuple[int, ...]]] = {}
        size = self.trainable = 0
        for key in order:
            layer, name = places[key][0]
            shape = layer._params[name].shape
            self.layout[first_names[key]] = (size, shape)
            size += -(-math.prod(shape) // 16) * 16
            if not (prefixes and first_names[key].startswith(prefixes)):
                self.trainable = size
        self.values, self.grads = _aligned_zeros(size), _aligned_zeros(size)
        if order:
            layer, name = places[order[0]][0]
            self.values, self.grads = (arrays.like(a, layer._params[name]) for a in (self.values, self.grads))

        for key in order:
            offset, shape = self.layout[first_names[key]]
            span = slice(offset, offset + math.prod(shape))
            value, grad = self.values[span].reshape(shape), self.grads[span].reshape(shape)
            layer, name = places[key][0]
            value[...] = layer._params[name]
            for layer, name in places[key]:
                layer._params[name], layer._grads[name] = value, grad
        self._places = list(places.values())
        self.zero_grads()
        learning = {first_names[key] for key in order if self.layout[first_names[key]][0] < self.trainable}
        learns = {id(layer) for key in order if first_names[key] in learning for layer, _ in places[key]}
        for _, layer in model.owners():
            layer.frozen = bool(layer._params) and id(layer) not in learns
            layer.flat = True

    def zero_grads(self) -> None:
        self.grads.fill(0)
        for uses in self._places:
            for layer, name in uses:
                layer._unwritten.discard(name)

    def forget_grads(self) -> None:
        """Let backward write over all gradients, which saves two passes over them; what it has not reached
        then is set to zero by ``settle_grads``. Between the two, ``grads`` may hold old numbers."""
        if arrays.on_device(self.grads):
            self.grads.fill(0)
            return
        for uses in self._places:
            layer, name = uses[0]
            if len(uses) > 1:  # neither may write over the other's
                layer._grads[name].fill(0)
            else:
                layer._unwritten.add(name)

    def settle_grads(self) -> None:
        for uses in self._places:
            uses[0][0]._fill_unwritten()

    @property
    def count(self) -> int:
        """Parameters, without the padding between them."""
        return sum(math.prod(shape) for _, shape in self.layout.values())
