"""Softmax over the last axis, and the losses: softmax and binary cross-entropy, mean squared error."""

import numpy as np
from numpy import ndarray

from ._checks import expect_indices, expect_shape, refuse_outside
from .activation import sigmoid_forward


def softmax_forward(x: ndarray) -> ndarray:
    """Softmax over the last axis.

    y[k] = exp(x[k] - max x) / sum_j exp(x[j] - max x)

    Args:    x: (..., K) float32|float64.
    Returns: y like x; a row of -inf gives NaN.
    Raises:  ValueError: K is 0.
    Source:  Bridle 1990, Probabilistic interpretation of feedforward classification network outputs.
    """
    with np.errstate(invalid="ignore"):  # -inf - -inf: the NaN is the documented answer
        e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_backward(dy: ndarray, y: ndarray) -> ndarray:
    """Gradient of the softmax.

    dx[k] = y[k] * (dy[k] - sum_j dy[j] y[j])

    Args:    dy, y: (..., K), the same shape; y is the output of softmax_forward.
    Returns: dx like dy.
    Raises:  ValueError: dy and y differ in shape.
    """
    expect_shape("softmax", "dy", dy, y.shape)
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


def log_softmax_forward(x: ndarray) -> ndarray:
    """Logarithm of the softmax over the last axis.

    y[k] = x[k] - max x - log sum_j exp(x[j] - max x)

    Args:    x: (..., K) float32|float64.
    Returns: y like x; a row of -inf gives NaN.
    Raises:  ValueError: K is 0.
    Source:  Goodfellow, Bengio, Courville 2016, Deep Learning, section 6.2.2.3.
    """
    with np.errstate(invalid="ignore"):  # -inf - -inf: the NaN is the documented answer
        shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_softmax_backward(dy: ndarray, y: ndarray) -> ndarray:
    """Gradient of the logarithm of the softmax.

    dx[k] = dy[k] - exp(y[k]) * sum_j dy[j]

    Args:    dy, y: (..., K), the same shape; y is the output of log_softmax_forward.
    Returns: dx like dy.
    Raises:  ValueError: dy and y differ in shape.
    """
    expect_shape("log_softmax", "dy", dy, y.shape)
    return dy - np.exp(y) * dy.sum(axis=-1, keepdims=True)


def softmax_cross_entropy_forward(
    logits: ndarray,
    labels: ndarray,
    *,
    class_weight: ndarray | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[ndarray, ndarray]:
    """Cross-entropy between class labels and the softmax of logits.

    loss = sum_k t[k] * (lse - logits[k]),  lse = log sum_k exp(logits[k])
    t[k] = class_weight[k] * ((1 - label_smoothing) * [k = label] + label_smoothing / K), 0 where ignored
    "mean" divides the sum over rows by the sum of class_weight[label] over the rows not ignored.

    Args:    logits: (..., K) float32|float64.  labels: (...) int32|int64.  class_weight: (K,), None means 1.
             ignore_index: rows with this label count for nothing (it may lie outside [0, K)).
             label_smoothing: in [0, 1].  reduction: "mean", "sum" or "none".
    Returns: loss () for "mean" and "sum", (...) for "none"; the mean over nothing is 0.
             saved: lse of each row, (...).
    Raises:  ValueError: shapes do not fit; a label is outside [0, K); unknown reduction.
             TypeError: labels are not int32|int64.
    Source:  Szegedy et al. 2016, Rethinking the Inception architecture, section 7.
    """
    target, divisor = _targets(logits, labels, class_weight, ignore_index, label_smoothing)
    top = logits.max(axis=-1, keepdims=True)
    lse = top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    terms = np.zeros_like(
        logits
    )  # a class of probability 0 (a logit of -inf) costs nothing unless it is the target
    np.multiply(target, lse - logits, out=terms, where=target != 0)
    loss = _reduce("softmax_cross_entropy", terms.sum(axis=-1), reduction, divisor)
    return loss, lse[..., 0]


def softmax_cross_entropy_backward(
    dy: ndarray | float,
    logits: ndarray,
    labels: ndarray,
    saved: ndarray,
    *,
    class_weight: ndarray | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> ndarray:
    """Gradient of the cross-entropy with respect to the logits.

    dlogits[k] = dy * (exp(logits[k] - lse) * sum_j t[j] - t[k]), over the divisor of the mean

    Args:    dy: the gradient of the loss, () or a float for "mean" and "sum", (...) for "none".
             logits, labels and parameters: those of the forward.  saved: (...), lse from the forward.
    Returns: dlogits (..., K); 0 in rows that are ignored.
    Raises:  as the forward; ValueError: dy or saved does not fit.
    Source:  Goodfellow, Bengio, Courville 2016, Deep Learning, section 6.2.2.3.
    """
    target, divisor = _targets(logits, labels, class_weight, ignore_index, label_smoothing)
    expect_shape("softmax_cross_entropy", "saved", saved, labels.shape)
    scale = _reduce_backward("softmax_cross_entropy", dy, labels.shape, logits.dtype, reduction, divisor)
    probability = np.exp(logits - saved[..., None])
    dlogits = scale[..., None] * (probability * target.sum(axis=-1, keepdims=True) - target)
    counted = labels != ignore_index if ignore_index is not None else np.full(labels.shape, True)
    return np.where(counted[..., None], dlogits, 0)  # 0 even where an ignored row holds NaN


def binary_cross_entropy_forward(logits: ndarray, targets: ndarray, *, reduction: str = "mean") -> ndarray:
    """Cross-entropy between targets and the sigmoid of logits.

    loss = max(x, 0) - x t + log(1 + exp(-|x|)), which is -t log s(x) - (1 - t) log(1 - s(x)) without overflow

    Args:    logits x: any shape, float32|float64.  targets t: the same shape, in [0, 1].
             reduction: "mean", "sum" or "none".
    Returns: loss () for "mean" and "sum", like logits for "none"; the mean over nothing is 0.
    Raises:  ValueError: shapes differ; a target is outside [0, 1]; unknown reduction.
    Source:  Goodfellow, Bengio, Courville 2016, Deep Learning, section 6.2.2.2.
    """
    _check_binary_targets(logits, targets)
    loss = np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))
    return _reduce("binary_cross_entropy", loss, reduction, logits.size)


