"""What a row of the comparison is: the same work in lec7 and in PyTorch, its name, its targets, its check."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from device import CPU, HALF, Device
from numpy.typing import NDArray

from lec7.arrays import on_device

Array = NDArray[Any]
Closure = Callable[[], Sequence[Any]]
Module = TypeVar("Module", bound=torch.nn.Module)

# Relative to the norm of a result: one element of 10^9 that is wrong by its own size shows.
TOLERANCE = 2e-5
#: times the tolerance, where operands or results are rounded: to 11 bits (off by some 3e-4 of the norm), to 8
SLACK = {"float32": 1, "tf32": 100, "float16": 100, "bfloat16": 800}
WIDEST = 0.2  # a wrong result is off by its own size


def as_arrays(results: Sequence[Any]) -> list[Array]:
    """Results of either library as NumPy's, without a copy where they are on the host."""

    def array(result: Any) -> Array:
        if not isinstance(result, torch.Tensor):
            if not on_device(result):
                return np.asarray(result)
            result = torch.from_dlpack(result)
        result = result.detach().cpu()
        return (result.float() if result.dtype in HALF else result).numpy()  # NumPy has no bfloat16

    return [array(r) for r in results]


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


@dataclass(frozen=True)
class Data:
    """Makes a row's arrays where lec7 reads them: numbers of ``dtype``, the same ones in every run."""

    device: Device = CPU
    dtype: torch.dtype = torch.float32
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def array(self, values: Array) -> Array:
        tensor = torch.from_numpy(values)
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return self.device.array(tensor.to(self.device.theirs, dtype))

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        return self.array(normal(self.rng, *shape, scale=scale))

    def integers(self, below: int, *shape: int) -> Array:
        return self.array(self.rng.integers(below, size=shape))

    def zeros(self, *shape: int) -> Array:
        return self.array(np.zeros(shape, np.float32))

    def module(self, module: Module) -> Module:
        """A module of PyTorch's, moved there."""
        return module.to(self.device.theirs, self.dtype)


def tensors(*arrays: Array, grad: bool = False) -> list[torch.Tensor]:
    """The same memory as PyTorch's tensors."""
    return [torch.from_dlpack(a).requires_grad_(grad) for a in arrays]


def no_grad(function: Closure) -> Closure:
    return torch.inference_mode()(function)


# --- the check ----------------------------------------------------------------------------------------------


class DisagreementError(Exception):
    """The two libraries computed different things."""


def verify(pair: Pair, precision: str = "float32") -> None:
    """Call both sides and compare all results; of products to the tolerance that the precision needs.

    Raises:  DisagreementError: names the result, the error and the limit.
    """
    ours, *theirs = pair.compare or (pair.ours, *pair.theirs)
    names = pair.names.split()
    slack = SLACK[precision] if pair.flops else 1
    tolerance = pair.tolerance if slack == 1 else min(slack * pair.tolerance, WIDEST)
    for call in range(pair.calls):
        expected = as_arrays(ours())
        for variant in theirs:
            for name, a, b in zip(names, expected, pair.align(variant()), strict=True):
                where = f"{name} (call {call + 1})" if pair.calls > 1 else name
                if a.shape != b.shape:
                    raise DisagreementError(f"{where}: lec7 gives the shape {a.shape}, PyTorch {b.shape}")
                difference = float(np.linalg.norm(np.subtract(a, b, dtype=np.float64)))
                error = difference / max(float(np.linalg.norm(b)), 1e-30)
                if not error <= tolerance:  # NaN too
                    raise DisagreementError(f"{where}: relative error {error:.1e}, more than {tolerance:.0e}")


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
        for parameter, weight in zip((weight_ih, weight_hh, bias_ih), as_arrays(weights), strict=True):
            parameter.copy_(torch.from_numpy(torch_gates(weight, cell).T))
        bias_hh.zero_()


def torch_formats(*arrays: Array | torch.Tensor) -> list[list[torch.Tensor]]:
    """Arrays with channels last as PyTorch's NCHW tensors: contiguous, and in channels-last memory."""
    nchw = [t.movedim(-1, 1) for t in tensors(*arrays)]
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
    dtype: torch.dtype = torch.float32
    most: float | None = None
    least: float | None = None

    @property
    def title(self) -> str:
        return f"{self.name}, {self.direction}" if self.direction else self.name

    @property
    def shape(self) -> str:
        sizes = self.sizes.items()
        return " ".join(k if v is True else f"{k}{v}" if len(k) == 1 else f"{k} {v:,}" for k, v in sizes)

    def make(self, device: Device = CPU) -> Pair:
        return self.family(Data(device, self.dtype), **self.sizes)


def rows(
    name: str,
    family: Callable[..., Pair],
    *,
    most: float | tuple[float | None, float | None] | None = None,
    least: float | None = None,
    dtype: torch.dtype = torch.float32,
    **sizes: Any,
) -> list[Row]:
    """One row; two, forward and forward + backward (each with its ``most``), where the family has both."""
    if "backward" not in inspect.signature(family).parameters:
        return [Row(name, "", family, sizes, dtype, most, least)]
    forward, both = most if isinstance(most, tuple) else (most, most)
    return [
        Row(name, "forward", partial(family, backward=False), sizes, dtype, forward, least),
        Row(name, "forward + backward", partial(family, backward=True), sizes, dtype, both, least),
    ]
