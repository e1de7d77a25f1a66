"""Normalization: local response across channels, batch statistics of each channel, statistics of each row."""

import math
from collections.abc import Collection

import numpy as np
from numpy import ndarray

from ._checks import delivers, expect_shape, wanted


def local_response_norm_forward(
    x: ndarray, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> tuple[ndarray, ndarray]:
    """Local response normalization across channels.

    y[..., c] = x[..., c] / d[..., c] ** beta
    d[..., c] = k + alpha / size * sum_j x[..., j]^2, j within size // 2 of c

    The paper's alpha is not divided by the size: its alpha = 1e-4 with 5 channels is alpha = 5e-4 here.

    Args:    x: (N, ..., C) float32|float64.  size: channels in the window (odd).  alpha, beta, k: numbers.
    Returns: y like x; saved: the denominators d, (N, ..., C).
    Raises:  ValueError: x has fewer than 2 axes; size is even or not positive.
    Source:  Krizhevsky, Sutskever, Hinton 2012, section 3.3.
    """
    _check_window(x, size)
    d = x.dtype.type(k) + x.dtype.type(alpha / size) * _window_sum(x * x, size)
    return x * d ** x.dtype.type(-beta), d


def local_response_norm_backward(
    dy: ndarray, x: ndarray, saved: ndarray, *, size: int, alpha: float = 1e-4, beta: float = 0.75
) -> ndarray:
    """Gradient of local response normalization.

    dx[c] = dy[c] d[c] ** -beta - 2 alpha beta / size * x[c] * sum_j dy[j] x[j] d[j] ** (-beta - 1),
    j within size // 2 of c

    Args:    dy, x: (N, ..., C).  saved: (N, ..., C), d from the forward (k is in it).
             size, alpha, beta: those of the forward.
    Returns: dx like x.
    Raises:  as the forward; ValueError: dy or saved does not fit.
    Source:  the chain rule on Krizhevsky, Sutskever, Hinton 2012, section 3.3.
    """
    _check_window(x, size)
    expect_shape("local_response_norm", "dy (N, ..., C)", dy, x.shape)
    expect_shape("local_response_norm", "saved (N, ..., C)", saved, x.shape)
    scaled = dy * saved ** x.dtype.type(-beta)
    through_sums = _window_sum(scaled * x / saved, size)
    return scaled - x.dtype.type(2 * alpha * beta / size) * x * through_sums


def batch_norm_forward(
    x: ndarray,
    gamma: ndarray,
    beta: ndarray,
    running_mean: ndarray,
    running_var: ndarray,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[ndarray, ndarray]:
    """Batch normalization of each channel.

    y = gamma * (x - mean) / sqrt(var + eps) + beta

    In training, mean and var (over n: the mean of squares) are those of each channel over all other axes, and
    the running averages are updated in place, with the unbiased variance n / (n - 1) * var:
    running = (1 - momentum) * running + momentum * new. Otherwise mean and var are the running averages.

    Args:    x: (N, ..., C) float32|float64.  gamma, beta, running_mean, running_var: (C,).
             training: use and keep track of the batch's statistics.
             momentum: in [0, 1], the weight of the new statistics.  eps: positive.
    Returns: y like x; saved: mean and 1 / sqrt(var + eps), (2, C).
    Raises:  ValueError: shapes do not fit; momentum or eps is out of range; in training, there are fewer
             than 2 values for each channel.
    Source:  Ioffe, Szegedy 2015, algorithms 1 and 2.
    """
    _check_batch_norm(x, training, gamma=gamma, beta=beta, running_mean=running_mean, running_var=running_var)
    if not 0 <= momentum <= 1:
        raise ValueError(f"batch_norm: momentum must be in [0, 1], is {momentum}")
    _check_eps("batch_norm", eps)
    mean, var = running_mean.astype(np.float64), running_var.astype(np.float64)
    if training:
        values, n = x.astype(np.float64), math.prod(x.shape[:-1])
        mean, var = values.mean(axis=_rows(x)), values.var(axis=_rows(x))
        running_mean[...] = (1 - momentum) * running_mean + momentum * mean
        running_var[...] = (1 - momentum) * running_var + momentum * var * (n / (n - 1))
    inverse = 1 / np.sqrt(var + eps)
    y = ((x - mean) * (gamma * inverse) + beta).astype(x.dtype)
    return y, np.stack([mean, inverse]).astype(x.dtype)


@delivers("batch_norm", "dx", "dgamma", "dbeta")
def batch_norm_backward(
    dy: ndarray,
    x: ndarray,
    gamma: ndarray,
    saved: ndarray,
    *,
    training: bool,
    needs: Collection[str] | None = None,
) -> tuple[ndarray | None, ndarray | None, ndarray | None]:
    """Gradients of batch normalization.

    xhat = (x - mean) * inverse, with saved = (mean, inverse);  means and sums are over all axes but the last
    dx = gamma * inverse * (dy - mean(dy) - xhat * mean(dy * xhat)) in training, where x moves its statistics
    dx = gamma * inverse * dy otherwise;  dgamma = sum(dy * xhat);  dbeta = sum(dy)

    Args:    dy, x: (N, ..., C).  gamma: (C,).  saved: (2, C) from the forward.  training: the forward's.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx like x, dgamma (C,), dbeta (C,); None for those not wanted.
    Raises:  ValueError: shapes do not fit; fewer than 2 values for each channel in training; unknown
             gradient name.
    Source:  Ioffe, Szegedy 2015, section 3.
    """
    need_x, need_gamma, need_beta = wanted("batch_norm", needs, "dx", "dgamma", "dbeta")
    _check_batch_norm(x, training, gamma=gamma)
    expect_shape("batch_norm", "dy (N, ..., C)", dy, x.shape)
    expect_shape("batch_norm", "saved (2, C)", saved, (2, x.shape[-1]))
    mean, inverse = saved
    xhat = (x - mean) * inverse
    dbeta, dgamma = dy.sum(axis=_rows(x)), (dy * xhat).sum(axis=_rows(x))
    dx = dy
    if training:
        n = math.prod(x.shape[:-1])
        dx = dy - dbeta / n - xhat * (dgamma / n)
    return (
        gamma * inverse * dx if need_x else None,
        dgamma if need_gamma else None,
        dbeta if need_beta else None,
    )


def layer_norm_forward(
    x: ndarray, gamma: ndarray, beta: ndarray, *, eps: float = 1e-5
) -> tuple[ndarray, ndarray]:
    """Layer normalization over the last axis.

    y = gamma * (x - mean) / sqrt(var + eps) + beta, mean and var (the mean of squares) those of each row

    Args:    x: (..., C) float32|float64.  gamma, beta: (C,).  eps: positive.
    Returns: y like x; saved: mean and 1 / sqrt(var + eps) of each row, (2, ...).
    Raises:  ValueError: shapes do not fit; x has no axis or an empty last one; eps is not positive.
    Source:  Ba, Kiros, Hinton 2016, equations 3 and 4.
    """
    _check_layer_norm(x, gamma=gamma, beta=beta)
    _check_eps("layer_norm", eps)
    values = x.astype(np.float64)
    mean, var = values.mean(axis=-1, keepdims=True), values.var(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt(var + eps)
    y = ((values - mean) * inverse * gamma + beta).astype(x.dtype)
    return y, np.stack([mean[..., 0], inverse[..., 0]]).astype(x.dtype)


@delivers("layer_norm", "dx", "dgamma", "dbeta")
def layer_norm_backward(
    dy: ndarray, x: ndarray, gamma: ndarray, saved: ndarray, *, needs: Collection[str] | None = None
) -> tuple[ndarray | None, ndarray | None, ndarray | None]:
    """Gradients of layer normalization.

    xhat = (x - mean) * inverse, with saved = (mean, inverse);  g = gamma * dy;  means are over the last axis
    dx = inverse * (g - mean(g) - xhat * mean(g * xhat))
    dgamma = sum(dy * xhat), dbeta = sum(dy) over rows

    Args:    dy, x: (..., C).  gamma: (C,).  saved: (2, ...) from the forward.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx like x, dgamma (C,), dbeta (C,); None for those not wanted.
    Raises:  ValueError: shapes do not fit; x has no axis or an empty last one; unknown gradient name.
    Source:  the chain rule on Ba, Kiros, Hinton 2016, equations 3 and 4.
    """
    need_x, need_gamma, need_beta = wanted("layer_norm", needs, "dx", "dgamma", "dbeta")
    _check_layer_norm(x, gamma=gamma)
    expect_shape("layer_norm", "dy (..., C)", dy, x.shape)
    expect_shape("layer_norm", "saved (2, ...)", saved, (2, *x.shape[:-1]))
    mean, inverse = saved[..., None]
    xhat = (x - mean) * inverse
    g = gamma * dy
    dx = inverse * (g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).mean(axis=-1, keepdims=True))
    return (
        dx if need_x else None,
        (dy * xhat).sum(axis=_rows(x)) if need_gamma else None,
        dy.sum(axis=_rows(x)) if need_beta else None,
    )


def _rows(x: ndarray) -> tuple[int, ...]:
    """All axes but the last."""
    return tuple(range(x.ndim - 1))


def _window_sum(x: ndarray, size: int) -> ndarray:
    """For each channel, the sum over the channels within size // 2 of it."""
    channels = x.shape[-1]
    half = min(size // 2, channels)  # a window that is wider holds no more channels
    padded = np.zeros((*x.shape[:-1], channels + 2 * half), x.dtype)
    padded[..., half : half + channels] = x
    total = np.zeros_like(x)
    for j in range(2 * half + 1):
        total += padded[..., j : j + channels]
    return total


def _check_window(x: ndarray, size: int) -> None:
    if x.ndim < 2:
        raise ValueError(f"local_response_norm: x must be (N, ..., C); x = {x.shape}")
    if size < 1 or size % 2 == 0:
        raise ValueError(f"local_response_norm: size must be odd and positive, is {size}; x = {x.shape}")


def _check_batch_norm(x: ndarray, training: bool, **vectors: ndarray) -> None:
    if x.ndim < 2:
        raise ValueError(f"batch_norm: x must be (N, ..., C); x = {x.shape}")
    for name, vector in vectors.items():
        expect_shape("batch_norm", f"{name} (C,)", vector, x.shape[-1:])
    if training and math.prod(x.shape[:-1]) < 2:
        raise ValueError(f"batch_norm: training needs 2 or more values for each channel; x = {x.shape}")


def _check_layer_norm(x: ndarray, **vectors: ndarray) -> None:
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"layer_norm: x must be (..., C), C at least 1; x = {x.shape}")
    for name, vector in vectors.items():
        expect_shape("layer_norm", f"{name} (C,)", vector, x.shape[-1:])


def _check_eps(op: str, eps: float) -> None:
    if not eps > 0:
        raise ValueError(f"{op}: eps must be positive, is {eps}")