def binary_cross_entropy_backward(
    dy: ndarray | float, logits: ndarray, targets: ndarray, *, reduction: str = "mean"
) -> ndarray:
    """Gradient of the binary cross-entropy with respect to the logits.

    dlogits = dy * (sigmoid(logits) - targets), over the number of elements for "mean"

    Args:    dy: the gradient of the loss, () or a float for "mean" and "sum", like logits for "none".
             logits, targets, reduction: those of the forward.
    Returns: dlogits like logits.
    Raises:  as the forward; ValueError: dy does not fit.
    """
    _check_binary_targets(logits, targets)
    scale = _reduce_backward("binary_cross_entropy", dy, logits.shape, logits.dtype, reduction, logits.size)
    return scale * (sigmoid_forward(logits) - targets)


def mean_squared_error_forward(x: ndarray, targets: ndarray, *, reduction: str = "mean") -> ndarray:
    """Squared error.

    loss = (x - targets)^2

    Args:    x: any shape, float32|float64.  targets: the same shape.  reduction: "mean", "sum" or "none".
    Returns: loss () for "mean" and "sum", like x for "none"; the mean over nothing is 0.
    Raises:  ValueError: shapes differ; unknown reduction.
    Source:  Goodfellow, Bengio, Courville 2016, Deep Learning, section 5.1.4.
    """
    expect_shape("mean_squared_error", "targets", targets, x.shape)
    return _reduce("mean_squared_error", (x - targets) ** 2, reduction, x.size)


def mean_squared_error_backward(
    dy: ndarray | float, x: ndarray, targets: ndarray, *, reduction: str = "mean"
) -> ndarray:
    """Gradient of the squared error with respect to x.

    dx = dy * 2 (x - targets), over the number of elements for "mean"

    Args:    dy: the gradient of the loss, () or a float for "mean" and "sum", like x for "none".
             x, targets, reduction: those of the forward.
    Returns: dx like x.
    Raises:  as the forward; ValueError: dy does not fit.
    """
    expect_shape("mean_squared_error", "targets", targets, x.shape)
    scale = _reduce_backward("mean_squared_error", dy, x.shape, x.dtype, reduction, x.size)
    return scale * 2 * (x - targets)


def _targets(
    logits: ndarray,
    labels: ndarray,
    class_weight: ndarray | None,
    ignore_index: int | None,
    label_smoothing: float,
) -> tuple[ndarray, float]:
    """The weighted target t (..., K) of every row, and the divisor of the mean."""
    op = "softmax_cross_entropy"
    classes = logits.shape[-1]
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{op}: one label for each row; logits (..., K) = {logits.shape}, labels = {labels.shape}"
        )
    expect_indices(op, "labels", labels, classes, ignore=ignore_index)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{op}: label_smoothing must be in [0, 1], is {label_smoothing}")
    weight = np.ones(classes, logits.dtype) if class_weight is None else class_weight
    expect_shape(op, "class_weight (K,)", weight, (classes,))
    one_hot = labels[..., None] == np.arange(classes)
    target = weight * ((1 - label_smoothing) * one_hot.astype(logits.dtype) + label_smoothing / classes)
    if ignore_index is not None:
        one_hot &= (labels != ignore_index)[..., None]
        target = np.where((labels != ignore_index)[..., None], target, 0)
    return target, (weight * one_hot).sum()


def _check_binary_targets(logits: ndarray, targets: ndarray) -> None:
    expect_shape("binary_cross_entropy", "targets", targets, logits.shape)
    wrong = ~((targets >= 0) & (targets <= 1))
    refuse_outside("binary_cross_entropy", "targets", targets, wrong, "[0, 1]")


def _reduce(op: str, loss: ndarray, reduction: str, divisor: float) -> ndarray:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return np.asarray(loss.sum())
    if reduction == "mean":
        return np.asarray(loss.sum() / divisor if divisor else np.zeros((), loss.dtype))
    raise ValueError(f'{op}: reduction must be "mean", "sum" or "none", is {reduction!r}')


def _reduce_backward(
    op: str, dy: ndarray | float, shape: tuple[int, ...], dtype: np.dtype, reduction: str, divisor: float
) -> ndarray:
    """The gradient of each element of the loss before its reduction, broadcast to `shape`."""
    dy = np.asarray(dy, dtype)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'{op}: reduction must be "mean", "sum" or "none", is {reduction!r}')
    expect_shape(op, "dy", dy, shape if reduction == "none" else ())
    if reduction == "mean":
        dy = dy / divisor if divisor else np.zeros((), dtype)
    return np.broadcast_to(dy, shape)
