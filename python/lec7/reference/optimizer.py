"""Updates of parameters in place, and the norm of their gradients."""

import numpy as np
from numpy import ndarray

from ._checks import expect_shape


def sgd_update_(
    params: ndarray,
    grads: ndarray,
    momentum_buffer: ndarray | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None:
    """Stochastic gradient descent, with momentum where a buffer is given.

    g = grad_scale * grads + weight_decay * params
    momentum_buffer = momentum * momentum_buffer + g
    params -= lr * (g + momentum * momentum_buffer if nesterov else momentum_buffer); without a buffer, lr * g

    Args:    params: any shape, float32|float64, contiguous, changed in place.  grads: like params.
             momentum_buffer: like params, 0 at the start, changed in place; required when momentum is not 0.
             lr: learning rate.  weight_decay: weight of the penalty params^2 / 2.
             grad_scale: factor of the gradient, for clipping.  On a GPU, lr and grad_scale may be float64
             arrays of shape ().
    Raises:  ValueError: shapes differ; momentum without a buffer; nesterov without momentum; a number is not
             finite; an array that changes in place is not contiguous or is read-only.
    Source:  Polyak 1964; Sutskever, Martens, Dahl, Hinton 2013, section 2 (Nesterov), in PyTorch's form.
    """
    if momentum_buffer is None and (momentum or nesterov):
        raise ValueError(f"sgd_update_: momentum {momentum}, nesterov {nesterov} need a momentum_buffer")
    if nesterov and not momentum:
        raise ValueError("sgd_update_: nesterov needs a momentum that is not 0")
    g = _gradient("sgd_update_", params, grads, weight_decay, grad_scale)
    if momentum_buffer is not None:
        expect_shape("sgd_update_", "momentum_buffer", momentum_buffer, params.shape)
        momentum_buffer *= momentum
        momentum_buffer += g
        g = g + momentum * momentum_buffer if nesterov else momentum_buffer
    params -= lr * g


def rmsprop_update_(
    params: ndarray,
    grads: ndarray,
    square_average: ndarray,
    *,
    lr: float,
    decay: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None:
    """RMSProp: each step is divided by a running root mean square of the gradient.

    g = grad_scale * grads + weight_decay * params
    square_average = decay * square_average + (1 - decay) * g^2
    params -= lr * g / (sqrt(square_average) + eps)

    Args:    params: any shape, float32|float64, contiguous, changed in place.  grads: like params.
             square_average: like params, 0 at the start, changed in place.
             lr: learning rate.  decay: in [0, 1).  eps: not negative.
             weight_decay: weight of the penalty params^2 / 2.
             grad_scale: factor of the gradient, for clipping.  On a GPU, lr and grad_scale may be float64
             arrays of shape ().
    Raises:  ValueError: shapes differ; a number is not finite or out of range; an array that changes in place
             is not contiguous or is read-only.
    Source:  Tieleman, Hinton 2012, Neural networks for machine learning, lecture 6.5.
    """
    g = _gradient("rmsprop_update_", params, grads, weight_decay, grad_scale)
    expect_shape("rmsprop_update_", "square_average", square_average, params.shape)
    square_average *= decay
    square_average += (1 - decay) * g * g
    params -= lr * g / (np.sqrt(square_average) + eps)


def adam_update_(
    params: ndarray,
    grads: ndarray,
    mean: ndarray,
    variance: ndarray,
    *,
    lr: float,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """Adam; with decoupled=True AdamW.

    g = grad_scale * grads + weight_decay * params
    decoupled: g = grad_scale * grads, and first params *= 1 - lr * weight_decay
    mean = beta1 * mean + (1 - beta1) * g
    variance = beta2 * variance + (1 - beta2) * g^2
    params -= lr * (mean / (1 - beta1^step)) / (sqrt(variance / (1 - beta2^step)) + eps)

    Args:    params: any shape, float32|float64, contiguous, changed in place.  grads: like params.
             mean, variance: like params, 0 at the start, changed in place.  step: 1 at the first update.
             lr: learning rate.  beta1, beta2: in [0, 1).  eps: not negative.
             weight_decay: weight of the penalty params^2 / 2 (decoupled: the decay itself).
             grad_scale: factor of the gradient, for clipping.  On a GPU, lr and grad_scale (float64) and step
             (int64) may be arrays of shape (), and step is one while a graph records.
    Raises:  ValueError: shapes differ; step is less than 1; a number is not finite or out of range; an array
             that changes in place is not contiguous or is read-only.
    Source:  Kingma, Ba 2015, algorithm 1; Loshchilov, Hutter 2019, algorithm 2 (decoupled).
    """
    if step < 1:
        raise ValueError(f"adam_update_: step must be at least 1, is {step}")
    g = _gradient("adam_update_", params, grads, 0.0 if decoupled else weight_decay, grad_scale)
    expect_shape("adam_update_", "mean", mean, params.shape)
    expect_shape("adam_update_", "variance", variance, params.shape)
    mean *= beta1
    mean += (1 - beta1) * g
    variance *= beta2
    variance += (1 - beta2) * g * g
    if decoupled:
        params *= 1 - lr * weight_decay
    params -= lr / (1 - beta1**step) * mean / (np.sqrt(variance / (1 - beta2**step)) + eps)


def global_norm(grads: ndarray) -> float:
    """Euclidean norm, accumulated in float64.

    sqrt(sum of grads^2)

    Args:    grads: any shape, float32|float64.
    Returns: the norm; on a GPU an array of shape () and float64, which ``float`` waits for.
    Source:  Pascanu, Mikolov, Bengio 2013, algorithm 1 (clipping by norm).
    """
    return float(np.sqrt(np.square(grads, dtype=np.float64).sum()))


def scale_(x: ndarray, factor: float) -> None:
    """Multiply in place.

    x *= factor

    Args:    x: any shape, float32|float64, contiguous, changed in place.  factor: a number.
    """
    x *= factor


def _gradient(op: str, params: ndarray, grads: ndarray, weight_decay: float, grad_scale: float) -> ndarray:
    expect_shape(op, "grads", grads, params.shape)
    g = grad_scale * grads
    return g + weight_decay * params if weight_decay else g
