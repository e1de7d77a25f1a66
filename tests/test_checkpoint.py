"""Checkpoints are whole or absent, and nothing else is taken for one."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lec7 import checkpoint

TENSORS = {
    "parameters": np.arange(12, dtype=np.float32).reshape(3, 4),
    "counter": np.array([2**64 - 1, 7], np.uint64),
    "empty": np.zeros((0, 3), np.float32),
}
METADATA = {
    "kind": "test",
    "big": 2**127 + 1,
    "number": 0.1,
    "text": "ünïcode\n",
    "list": [1, None, {"a": True}],
}


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {**TENSORS, "transposed": TENSORS["parameters"].T}, METADATA)
    tensors, metadata = checkpoint.load(path)
    assert {key: metadata[key] for key in METADATA} == METADATA
    for name, array in TENSORS.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)
    np.testing.assert_array_equal(tensors["transposed"], TENSORS["parameters"].T)
    tensors["parameters"][0, 0] = 5  # the caller's own, not a read-only map of the file
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_any_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, TENSORS, METADATA)
    data = path.read_bytes()
    for length in {0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 64, len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(
            ValueError, match=r"a\.safetensors is truncated, damaged or not a safetensors file"
        ):
            checkpoint.load(path)
    path.write_bytes(data + b"more")
    with pytest.raises(ValueError, match="truncated, damaged"):
        checkpoint.load(path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_foreign_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("this is a diary, " * 100)
    Path("pickle").write_bytes(pickle.dumps(Bomb()))
    Path("huge").write_bytes((2**62).to_bytes(8, "little") + b"{}" * 100)
    for name in ("text", "pickle", "huge"):
        with pytest.raises(ValueError, match=f"checkpoint {name} is truncated, damaged or not a safetensors"):
            checkpoint.load(name)
    assert not Path("executed").exists()

    save_file(TENSORS, "other")
    with pytest.raises(ValueError, match="not one of lec7's"):
        checkpoint.load("other")
    for wrong in ("[]", "{}", "no JSON", '{"version": "x"}'):
        save_file(TENSORS, "other", metadata={"lec7": wrong})
        with pytest.raises(ValueError, match="not one of lec7's"):
            checkpoint.load("other")
    save_file(TENSORS, "later", metadata={"lec7": json.dumps({"version": 99})})
    with pytest.raises(ValueError, match="has version 99"):
        checkpoint.load("later")
    with pytest.raises(FileNotFoundError, match="checkpoint absent is not there"):
        checkpoint.load("absent")
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, TENSORS, METADATA)
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(*((os, "fsync", fail) if broken == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="the disk is full"):
        checkpoint.save(path, {"parameters": np.zeros(5, np.float32)}, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_metadata_that_json_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "a", {}, {"object": object()})
    assert not os.listdir(tmp_path)
