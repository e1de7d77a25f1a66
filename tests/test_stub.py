"""The typed stub of the extension says what the extension has, and what the reference has."""

import ast
import inspect
from importlib.resources import files

import pytest
from test_surface import compiled_signature, signature

from lec7 import _cpu, reference

STUB = ast.parse((files("lec7") / "_cpu.pyi").read_text("utf-8"))
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}


def stub_signature(function):
    """Names, kinds and defaults of the parameters, as compiled_signature gives them."""
    arguments = function.args
    assert not arguments.posonlyargs
    assert arguments.vararg is None
    assert arguments.kwarg is None
    missing = [None] * (len(arguments.args) - len(arguments.defaults))
    rows = [
        *zip(arguments.args, [*missing, *arguments.defaults], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    keyword_only = {argument.arg for argument in arguments.kwonlyargs}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        (
            argument.arg,
            kinds[argument.arg in keyword_only],
            inspect.Parameter.empty if default is None else ast.literal_eval(default),
        )
        for argument, default in rows
    ]


def test_stub_names_everything():
    present = {name for name, value in vars(_cpu).items() if callable(value)}
    assert set(FUNCTIONS) == present
    assert set(reference.__all__) <= set(FUNCTIONS)


def test_stub_is_fully_annotated():
    for name, function in FUNCTIONS.items():
        assert function.returns is not None, name
        for argument in (*function.args.args, *function.args.kwonlyargs):
            assert argument.annotation is not None, f"{name}: {argument.arg}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_stub_of_function(name):
    assert stub_signature(FUNCTIONS[name]) == compiled_signature(getattr(_cpu, name))
    if name in reference.__all__:
        assert stub_signature(FUNCTIONS[name]) == signature(getattr(reference, name))


@pytest.mark.parametrize(
    ("name", "function"), [("_BuildInfo", _cpu.build_info), ("_CacheInfo", _cpu.cache_info)]
)
def test_stub_of_dictionary(name, function):
    fields = {node.target.id: ast.unparse(node.annotation) for node in CLASSES[name].body}
    result = function()
    assert set(result) == set(fields)
    types = {"str": str, "int": int, "list[str]": list, "str | None": (str, type(None))}
    for key, value in result.items():
        assert isinstance(value, types[fields[key]]), key
