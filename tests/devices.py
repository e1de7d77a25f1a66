"""CUDA backends as the tests of the ops see them: NumPy arrays go in and come out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy import ndarray

from lec7 import cuda

# Read by the host, whatever the backend.
ON_THE_HOST = ("lengths", "key_lengths")
# float32 beside arrays of 16 bits.
SINGLE = ("mask", "lse")


class DeviceOps:
    """The ops of a CUDA module on NumPy arrays: sent to the device, the results fetched.

    An array that the op changed on the device is changed here too: one in place, one that `needs` gave to
    be written to, one that should have stayed as it was. So a test of the CPU's ops holds as it is.
    """

    dtypes = (np.float32,)

    def __init__(self, module: ModuleType, name: str, stored: str = "float32") -> None:
        self._module, self._name, self._stored = module, name, stored

    @property
    def module(self) -> ModuleType:
        """The module itself, for arrays of the device."""
        return self._module

    def storing(self, dtype: str) -> "DeviceOps":
        """The same ops on float16 or bfloat16: float32 arrays go in and come out, rounded on the device."""
        return DeviceOps(self._module, f"{self._name}, {dtype}", dtype)

    def _isa(self) -> str:
        return self._name

    def set_schedule(self, **options: Any) -> bool:
        """Another order of the threads (workers, shuffle, seed); False where a GPU decides."""
        if not hasattr(self._module, "_set_schedule"):
            return False
        self._module._set_schedule(**options)
        return True

    @contextmanager
    def chip(self, capability: int) -> Iterator[None]:
        """On the host, the kernels that such a chip runs; a GPU runs its own."""
        set_capability = getattr(self._module, "_set_compute_capability", lambda capability: None)
        set_capability(capability)
        try:
            yield
        finally:
            set_capability(80)

    @contextmanager
    def tf32(self) -> Iterator[None]:
        """Products and convolutions may round their operands to tf32."""
        self._module.set_allow_tf32(True)
        try:
            yield
        finally:
            self._module.set_allow_tf32(False)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            sent: list[tuple[ndarray, Any]] = []
            inputs = [self._send(a, sent) for a in args]
            single = DeviceOps(self._module, self._name)
            options = {
                k: a if k in ON_THE_HOST else (single if k in SINGLE else self)._send(a, sent)
                for k, a in kwargs.items()
            }
            result = function(*inputs, **options)
            for array, device in sent:
                now = self._numpy(device)
                if now.tobytes() != array.tobytes():
                    array[...] = now
            return self._fetch(result, sent)

        return call

    def _send(self, value: Any, sent: list[tuple[ndarray, Any]]) -> Any:
        if isinstance(value, ndarray | np.generic) and not isinstance(value, float):  # as np.float64 is
            known = [device for array, device in sent if same_memory(array, value)]
            device = known[0] if known else self._module.to_device(value)
            if not known and self._stored != "float32" and value.dtype == np.float32:
                device = device.astype(self._stored)
            if isinstance(value, ndarray) and not known:
                sent.append((value, device))
            return device
        if isinstance(value, dict):
            return {key: self._send(item, sent) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._send(item, sent) for item in value)
        return value

    def _fetch(self, value: Any, sent: list[tuple[ndarray, Any]]) -> Any:
        if isinstance(value, self._module.Array):
            given = [array for array, device in sent if device is value]
            return given[0] if given else self._numpy(value)
        if isinstance(value, list | tuple):
            return type(value)(self._fetch(item, sent) for item in value)
        return value

    def _numpy(self, array: Any) -> ndarray:
        half = self._stored != "float32" and array.dtype == self._stored
        result: ndarray = (array.astype("float32") if half else array).numpy()
        return result


def same_memory(a: ndarray, b: ndarray | np.generic) -> bool:
    """One array, or two views of the same numbers."""
    return a.__array_interface__ == b.__array_interface__


def cuda_module(name: str) -> ModuleType:
    """The backend "cuda", or "cuda_host" where LEC7_CUDA_HOST names that build; ImportError without it."""
    host = bool(os.environ.get("LEC7_CUDA_HOST"))
    if host != (name == "cuda_host"):
        raise ImportError("LEC7_CUDA_HOST names the host build" if host else "LEC7_CUDA_HOST is not set")
    return cuda._module()
