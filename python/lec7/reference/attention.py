"""Scaled dot-product attention of any number of heads, with key lengths, a mask and a causal rule."""

from collections.abc import Collection

import numpy as np
from numpy import ndarray

from ._checks import delivers, expect_indices, expect_shape, wanted


def attention_forward(
    q: ndarray,
    k: ndarray,
    v: ndarray,
    *,
    key_lengths: ndarray | None = None,
    mask: ndarray | None = None,
    causal: bool = False,
    scale: float | None = None,
    weights: bool = False,
) -> tuple[ndarray, ...]:
    """Scaled dot-product attention.

    s[n,h,i,j] = scale * sum_e q[n,h,i,e] k[n,h,j,e] + mask[n,h,i,j];  -inf where key j is hidden from query i
    lse[n,h,i] = log sum_j exp(s[n,h,i,j]);  p = exp(s - lse);  y[n,h,i,:] = sum_j p[n,h,i,j] v[n,h,j,:]

    Args:    q: (N, heads, Tq, d) float32|float64.  k: (N, heads, Tk, d).  v: (N, heads, Tk, dv).
             key_lengths: (N,) int32|int64 in [0, Tk]; keys at and past it are hidden.
             mask: broadcastable to (N, heads, Tq, Tk); bool: keys are seen where True;
             float: added to the scores.
             causal: query i sees the keys j <= i + Tk - Tq, so that the last query sees them all.
             scale: None means 1/sqrt(d).  weights: also return p.
    Returns: y (N, heads, Tq, dv), lse (N, heads, Tq) and, with weights, p (N, heads, Tq, Tk).
             A query that sees no key: y = 0, lse = -inf, p = 0.
    Raises:  ValueError: shapes do not fit; a length is out of range.
    Source:  Vaswani et al. 2017, Attention is all you need, section 3.2;
             Luong, Pham, Manning 2015, section 3.1.
    """
    s = _scores(q, k, v, key_lengths, mask, causal, scale)
    top = s.max(axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isneginf(top), 0, top)  # -inf - -inf would be NaN
    with np.errstate(divide="ignore"):  # log 0 = -inf is the lse of a query that sees no key
        lse = (top + np.log(np.exp(s - top).sum(axis=-1, keepdims=True)))[..., 0]
    p = _probabilities(s, lse)
    return (p @ v, lse, p) if weights else (p @ v, lse)


@delivers("attention", "dq", "dk", "dv")
def attention_backward(
    dy: ndarray,
    q: ndarray,
    k: ndarray,
    v: ndarray,
    y: ndarray,
    lse: ndarray,
    *,
    key_lengths: ndarray | None = None,
    mask: ndarray | None = None,
    causal: bool = False,
    scale: float | None = None,
    needs: Collection[str] | None = None,
) -> tuple[ndarray | None, ndarray | None, ndarray | None]:
    """Gradients of scaled dot-product attention (none for a float mask).

    dp = dy v^T;  ds[i,j] = p[i,j] (dp[i,j] - sum_e dy[i,e] y[i,e])
    dq = scale ds k;  dk = scale ds^T q;  dv = p^T dy

    Args:    dy: (N, heads, Tq, dv).  q, k, v and parameters: those of the forward.  y, lse: its results.
             needs: names of the gradients wanted (None: all); a dict may give an array to write each to.
    Returns: dq, dk, dv, each like its array; None for those not wanted.
             A query that sees no key adds nothing.
    Raises:  as the forward; ValueError: dy, y or lse does not fit; unknown gradient name.
    Source:  Dao, Fu, Ermon, Rudra, Ré 2022, FlashAttention, appendix B.2.
    """
    need_q, need_k, need_v = wanted("attention", needs, "dq", "dk", "dv")
    s = _scores(q, k, v, key_lengths, mask, causal, scale)
    expect_shape("attention", "dy (N, heads, Tq, dv)", dy, (*q.shape[:3], v.shape[3]))
    expect_shape("attention", "y (N, heads, Tq, dv)", y, dy.shape)
    expect_shape("attention", "lse (N, heads, Tq)", lse, q.shape[:3])
    p = _probabilities(s, lse)
    ds = p * (dy @ _transpose(v) - (dy * y).sum(axis=-1, keepdims=True))
    scale = _scale(q, scale)
    dq = scale * (ds @ k) if need_q else None
    dk = scale * (_transpose(ds) @ q) if need_k else None
    dv = _transpose(p) @ dy if need_v else None
    return dq, dk, dv


def _scores(
    q: ndarray,
    k: ndarray,
    v: ndarray,
    key_lengths: ndarray | None,
    mask: ndarray | None,
    causal: bool,
    scale: float | None,
) -> ndarray:
    """s (N, heads, Tq, Tk), -inf where a key is hidden."""
    four_axes = q.ndim == k.ndim == v.ndim == 4
    if not four_axes or k.shape != (*q.shape[:2], k.shape[2], q.shape[3]) or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            "attention: q, k and v must agree in N and heads, q and k in d, k and v in Tk; "
            f"q (N, heads, Tq, d) = {q.shape}, k (N, heads, Tk, d) = {k.shape}, "
            f"v (N, heads, Tk, dv) = {v.shape}"
        )
    queries, keys = q.shape[2], k.shape[2]
    s = _scale(q, scale) * (q @ _transpose(k))
    if mask is not None:
        mask = np.broadcast_to(mask, s.shape)
        s = np.where(mask, s, -np.inf) if mask.dtype == bool else s + mask
    if causal:
        s = np.where(np.arange(keys) <= np.arange(queries)[:, None] + keys - queries, s, -np.inf)
    if key_lengths is not None:
        expect_shape("attention", "key_lengths (N,)", key_lengths, q.shape[:1])
        expect_indices("attention", "key_lengths", key_lengths, keys + 1)
        s = np.where(np.arange(keys) < key_lengths[:, None, None, None], s, -np.inf)
    return s


def _probabilities(s: ndarray, lse: ndarray) -> ndarray:
    """exp(s - lse), and 0 for a query that sees no key."""
    return np.exp(s - np.where(np.isneginf(lse), 0, lse)[..., None])


def _scale(q: ndarray, scale: float | None) -> float:
    return q.shape[3] ** -0.5 if scale is None else scale


def _transpose(a: ndarray) -> ndarray:
    return a.swapaxes(-1, -2)
