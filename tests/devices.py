"""CUDA backends as the tests of the ops see them: NumPy arrays go in and come out."""

import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

import numpy as np
from numpy import ndarray

# Read by the host, whatever the backend.
ON_THE_HOST = ("lengths", "key_lengths")


class DeviceOps:
    """The ops of a CUDA module on NumPy arrays: sent to the device, the results fetched.

    An array that the op changed on the device is changed here too: one in place, one that `needs` gave to
    be written to, one that should have stayed as it was. So a test of the CPU's ops holds as it is.
    """

    dtypes = (np.float32,)

    def __init__(self, module: ModuleType, name: str) -> None:
        self._module, self._name = module, name

    def _isa(self) -> str:
        return self._name

    def set_schedule(self, **options: Any) -> bool:
        """Another order of the threads (workers, shuffle, seed); False where a GPU decides."""
        if not hasattr(self._module, "_set_schedule"):
            return False
        self._module._set_schedule(**options)
        return True

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            sent: list[tuple[ndarray, Any]] = []
            inputs = [self._send(a, sent) for a in args]
            options = {k: a if k in ON_THE_HOST else self._send(a, sent) for k, a in kwargs.items()}
            result = function(*inputs, **options)
            for array, device in sent:
                now = device.numpy()
                if now.tobytes() != array.tobytes():
                    array[...] = now
            return self._fetch(result, sent)

        return call

    def _send(self, value: Any, sent: list[tuple[ndarray, Any]]) -> Any:
        if isinstance(value, ndarray | np.generic) and not isinstance(value, float):  # as np.float64 is
            known = [device for array, device in sent if same_memory(array, value)]
            device = known[0] if known else self._module.to_device(value)
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
            return given[0] if given else value.numpy()
        if isinstance(value, list | tuple):
            return type(value)(self._fetch(item, sent) for item in value)
        return value


def same_memory(a: ndarray, b: ndarray | np.generic) -> bool:
    """One array, or two views of the same numbers."""
    return a.__array_interface__ == b.__array_interface__


def cuda_module(name: str) -> ModuleType:
    """The module "cuda" of the package, or "cuda_host" from where LEC7_CUDA_HOST says, or ImportError."""
    path = os.environ.get("LEC7_CUDA_HOST")
    if name != "cuda_host" or not path:
        return importlib.import_module(f"lec7._{name}")
    if "lec7._cuda_host" not in sys.modules:
        spec = importlib.util.spec_from_file_location("lec7._cuda_host", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"LEC7_CUDA_HOST: {path} is no extension module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["lec7._cuda_host"] = module
    return sys.modules["lec7._cuda_host"]
