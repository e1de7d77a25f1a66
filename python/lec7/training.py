"""The training loop: forward, loss, backward, clip, update; it stops and goes on anywhere, bit for bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lec7 import ops
from lec7.arrays import Array, host, like, recording
from lec7.layers.base import Layer, Parameters
from lec7.losses import Loss
from lec7.optimizers import Optimizer, Schedule, clip_scale, constant

Batch = tuple[Array, Array]


@dataclass(frozen=True)
class StepResult:
    """One step's loss (before the update), gradient norm (before clipping) and learning rate.

    They are floats; of a step that a CUDA graph recorded, arrays of shape () with the last replay's numbers,
    which ``float`` waits for.
    """

    loss: float | Array
    grad_norm: float | Array
    lr: float | Array


def minibatches(x: Array, targets: Array, size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """All rows once, in a random order, ``size`` at a time; the last batch may be smaller."""
    order = rng.permutation(len(x))
    for start in range(0, len(x), size):
        rows = order[start : start + size]
        yield x[rows], targets[rows]


class Trainer:
    """Minimizes a loss of a network over batches.

    ``schedule`` is a learning rate or a function from the step to it; gradients are scaled down to the
    norm ``clip``; parameters whose names start with one of ``frozen`` stay as they are, and so do the running
    averages of a batch norm whose gamma and beta are among them. ``rng`` is the
    generator that ``fit`` hands to ``batches``. ``step_count``, ``epoch`` and ``batch`` (in the epoch)
    count what is done; ``metrics`` are numbers that callbacks want a checkpoint to keep. Set
    ``stopping`` and ``fit`` returns after the step in hand.
    """

    def __init__(
        self,
        model: Layer,
        optimizer: Optimizer,
        loss: Loss,
        *,
        rng: np.random.Generator,
        schedule: float | Schedule = 1e-3,
        clip: float | None = None,
        frozen: Iterable[str] = (),
    ) -> None:
        self.model = model
        self.parameters = Parameters(model, frozen=frozen)
        self.optimizer = optimizer
        self.loss = loss
        self.rng = rng
        self.schedule = schedule if callable(schedule) else constant(schedule)
        self.clip = clip
        self.step_count = self.epoch = self.batch = 0
        self.metrics: dict[str, float] = {}
        self.stopping = False
        self._epoch_rng_state = rng.bit_generator.state

    def step(self, x: Array, targets: Array) -> StepResult:
        """One update of the parameters from one batch, which is moved to where they are.

        Its gradients stay in ``parameters.grads``; what was there before is forgotten.

        While a CUDA graph records, nothing is done, and each replay is a step on what x and targets hold
        then: ``step_count``, the schedule and the network's masks go on with it. One step must have been
        made before. A replay does not refuse a loss that is not finite.

        Raises:  FloatingPointError: the loss or the gradient is not finite.  Whatever is raised: parameters
                 and buffers (running averages, carried states) are as they were.
        """
        learns = slice(self.parameters.trainable)
        values = self.parameters.values[learns]
        x, targets = (like(a, values) for a in (x, targets))
        graph = recording(values)
        if graph is not None:
            return self._recorded_step(graph, x, targets, values, self.parameters.grads[learns])
        put_buffers_back = self.model.keep_buffers()
        try:
            self.parameters.forget_grads()
            y, cache = self.model.forward(x, training=True)
            loss, dy = self.loss(y, targets)
            self.model.backward(dy, cache, needs_dx=False)
            self.parameters.settle_grads()
            grads = self.parameters.grads[learns]
            norm = float(ops.global_norm(grads))  # waits for all of it
            loss = float(loss)
        except Exception:  # no memory, a label outside the classes: the step can be tried again
            self.parameters.zero_grads()
            put_buffers_back()
            raise
        lr = self.schedule(self.step_count)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.parameters.zero_grads()
            put_buffers_back()
            raise FloatingPointError(
                f"step {self.step_count + 1}: loss {loss}, gradient norm {norm}; "
                f"a smaller learning rate (now {lr:g}) or clip (now {self.clip}) may help"
            )
        scale = clip_scale(norm, self.clip)
        self.optimizer.update(values, grads, lr=lr, grad_scale=scale)
        self.step_count += 1
        return StepResult(loss, norm, lr)

    def _recorded_step(self, graph: Any, x: Array, targets: Array, values: Array, grads: Array) -> StepResult:
        # First: if a schedule raises, a replay has changed no count.
        lr = graph.each_replay(lambda: self.schedule(self.step_count), "float64")
        self.parameters.forget_grads()
        y, cache = self.model.forward(x, training=True)
        loss, dy = self.loss(y, targets)
        self.model.backward(dy, cache, needs_dx=False)
        norm = ops.global_norm(grads)
        self.optimizer.update(values, grads, lr=lr, grad_scale=clip_scale(norm, self.clip))
        graph.each_replay(self._count)
        return StepResult(loss, norm, lr)

    def _count(self) -> None:
        self.step_count += 1

    def fit(
        self,
        batches: Callable[[np.random.Generator], Iterable[Batch]],
        *,
        epochs: int,
        on_step: Iterable[Callable[[Trainer, StepResult], None]] = (),
        on_epoch: Iterable[Callable[[Trainer], None]] = (),
    ) -> None:
        """Train until ``epochs`` are done in all; each epoch goes through ``batches(rng)`` once.

        The model is reset at the start of each epoch. Callbacks run after each step and after each epoch.
        """
        while self.epoch < epochs and not self.stopping:
            self._epoch_rng_state = self.rng.bit_generator.state
            if self.batch == 0:
                self.model.reset()
            for batch in itertools.islice(batches(self.rng), self.batch, None):
                result = self.step(*batch)
                self.batch += 1
                for step_callback in on_step:
                    step_callback(self, result)
                if self.stopping:
                    return
            self.epoch, self.batch = self.epoch + 1, 0
            for epoch_callback in on_epoch:
                epoch_callback(self)

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """All that ``restore`` needs to go on from here: arrays, and what JSON can say."""
        tensors = {
            "parameters": self.parameters.values,
            **{f"optimizer.{name}": array for name, array in self.optimizer.state.items()},
            **{f"buffer.{name}": array for name, array in self.model.buffers.items()},
        }
        # In an epoch's middle, its batches are drawn again from its start and the done ones skipped.
        rng_state = self._epoch_rng_state if self.batch else self.rng.bit_generator.state
        return {name: host(array) for name, array in tensors.items()}, {
            "layout": {name: [offset, *shape] for name, (offset, shape) in self.parameters.layout.items()},
            "optimizer": type(self.optimizer).__name__,
            "optimizer_steps": self.optimizer.steps,
            "step_count": self.step_count,
            "epoch": self.epoch,
            "batch": self.batch,
            "metrics": self.metrics,
            "rng": rng_state,
        }

    def restore(self, tensors: Mapping[str, Array], state: Mapping[str, Any]) -> None:
        """Go back to a ``state()`` of a trainer built the same way.

        Raises:  ValueError: it belongs to another network or optimizer.
        """
        rule = type(self.optimizer).__name__
        if state["optimizer"] != rule:
            raise ValueError(f"restore: the state is of {state['optimizer']}, the optimizer is {rule}")
        load_parameters(self.parameters, tensors, state)
        prefix = "optimizer."
        values = self.parameters.values
        self.optimizer.state = {
            k.removeprefix(prefix): like(a.copy(), values) for k, a in tensors.items() if k.startswith(prefix)
        }
        self.optimizer.steps = state["optimizer_steps"]
        for owner_prefix, layer in self.model.owners("buffer."):
            own = {k.removeprefix(owner_prefix): a for k, a in tensors.items() if k.startswith(owner_prefix)}
            layer._buffers = {
                k: like(a.copy(), values) if a.dtype == values.dtype else a.copy()
                for k, a in own.items()
                if "." not in k
            }
        self.step_count, self.epoch, self.batch = state["step_count"], state["epoch"], state["batch"]
        self.metrics = dict(state["metrics"])
        self.rng.bit_generator.state = state["rng"]
        self.parameters.zero_grads()


def load_parameters(parameters: Parameters, tensors: Mapping[str, Array], state: Mapping[str, Any]) -> None:
    """Copy the parameters and buffers of a ``Trainer.state()`` into a network built the same way.

    What the network carried from call to call is forgotten (``reset``), and nothing is carried over.

    Raises:  ValueError: a parameter or buffer is missing, another one, or has another shape.
    """
    mine = {name: [offset, *shape] for name, (offset, shape) in parameters.layout.items()}
    its = state["layout"]
    for name in mine.keys() | its.keys():
        if mine.get(name) != its.get(name):
            raise ValueError(
                f"parameter {name}: the network has {_describe(mine.get(name))}, "
                f"the checkpoint {_describe(its.get(name))}"
            )
    if tensors["parameters"].shape != parameters.values.shape:
        raise ValueError(
            f"the network has {parameters.values.size} numbers, the checkpoint {tensors['parameters'].size}"
        )
    put_buffers_back = parameters.model.keep_buffers()
    parameters.model.reset()  # a carried state has any shape; what stays belongs to the network
    buffers = parameters.model.buffers
    for name, array in buffers.items():
        found = tensors.get(f"buffer.{name}")
        if found is None or (found.shape, found.dtype) != (array.shape, array.dtype):
            put_buffers_back()
            its = "none" if found is None else f"{found.dtype} {found.shape}"
            raise ValueError(
                f"buffer {name}: the network has {array.dtype} {array.shape}, the checkpoint {its}"
            )
    parameters.values[...] = tensors["parameters"]
    for name, array in buffers.items():
        array[...] = tensors[f"buffer.{name}"]


def _describe(place: list[int] | None) -> str:
    return "none" if place is None else f"shape {tuple(place[1:])} at {place[0]}"
