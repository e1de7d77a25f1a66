"""What every test of an op shares: the backends that this machine can run, and seeded random numbers."""

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from checking import required

from lec7 import _cpu

ISAS = ("baseline", "avx2", "avx512")


@pytest.fixture(params=ISAS)
def backend(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The compiled CPU backend under one ISA, with its fresh outputs filled with NaN."""
    if request.param not in _cpu._usable_isas():
        (pytest.fail if request.param in required() else pytest.skip)(f"{request.param} is not usable here")
    before = _cpu._isa()
    _cpu._set_isa(request.param)
    _cpu._set_poison(True)
    assert _cpu._isa() == request.param
    yield _cpu
    _cpu._set_poison(False)
    _cpu._set_isa(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)
