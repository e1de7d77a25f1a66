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
    "compute_capability",
    "current_device",
    "device_count",
    "device_info",
    "empty_cache",
    "from_dlpack",
    "get_conv_algorithm",
    "memory_info",
    "recording",
    "reset_peak_memory",
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


def _runs_on(chips: str, capability: int) -> bool:
    """Whether a chip (90 for 9.0) runs what was compiled for ``chips``, as CMake names them: "80-real 90".

    A chip runs code of its major version and no higher minor version, and the driver compiles PTX of any
    version that is no higher; code of "90a" runs on that chip alone.
    """
    for chip in chips.split():
        match = re.fullmatch(r"(\d+)(a?)(-real|-virtual)?", chip)
        if match is None:  # "native", "all", the host build
            return True
        version, exact = int(match[1]), match[2] != ""
        code = match[3] != "-virtual" and version // 10 == capability // 10
        if version == capability or (version < capability and not exact and (code or match[3] != "-real")):
            return True
    return False


def _reason(device: int | None = None) -> str | None:
    """Why this GPU (None: the thread's) cannot be used, or None where it can."""
    try:
        module = _module()
    except ImportError as error:
        return f"this build of lec7 has no CUDA backend ({error})"
    if module.device_count() == 0:
        return "there is no NVIDIA GPU with a driver here"
    capability = module.compute_capability(module.current_device() if device is None else device)
    chips = module.build_info()["chips"]
    if not _runs_on(chips, capability):
        return (
            f"the GPU is an sm_{capability}, and this build of lec7 has code for {chips} only; "
            f"pip install . -C cmake.define.CMAKE_CUDA_ARCHITECTURES={capability} compiles it for this one"
        )
    return None


def is_available() -> bool:
    """Whether this build has the CUDA backend, and the machine a GPU with a driver that it has code for."""
    return _reason() is None


def select(device: str) -> None:
    """Make "cuda" or "cuda:N" the device of this thread.

    Raises:  ValueError: there is no such device.  RuntimeError: there is no GPU, or no CUDA in this build, or
             no code for that GPU.
    """
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if match is None:
        raise ValueError(f"the device is cpu, cuda or cuda:N; got {device!r}")
    number = None if match[1] is None else int(match[1])
    try:
        count = _module().device_count()
    except ImportError:
        count = 0
    if number is not None and 0 < count <= number:
        raise ValueError(f"{device}: there are {count} devices")
    if reason := _reason(number):
        raise RuntimeError(f"{device}: {reason}")
    if number is not None:
        _module().set_device(number)
