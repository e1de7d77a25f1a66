"""Dropout of units or of whole channels, with a mask that is drawn again instead of stored."""

import math

import numpy as np
from numpy import ndarray


def dropout_forward(
    x: ndarray, *, p: float, seed: int, offset: int = 0, whole_channels: bool = False
) -> ndarray:
    """Dropout: zeroes each element with probability p and scales the others.

    y[e] = x[e] / (1 - p) if r[e] >= floor(p * 2^32) else 0, e the element's index in C order
    r[e] = word e mod 4 of Philox4x32-10 with counter (e div 4, offset) and key seed, each number in two
    32-bit words, low word first

    Args:    x: any shape, float32|float64.  p: in [0, 1).  seed, offset: in [0, 2^64); use a new offset for
             every call.  whole_channels: drop the channel c of the example n as one, for x (N, ..., C):
             then r is indexed by e = n * C + c.  On a GPU, seed and offset may be int64 arrays of shape ()
             (the same 64 bits), and offset is one while a graph records.
    Returns: y like x.
    Raises:  ValueError: p, seed or offset is out of range; whole_channels with fewer than two axes.
    Source:  Srivastava et al. 2014, Dropout, section 10 (scaled at training time); Tompson et al. 2015,
             section 3.2 (whole channels); Salmon et al. 2011, Parallel random numbers, section 3.3.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be in [0, 1), is {p}")
    for name, value in (("seed", seed), ("offset", offset)):
        if not 0 <= value < 2**64:
            raise ValueError(f"dropout: {name} must be in [0, 2^64), is {value}")
    if whole_channels and x.ndim < 2:
        raise ValueError(f"dropout: whole_channels needs x (N, ..., C); x = {x.shape}")
    shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]) if whole_channels else x.shape
    count = math.prod(shape)
    kept = random_words(count, seed, offset).reshape(shape) >= int(p * 2**32)
    return np.where(kept, x * x.dtype.type(1 / (1 - p)), 0)


def dropout_backward(
    dy: ndarray, *, p: float, seed: int, offset: int = 0, whole_channels: bool = False
) -> ndarray:
    """Gradient of dropout: the same mask and scale, applied to dy.

    dx[e] = dy[e] / (1 - p) if r[e] >= floor(p * 2^32) else 0

    Args:    dy: like the forward's x.  p, seed, offset, whole_channels: those of the forward.
    Returns: dx like dy.
    Raises:  as dropout_forward.
    """
    return dropout_forward(dy, p=p, seed=seed, offset=offset, whole_channels=whole_channels)


def random_words(count: int, seed: int, offset: int) -> ndarray:
    """The first `count` 32-bit words of the stream (seed, offset), as uint64."""
    block = np.arange((count + 3) // 4, dtype=np.uint64)
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    counter = (block & low, block >> high, np.asarray(offset % 2**32), np.asarray(offset >> 32))
    words = philox4x32(counter, (seed % 2**32, seed >> 32))
    return np.stack(np.broadcast_arrays(*words), axis=-1).reshape(-1)[:count]


def philox4x32(counter: tuple[ndarray, ...], key: tuple[int, int], rounds: int = 10) -> tuple[ndarray, ...]:
    """The block cipher Philox4x32: four 32-bit words (held in uint64) for a counter and a key of such words.

    Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3, section 3.3 and table 2.
    """
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = (int(k) for k in key)
    for _ in range(rounds):
        product0 = c0 * np.uint64(0xD2511F53)
        product1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (product1 >> high) ^ c1 ^ np.uint64(k0), product1 & low
        c2, c3 = (product0 >> high) ^ c3 ^ np.uint64(k1), product0 & low
        k0 = (k0 + 0x9E3779B9) % 2**32
        k1 = (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3
