"""The reference, the compiled backend and lec7.ops have the same ops with the same signatures."""

import ast
import importlib
import importlib.util
import inspect
import os
import re

import numpy as np
import pytest
from checking import required
from devices import cuda_module

import lec7
from lec7 import _cpu, ops, reference


def device_modules():
    """The CUDA backends that are built: the package's, which loads without a GPU, and the host's."""
    if importlib.util.find_spec("lec7._cuda"):
        yield importlib.import_module("lec7._cuda")
    if os.environ.get("LEC7_CUDA_HOST"):
        yield cuda_module("cuda_host")


DEVICE_MODULES = list(device_modules())


def compiled_signature(function):
    """Names, kinds and defaults of the parameters, from the first line of a pybind11 docstring."""
    text = function.__doc__.splitlines()[0]
    inside = text[text.index("(") + 1 : text.rindex(")", 0, text.rindex("->"))]
    parts, depth = [""], 0
    for character in inside:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    parameters, kind = [], inspect.Parameter.POSITIONAL_OR_KEYWORD
    for part in (part.strip() for part in parts if part.strip()):
        if part == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
            continue
        declaration, _, default = part.partition(" = ")
        name = re.match(r"\w+", declaration).group()
        value = ast.literal_eval(default) if default else inspect.Parameter.empty
        parameters.append((name, kind, value))
    return parameters


def signature(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_surface_is_complete():
    assert len(reference.__all__) == 81
    assert sorted(ops.__all__) == sorted(reference.__all__)
    for module in (_cpu, *DEVICE_MODULES):
        compiled = {name for name in vars(module) if name.endswith(("_forward", "_backward", "_update_"))}
        assert compiled <= set(reference.__all__), module.__name__


@pytest.mark.parametrize("name", reference.__all__)
def test_surface_of_op(name):
    function = getattr(reference, name)
    assert signature(getattr(ops, name)) == signature(function)
    assert getattr(ops, name).__doc__ == function.__doc__
    for module in (_cpu, *DEVICE_MODULES):
        assert compiled_signature(getattr(module, name)) == signature(function), module.__name__


@pytest.mark.parametrize("name", reference.__all__)
def test_docstring_of_op(name):
    text = getattr(reference, name).__doc__
    assert "Args:" in text
    if not name.endswith(("_update_", "scale_", "add_", "global_norm")):
        assert "Returns:" in text
    shared = re.search(r"[Pp]arameters:|parameters: those of|[Pp]arameters: as", text)
    for parameter in inspect.signature(getattr(reference, name)).parameters:
        assert re.search(rf"\b{parameter}\b", text) or shared, parameter


def test_ops_run_the_backend_in_use():
    x = np.linspace(-3, 3, 101, dtype=np.float32)
    compiled, plain = _cpu.sigmoid_forward(x), reference.sigmoid_forward(x)
    assert ops.sigmoid_forward(x).tobytes() == compiled.tobytes()
    with lec7.use_backend("reference"):
        assert ops.sigmoid_forward(x).tobytes() == plain.tobytes()
        with lec7.use_backend("cpu"):
            assert ops.sigmoid_forward(x).tobytes() == compiled.tobytes()
    assert ops.sigmoid_forward(x).tobytes() == compiled.tobytes()
    with pytest.raises(ValueError, match="nonsense"), lec7.use_backend("nonsense"):
        pass


@pytest.mark.parametrize("name", sorted(required()) or ["nothing"])
def test_required_is_there(name):
    """What LEC7_REQUIRE names can run here."""
    if name in ("cuda", "cuda_host"):
        assert cuda_module(name).device_count() > 0
    elif name != "nothing":
        assert name in _cpu._usable_isas()
