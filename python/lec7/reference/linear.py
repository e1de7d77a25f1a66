"""Linear (fully connected, dense) layer and matrix product."""

from collections.abc import Collection

from numpy import ndarray

from ._checks import delivers, expect_shape, wanted
from .activation import activate, activate_backward


def linear_forward(
    x: ndarray, weight: ndarray, bias: ndarray | None = None, *, activation: str | None = None
) -> ndarray:
    """Linear layer, with an optional fused activation.

    y = activation(x @ weight + bias)

    Args:    x: (..., I) float32|float64.  weight: (I, O).  bias: (O,) or None.
             activation: None, "relu", "sigmoid" or "tanh".
    Returns: y (..., O).
    Raises:  ValueError: shapes do not fit; unknown activation.
    Source:  Rumelhart, Hinton, Williams 1986, equation 1.
    """
    _check_weight(x, weight)
    y = x @ weight
    if bias is not None:
        expect_shape("linear", "bias (O,)", bias, weight.shape[1:])
        y = y + bias
    return activate("linear", y, activation)


@delivers("linear", "dx", "dweight", "dbias")
def linear_backward(
    dy: ndarray,
    x: ndarray,
    weight: ndarray,
    *,
    y: ndarray | None = None,
    activation: str | None = None,
    needs: Collection[str] | None = None,
) -> tuple[ndarray | None, ndarray | None, ndarray | None]:
    """Gradients of the linear layer.

    dz = dy * activation'(y);  dx = dz @ weight.T;  dweight = x.T @ dz;  dbias = sum of dz over rows

    Args:    dy: (..., O).  x: (..., I).  weight: (I, O).
             y: (..., O), the forward's result, required with an activation.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dx (..., I), dweight (I, O), dbias (O,); None for those not wanted.
    Raises:  ValueError: shapes do not fit; y is missing; unknown activation or gradient name.
    Source:  Rumelhart, Hinton, Williams 1986, equations 4-7.
    """
    need_x, need_weight, need_bias = wanted("linear", needs, "dx", "dweight", "dbias")
    _check_weight(x, weight)
    expect_shape("linear", "dy (..., O)", dy, (*x.shape[:-1], weight.shape[1]))
    dz = activate_backward("linear", dy, y, activation)
    rows = dz.reshape(-1, weight.shape[1])
    dx = dz @ weight.T if need_x else None
    dweight = x.reshape(-1, weight.shape[0]).T @ rows if need_weight else None
    dbias = rows.sum(axis=0) if need_bias else None
    return dx, dweight, dbias


def matmul(a: ndarray, b: ndarray, *, transpose_a: bool = False, transpose_b: bool = False) -> ndarray:
    """Matrix product.

    c = op(a) @ op(b), op the transpose where it is asked for

    Args:    a: (M, K), or (K, M) with transpose_a.  b: (K, N), or (N, K) with transpose_b.
    Returns: c (M, N).
    Raises:  ValueError: a or b is not a matrix; the inner sizes differ.
    """
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"matmul: a and b must be matrices; a = {a.shape}, b = {b.shape}")
    return (a.T if transpose_a else a) @ (b.T if transpose_b else b)


def _check_weight(x: ndarray, weight: ndarray) -> None:
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"linear: x must be (..., I) and weight (I, O); x = {x.shape}, weight = {weight.shape}"
        )
