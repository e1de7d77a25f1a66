"""Losses: functions ``(outputs, targets) -> (loss, gradient of the outputs)``, the mean over the batch.

The loss is a float, or on a GPU an array of shape (): ``float(loss)`` waits for it.
"""

from __future__ import annotations

from collections.abc import Callable

from lec7 import ops
from lec7.arrays import Array, on_device

Loss = Callable[[Array, Array], tuple[float | Array, Array]]


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    class_weight: Array | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> tuple[float | Array, Array]:
    """mean of -log softmax(logits)[label], in nats: logits (..., K), labels (...) in [0, K).

    Options as in ``ops.softmax_cross_entropy_forward``.
    """
    loss, saved = ops.softmax_cross_entropy_forward(
        logits,
        labels,
        class_weight=class_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    dlogits = ops.softmax_cross_entropy_backward(
        1.0,
        logits,
        labels,
        saved,
        class_weight=class_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    return _number(loss), dlogits


def binary_cross_entropy(logits: Array, targets: Array) -> tuple[float | Array, Array]:
    """mean of -(t log s + (1 - t) log(1 - s)), s = sigmoid(logits); targets t in [0, 1] like logits."""
    loss = ops.binary_cross_entropy_forward(logits, targets)
    return _number(loss), ops.binary_cross_entropy_backward(1.0, logits, targets)


def mean_squared_error(x: Array, targets: Array) -> tuple[float | Array, Array]:
    """mean of (x - targets)^2: targets shaped like x."""
    loss = ops.mean_squared_error_forward(x, targets)
    return _number(loss), ops.mean_squared_error_backward(1.0, x, targets)


def _number(loss: Array) -> float | Array:
    return loss if on_device(loss) else float(loss)
