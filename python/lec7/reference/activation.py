"""Activations: element by element; each derivative is written in terms of the activation's own output."""

import numpy as np
from numpy import ndarray


def relu_forward(x: ndarray) -> ndarray:
    """Rectified linear unit.

    y = max(x, 0)

    Args:    x: any shape, float32|float64.
    Returns: y like x; NaN stays NaN.
    Source:  Nair, Hinton 2010, Rectified linear units improve restricted Boltzmann machines.
    """
    return np.maximum(x, 0)


def relu_backward(dy: ndarray, y: ndarray) -> ndarray:
    """Gradient of the rectified linear unit.

    dx = dy where y > 0, else 0

    Args:    dy, y: the same shape; y is the output of relu_forward.
    Returns: dx like dy.
    Raises:  ValueError: dy and y differ in shape.
    """
    _same_shape("relu", dy, y)
    return np.where(y > 0, dy, 0)


def sigmoid_forward(x: ndarray) -> ndarray:
    """Logistic sigmoid.

    y = 1 / (1 + exp(-x))

    Args:    x: any shape, float32|float64.
    Returns: y like x, in [0, 1]; no overflow for any x; NaN stays NaN.
    Source:  Goodfellow, Bengio, Courville 2016, Deep Learning, section 3.10.
    """
    e = np.exp(-np.abs(x))  # the exponent is never positive, so that it cannot overflow
    return np.where(x >= 0, 1, e) / (1 + e)


def sigmoid_backward(dy: ndarray, y: ndarray) -> ndarray:
    """Gradient of the logistic sigmoid.

    dx = dy * y * (1 - y)

    Args:    dy, y: the same shape; y is the output of sigmoid_forward.
    Returns: dx like dy.
    Raises:  ValueError: dy and y differ in shape.
    """
    _same_shape("sigmoid", dy, y)
    return dy * y * (1 - y)


def tanh_forward(x: ndarray) -> ndarray:
    """Hyperbolic tangent.

    y = (exp(x) - exp(-x)) / (exp(x) + exp(-x))

    Args:    x: any shape, float32|float64.
    Returns: y like x, in [-1, 1]; NaN stays NaN.
    Source:  LeCun, Bottou, Orr, Müller 1998, Efficient BackProp, section 4.4.
    """
    return np.tanh(x)


def tanh_backward(dy: ndarray, y: ndarray) -> ndarray:
    """Gradient of the hyperbolic tangent.

    dx = dy * (1 - y^2)

    Args:    dy, y: the same shape; y is the output of tanh_forward.
    Returns: dx like dy.
    Raises:  ValueError: dy and y differ in shape.
    """
    _same_shape("tanh", dy, y)
    return dy * (1 - y * y)


def _same_shape(op: str, dy: ndarray, y: ndarray) -> None:
    if dy.shape != y.shape:
        raise ValueError(f"{op}: dy and y must have the same shape; dy = {dy.shape}, y = {y.shape}")


_FUSED = {
    "relu": (relu_forward, relu_backward),
    "sigmoid": (sigmoid_forward, sigmoid_backward),
    "tanh": (tanh_forward, tanh_backward),
}


def activate(op: str, x: ndarray, activation: str | None) -> ndarray:
    """The activation that `op` applies to its result."""
    if activation is None:
        return x
    if activation not in _FUSED:
        raise ValueError(f"{op}: activation must be None, {', '.join(_FUSED)}; is {activation!r}")
    return _FUSED[activation][0](x)


def activate_backward(op: str, dy: ndarray, y: ndarray | None, activation: str | None) -> ndarray:
    """The gradient before the activation of `op`, from the gradient after it."""
    if activation is None:
        return dy
    if activation not in _FUSED:
        raise ValueError(f"{op}: activation must be None, {', '.join(_FUSED)}; is {activation!r}")
    if y is None:
        raise ValueError(
            f"{op}: the gradient through activation={activation!r} needs y, the forward's result"
        )
    return _FUSED[activation][1](dy, y)
