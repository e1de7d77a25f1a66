"""What every test of an op shares: the backends that this machine can run, and seeded random numbers."""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from checking import required
from devices import DeviceOps, cuda_module

import lec7.cuda
from lec7 import _cpu

ISAS = ("baseline", "avx2", "avx512")
DEVICES = ("cuda_host", "cuda_host_shuffled", "cuda")


def missing(name: str, reason: str) -> None:
    (pytest.fail if name in required() else pytest.skip)(reason)


def device_module(name: str) -> ModuleType:
    """A CUDA backend, or ImportError with the reason why there is none."""
    module = cuda_module(name.removesuffix("_shuffled"))
    if reason := lec7.cuda._reason():
        raise ImportError(reason)
    return module


def devices(*names: str) -> list[Any]:
    """Parameters of a fixture: those backends that can run here, or that LEC7_REQUIRE names."""
    found = []
    for name in names:
        with suppress(ImportError):
            if name not in required():
                device_module(name)
            found.append(pytest.param(name, marks=pytest.mark.cuda if name == "cuda" else ()))
    return found


@pytest.fixture(params=(*ISAS, *devices(*DEVICES)))
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A compiled backend, with its fresh outputs filled with NaN: the CPU's under one ISA, or CUDA's.

    "cuda_host" runs the kernels' threads as fibers of the host, one after the other; "cuda_host_shuffled" in
    an order of each test's own, two blocks at a time.
    """
    if request.param in ISAS:
        yield from cpu_under(request.param)
        return
    yield from device_under(request)


@pytest.fixture(params=ISAS)
def cpu(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The CPU's backend under one ISA, for what CUDA does in a way of its own."""
    yield from cpu_under(request.param)


@pytest.fixture(params=devices(*DEVICES))
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One of CUDA's backends, for what the CPU does not have."""
    yield from device_under(request)


@pytest.fixture(params=devices("cuda_host", "cuda"))
def cuda(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """A CUDA module as it is, on its own arrays. Nothing that a test did goes wrong later."""
    module = device_module(request.param)
    yield module
    module.synchronize()


def device_under(request: pytest.FixtureRequest) -> Iterator[Any]:
    ops = DeviceOps(device_module(request.param), request.param)
    if request.node.callspec.params.get("dtype", np.float32) not in ops.dtypes:
        pytest.skip("CUDA has float32 alone")
    if request.param.endswith("_shuffled"):
        ops.set_schedule(workers=2, shuffle=True, seed=zlib.crc32(request.node.nodeid.encode()))
    yield ops
    ops.set_schedule()


def cpu_under(isa: str) -> Iterator[Any]:
    if isa not in _cpu._usable_isas():
        missing(isa, f"{isa} is not usable here")
    before = _cpu._isa()
    _cpu._set_isa(isa)
    _cpu._set_poison(True)
    assert _cpu._isa() == isa
    yield _cpu
    _cpu._set_poison(False)
    _cpu._set_isa(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)
