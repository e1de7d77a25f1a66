"""lec7: the networks of one machine-learning lecture as a small compiled library.

``lec7.ops`` are plain functions on NumPy arrays (C++ kernels), ``lec7.layers`` compose them into
networks with backward passes written by hand, ``lec7.models`` are whole networks, and
``lec7.reference`` is every op again in NumPy, to read.
"""

from __future__ import annotations

from typing import Any

from lec7 import _cpu
from lec7._cpu import (
    cache_info,
    empty_cache,
    get_conv_algorithm,
    get_num_threads,
    set_cache_limit,
    set_conv_algorithm,
    set_num_threads,
)
from lec7.ops import use_backend

__version__ = _cpu.build_info()["version"]


def build_info() -> dict[str, Any]:
    """Version, compiler, flags, ISAs built, ISA in use, OpenMP's version (yyyymm); the CUDA backend's toolkit
    and chips, or None where it is not built.
    """
    from lec7 import cuda

    return {**_cpu.build_info(), "cuda": cuda.build_info()}


__all__ = [
    "build_info",
    "cache_info",
    "empty_cache",
    "get_conv_algorithm",
    "get_num_threads",
    "set_cache_limit",
    "set_conv_algorithm",
    "set_num_threads",
    "use_backend",
]
