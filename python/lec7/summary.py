"""What a network is made of, as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lec7.layers.base import Layer


@dataclass(frozen=True)
class LayerSummary:
    """One layer: ``parameters`` and ``activations`` in elements, ``bytes`` of both, ``flops`` forward."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    activations: int
    bytes: int
    flops: int


class Summary(list[LayerSummary]):
    """A row for each layer in the order of the forward pass; ``print`` shows a table with totals."""

    def __str__(self) -> str:
        head = ("layer", "output shape", "parameters", "activations", "bytes", "FLOPs")
        numbers = [[r.parameters, r.activations, r.bytes, r.flops] for r in self]
        numbers.append([sum(column) for column in zip(*numbers, strict=True)])
        names = [(f"{r.name} {r.kind}".strip(), str(r.output_shape)) for r in self] + [("total", "")]
        rows = [name + tuple(f"{n:,}" for n in row) for name, row in zip(names, numbers, strict=True)]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        rule = "  ".join("-" * width for width in widths)

        def line(row: tuple[str, ...]) -> str:
            align = [str.ljust] * 2 + [str.rjust] * 4
            return "  ".join(a(c, w) for a, c, w in zip(align, row, widths, strict=True)).rstrip()

        return "\n".join([line(head), rule, *map(line, rows[:-1]), rule, line(rows[-1])])


def summary(model: Layer, input_shape: tuple[int, ...]) -> Summary:
    """Run one forward pass on an input of this shape (batch included) and list what each layer made of it.

    Activations are the layer's output; a multiply-add counts as two FLOPs; a parameter that several
    layers share is counted where it is met first. In the summary of a network that begins with an
    ``Embedding`` the input is tokens.

    Raises:  ValueError: a layer does not take what the one before it makes (the op's own message).
    """
    rows = Summary()
    counted: set[int] = set()
    traced = [
        (prefix.rstrip("."), layer)
        for prefix, layer in model.owners()
        if not layer.children or type(layer).flops is not Layer.flops
    ]

    def trace(name: str, layer: Layer) -> None:
        forward = layer.forward

        def traced_forward(x: Any, **options: Any) -> Any:
            y, cache = forward(x, **options)
            own = [p for p in layer._params.values() if id(p) not in counted]
            counted.update(map(id, own))
            count, size = sum(p.size for p in own), math.prod(y.shape)
            total = sum(p.nbytes for p in own) + y.nbytes
            flops = layer.flops(x.shape, y.shape)
            rows.append(LayerSummary(name, type(layer).__name__, y.shape, count, size, total, flops))
            return y, cache

        layer.forward = traced_forward  # type: ignore[method-assign]

    first = next((layer for _, layer in model.owners() if not layer.children), model)
    try:
        for name, layer in traced:
            if "forward" not in vars(layer):  # a layer used twice is traced once and listed twice
                trace(name, layer)
        with model.keeping_buffers():
            model.reset()
            model.forward(np.zeros(input_shape, first.input_dtype))
    finally:
        for _, layer in traced:
            vars(layer).pop("forward", None)
    return rows
