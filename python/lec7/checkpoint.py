"""Checkpoints: arrays and JSON in one safetensors file that is whole or absent.

Nothing that is read is executed: arrays are raw numbers, the rest is JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from lec7.arrays import Array

_VERSION = 1


def write_atomically(path: str | Path, data: bytes) -> None:
    """Replace a file in one step: a crash leaves the old one or the new one, never half of either."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself must outlive a power cut too
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def save(path: str | Path, tensors: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Write arrays by name and whatever JSON can say.

    Raises:  TypeError: the metadata is not JSON.  OSError: it cannot be written.
    """
    header = {"lec7": json.dumps({"version": _VERSION, **metadata})}
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_atomically(path, to_bytes(contiguous, metadata=header))


def load(path: str | Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read what ``save`` wrote.

    Raises:  FileNotFoundError: it is not there.
             ValueError: it is truncated, damaged, of another program or of a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} is not there")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError, OverflowError) as error:
        raise ValueError(
            f"checkpoint {path} is truncated, damaged or not a safetensors file: {error}"
        ) from error
    try:
        metadata = json.loads(header["lec7"])
        version = int(metadata["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint {path} is a safetensors file, but not one of lec7's") from error
    if version > _VERSION:
        raise ValueError(f"checkpoint {path} has version {version}, this lec7 reads up to {_VERSION}")
    return tensors, metadata
