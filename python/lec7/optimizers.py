"""Optimizers over one flat buffer, learning-rate schedules, clipping.

An optimizer keeps its state in arrays as long as the parameters and updates all of them in one fused
op. A schedule is a function from the step (0, 1, 2, ...) to the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lec7 import ops
from lec7.arrays import Array, each_time, on_device, recording, stay, zeros

Schedule = Callable[[int], float]


@dataclass(kw_only=True)
class Optimizer:
    """``update`` moves params in place, by grads * grad_scale; ``state`` and ``steps`` are its memory.

    lr is a number or a schedule, of which ``steps`` is the step; on a GPU, lr and grad_scale may also be
    float64 arrays of shape ().

    Raises:  RuntimeError: a CUDA graph records, and lr is a number, which would be every replay's, or there
             is no state yet: the first update makes it.
    """

    weight_decay: float = 0.0
    steps: int = field(default=0, init=False)
    state: dict[str, Array] = field(default_factory=dict, init=False, repr=False)

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of ``state``: arrays like the parameters, 0 at the start."""
        return ()

    def update(
        self,
        params: Array,
        grads: Array,
        *,
        lr: float | Array | Schedule,
        grad_scale: float | Array = 1.0,
    ) -> None:
        records, rule = recording(params) is not None, type(self).__name__
        if records and not (callable(lr) or on_device(lr)):
            raise RuntimeError(
                f"{rule}.update: while a graph records, lr is a schedule or an array, for each replay's own; "
                f"constant({lr}) is the same in all of them"
            )
        if not self.state and self.slots:
            if records:
                raise RuntimeError(f"{rule}.update: make one before a graph records: it makes the state")
            self.state = {name: zeros(params.shape, params) for name in self.slots}
        stay(self, "state", params)
        if callable(lr):
            schedule = lr
            lr = each_time(lambda: schedule(self.steps), "float64", params)
        step = each_time(self._next_step, "int64", params)
        self._update(params, grads, step, lr=lr, grad_scale=grad_scale, weight_decay=self.weight_decay)

    def _next_step(self) -> int:
        self.steps += 1
        return self.steps

    def _update(self, params: Array, grads: Array, step: Any, **options: Any) -> None:
        raise NotImplementedError


@dataclass(kw_only=True)
class SGD(Optimizer):
    """buf = momentum buf + g; p -= lr (g + momentum buf if nesterov else buf).

    Source:  Polyak 1964; Sutskever, Martens, Dahl, Hinton 2013 (Nesterov's form).
    """

    momentum: float = 0.0
    nesterov: bool = False

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def _update(self, params: Array, grads: Array, step: Any, **options: Any) -> None:
        buffer = self.state.get("momentum_buffer")
        ops.sgd_update_(params, grads, buffer, momentum=self.momentum, nesterov=self.nesterov, **options)


@dataclass(kw_only=True)
class RMSProp(Optimizer):
    """s = decay s + (1 - decay) g^2; p -= lr g / (sqrt(s) + eps).

    Source:  Tieleman, Hinton 2012, lecture 6.5.
    """

    decay: float = 0.99
    eps: float = 1e-8

    @property
    def slots(self) -> tuple[str, ...]:
        return ("square_average",)

    def _update(self, params: Array, grads: Array, step: Any, **options: Any) -> None:
        ops.rmsprop_update_(
            params, grads, self.state["square_average"], decay=self.decay, eps=self.eps, **options
        )


@dataclass(kw_only=True)
class Adam(Optimizer):
    """m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, both corrected for their start from 0;
    p -= lr m / (sqrt(v) + eps).

    Source:  Kingma, Ba 2015, algorithm 1.
    """

    decoupled: ClassVar[bool] = False

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    @property
    def slots(self) -> tuple[str, ...]:
        return ("mean", "variance")

    def _update(self, params: Array, grads: Array, step: Any, **options: Any) -> None:
        ops.adam_update_(
            params,
            grads,
            self.state["mean"],
            self.state["variance"],
            step=step,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            decoupled=self.decoupled,
            **options,
        )


@dataclass(kw_only=True)
class AdamW(Adam):
    """Adam with the weight decay taken from the parameters directly, not through the moments.

    Source:  Loshchilov, Hutter 2019, algorithm 2.
    """

    decoupled = True

    weight_decay: float = 0.01


def constant(lr: float) -> Schedule:
    """The same rate at every step."""
    return lambda step: lr


def cosine(lr: float, steps: int, *, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Up from 0 in ``warmup`` steps, then down to ``final * lr`` at ``steps`` along half a cosine.

    Source:  Loshchilov, Hutter 2017, equation 5.
    """

    def rate(step: int) -> float:
        if step < warmup:
            return lr * (step + 1) / warmup
        progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))

    return rate


def exponential(lr: float, steps: int, *, final: float = 0.01) -> Schedule:
    """From lr down to ``final * lr`` at ``steps`` by the same factor at every step."""
    return lambda step: lr * final ** min(step / max(steps, 1), 1.0)


def staircase(lr: float, every: int, *, factor: float = 0.1) -> Schedule:
    """lr times ``factor`` once more after each ``every`` steps."""
    return lambda step: lr * factor ** (step // every)


def clip_scale(norm: float | Array, limit: float | None) -> float | Array:
    """What to multiply gradients of this norm by so that it is at most ``limit``; of a GPU's norm, there.

    Source:  Pascanu, Mikolov, Bengio 2013, algorithm 1.
    """
    if limit is not None and on_device(norm):
        from lec7 import cuda

        return cuda._module()._clip_scale(norm, limit)
    return 1.0 if limit is None or norm <= limit else limit / norm
