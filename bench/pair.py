"""What a row of the comparison is: the same work in lec7 and in PyTorch, its name, and its targets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
Closure = Callable[[], Sequence[Any]]

# Relative to the norm of a result: one element of 10^9 that is wrong by its own size shows.
TOLERANCE = 2e-5


def as_arrays(results: Sequence[Any]) -> list[Array]:
    return [r.detach().numpy() if isinstance(r, torch.Tensor) else np.asarray(r) for r in results]


@dataclass(kw_only=True)
class Pair:
    """The same work in both libraries.

    ``theirs`` are PyTorch's ways to do it, of which the fastest counts; ``align`` brings their results, whose
    ``names`` are given, into lec7's layout. ``flops`` are those of the formula (a multiply-add is two);
    ``amount`` is what a call does in terms of ``unit``; ``limit`` says of which peak of the machine a time is
    a fraction. ``compare``: closures to compare in place of the timed ones, where those draw random numbers.
    ``calls``: how many calls in a row have to agree, where each goes on from the last.
    """

    ours: Closure
    theirs: list[Closure]
    names: str
    align: Callable[[Sequence[Any]], list[Array]] = as_arrays
    flops: float = 0
    amount: float = 0
    unit: str = "GB/s"
    limit: Literal["flops", "bandwidth"] = "flops"
    compare: tuple[Closure, ...] | None = None
    calls: int = 1
    tolerance: float = TOLERANCE


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    return scale * rng.standard_normal(shape, np.float32)


def tensors(*arrays: Array, grad: bool = False) -> list[torch.Tensor]:
    return [torch.from_numpy(a).requires_grad_(grad) for a in arrays]


def no_grad(function: Closure) -> Closure:
    return torch.inference_mode()(function)


# --- PyTorch's layouts --------------------------------------------------------------------------------------


def torch_gates(a: Array, cell: str) -> Array:
    """Reorder the last axis from an LSTM's gates i f o g (lec7) to i f g o (PyTorch), and back."""
    if cell != "lstm":
        return a
    i, f, o, g = np.split(a, 4, axis=-1)
    return np.concatenate([i, f, g, o], axis=-1)


def copy_cell(
    cell: str, weights: Sequence[Array], weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any
) -> None:
    """lec7's weight_x, weight_h and bias into PyTorch's parameters, whose second bias becomes 0."""
    with torch.no_grad():
        for parameter, weight in zip((weight_ih, weight_hh, bias_ih), weights, strict=True):
            parameter.copy_(torch.from_numpy(torch_gates(weight, cell).T))
        bias_hh.zero_()


def torch_formats(*arrays: Array) -> list[list[torch.Tensor]]:
    """Arrays with channels last as PyTorch's NCHW tensors: contiguous, and in channels-last memory."""
    nchw = [torch.from_numpy(a).movedim(-1, 1) for a in arrays]
    formats = torch.contiguous_format, torch.channels_last
    return [[t.clone(memory_format=f) for t in nchw] for f in formats]


def channels_last(results: Sequence[torch.Tensor]) -> list[Array]:
    """Images back to (N, H, W, C); filters (F, C, KH, KW) are stored like images of (F, KH, KW, C)."""
    return [a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for a in as_arrays(results)]


# --- rows ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """``most``: the largest ratio lec7 / PyTorch, ``least``: the smallest fraction of the peak, that pass."""

    name: str
    direction: str
    family: Callable[..., Pair]
    sizes: dict[str, Any]
    most: float | None = None
    least: float | None = None

    @property
    def title(self) -> str:
        return f"{self.name}, {self.direction}" if self.direction else self.name

    @property
    def shape(self) -> str:
        sizes = self.sizes.items()
        return " ".join(k if v is True else f"{k}{v}" if len(k) == 1 else f"{k} {v:,}" for k, v in sizes)

    def make(self) -> Pair:
        return self.family(np.random.default_rng(0), **self.sizes)


def rows(
    name: str,
    family: Callable[..., Pair],
    *,
    most: float | tuple[float | None, float | None] | None = None,
    least: float | None = None,
    **sizes: Any,
) -> list[Row]:
    """One row; two, forward and forward + backward (each with its ``most``), where the family has both."""
    if "backward" not in inspect.signature(family).parameters:
        return [Row(name, "", family, sizes, most, least)]
    forward, both = most if isinstance(most, tuple) else (most, most)
    return [
        Row(name, "forward", partial(family, backward=False), sizes, forward, least),
        Row(name, "forward + backward", partial(family, backward=True), sizes, both, least),
    ]
