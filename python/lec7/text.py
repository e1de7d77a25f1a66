"""Text as tokens: reading it, and the alphabet of its characters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lec7.arrays import Array


def read_text(paths: Sequence[str | Path]) -> str:
    r"""The files' text, one after the other; line ends become "\n" and a byte-order mark is dropped.

    Raises:  OSError: a file cannot be read.  ValueError: a file is not UTF-8, or is empty.
    """
    parts = []
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise ValueError(f"{path} is not UTF-8 text: byte {error.start} is {byte:#04x}") from error
        if not text:
            raise ValueError(f"{path} is empty")
        parts.append(text)
    return "".join(parts)


def default_text() -> str:
    """English prose that comes with every Python: its built-in help (``pydoc_data.topics``).

    Code, tables and grammar are left out: a paragraph counts as prose where nine tenths of its characters
    are letters, spaces and plain punctuation. Each becomes one line, repeated ones are dropped, and the
    text ends after some 250,000 characters, so that learning it takes as long with every Python.

    Raises:  ValueError: this Python was built without the help's text.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError(
            "this Python lacks pydoc_data.topics, the default text; give one with --text"
        ) from error
    paragraphs: dict[str, None] = {}
    for topic in topics.values():
        for paragraph in re.split(r"\n\s*\n", topic):
            line = " ".join(paragraph.split())
            plain = sum(c.isalpha() or c in " ,.'" for c in line)
            if len(line) >= 60 and plain >= 0.9 * len(line):
                paragraphs[line] = None
        if sum(map(len, paragraphs)) > 250_000:
            break
    return "\n".join(paragraphs) + "\n"


class Vocabulary:
    """The characters (Unicode code points) of a text, numbered in their order: token i is ``symbols[i]``."""

    def __init__(self, text: str) -> None:
        self.symbols = "".join(sorted(set(text)))
        if not self.symbols:
            raise ValueError("Vocabulary: the text is empty")
        points = _code_points(self.symbols)
        self._table = np.full(int(points[-1]) + 1, -1, np.int32)
        self._table[points] = np.arange(len(points), dtype=np.int32)

    @property
    def opening(self) -> str:
        """What to go on from where nothing is given: a new line, else the first symbol."""
        return "\n" if "\n" in self.symbols else self.symbols[0]

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> Array:
        """int32 tokens, one for each character.

        Raises:  ValueError: a character is not in the vocabulary.
        """
        points = _code_points(text)
        tokens = self._table[np.minimum(points, len(self._table) - 1)]
        tokens[points >= len(self._table)] = -1
        if (tokens < 0).any():
            unknown = "".join(sorted({text[i] for i in np.flatnonzero(tokens < 0)}))
            raise ValueError(f"characters {unknown!r} are not in the vocabulary {self.symbols!r}")
        return tokens

    def decode(self, tokens: Array) -> str:
        return "".join(self.symbols[i] for i in tokens)


def _code_points(text: str) -> Array:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
