"""Arrays and streams on an NVIDIA GPU.

``x = lec7.cuda.to_device(array)`` copies a NumPy array; the ops of ``lec7.ops`` on such arrays run on the GPU
and give such arrays; ``y.numpy()`` copies back. ``layer.to("cuda")`` moves a network. Kernels are launched
in order and not waited for: what goes wrong in one (a label outside the classes, a CUDA error) is raised by
the next call that waits (``numpy``, ``item``, ``float``, ``synchronize``).

The compiled module is loaded at its first use. Without one, or without a GPU, ``is_available()`` is False.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import sys
from types import ModuleType
from typing import Any

from lec7 import ops

_COMPILED = (
    "Array",
    "Graph",
    "Stream",
    "allow_tf32",
    "clip_scale",
    "compute_capability",
    "device_count",
    "empty_cache",
    "from_dlpack",
    "get_conv_algorithm",
    "memory_info",
    "recording",
    "set_allow_tf32",
    "set_conv_algorithm",
    "set_memory_limit",
    "synchronize",
    "to_device",
    "zeros",
)
__all__ = ["build_info", "is_available", "select"]
__all__ += _COMPILED


@functools.cache
def _module() -> ModuleType:
    """The extension module: the package's, or the host build of the kernels that LEC7_CUDA_HOST names.

    That build runs the kernels' threads one after the other on the CPU: for tests, and slow.
    """
    path = os.environ.get("LEC7_CUDA_HOST")
    if not path:
        module = importlib.import_module("lec7._cuda")
    else:
        name = "lec7._cuda_host"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"LEC7_CUDA_HOST: {path} is not an extension module")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    ops._use_device(module)
    return module


def __getattr__(name: str) -> Any:
    if name in _COMPILED:
        return getattr(_module(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_info() -> dict[str, str] | None:
    """The toolkit's version and the chips that the backend was compiled for; None: it was not built."""
    try:
        return dict(_module().build_info())
    except ImportError:
        return None


def is_available() -> bool:
    """Whether this build has the CUDA backend and the machine a GPU with a driver."""
    try:
        return bool(_module().device_count() > 0)
    except ImportError:
        return False


def select(device: str) -> None:
    """Make "cuda" or "cuda:N" the device of this thread.

    Raises:  ValueError: there is no such device.  RuntimeError: there is no GPU, or no CUDA in this build.
    """
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if match is None:
        raise ValueError(f"the device is cpu, cuda or cuda:N; got {device!r}")
    try:
        count = _module().device_count()
    except ImportError as error:
        raise RuntimeError(f"{device}: this build of lec7 has no CUDA backend ({error})") from error
    if count == 0:
        raise RuntimeError(f"{device}: there is no NVIDIA GPU with a driver here")
    if match[1] is not None:
        if int(match[1]) >= count:
            raise ValueError(f"{device}: there are {count} devices")
        _module().set_device(int(match[1]))
