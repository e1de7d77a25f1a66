"""A training run on disk and on screen: its directory, its history, its progress, its end by Ctrl-C."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Self

from tqdm import tqdm

from lec7 import checkpoint
from lec7.training import Trainer

LAST, BEST, HISTORY = "last.safetensors", "best.safetensors", "history.jsonl"


def new_run(name: str, directory: str | Path | None) -> Path:
    """Make a run's directory: the one given, or ``runs/<name>-<date>-<time>``.

    Raises:  ValueError: the directory holds a run already.
    """
    if directory is not None:
        run = Path(directory)
        if (run / LAST).exists() or (run / HISTORY).exists():
            raise ValueError(f"{run} holds a run already: go on with --resume {run}, or name another --run")
        run.mkdir(parents=True, exist_ok=True)
        return run
    stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for attempt in range(1, 1000):
        run = Path("runs") / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            continue
        return run
    raise ValueError(f"runs/{stem} and 999 more are taken; name a directory with --run")


def load_run(path: str | Path, which: str = LAST) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checkpoint of a run: its directory, or the file itself.

    Raises:  ValueError, FileNotFoundError: as ``checkpoint.load``; the directory holds no run.
    """
    path = Path(path)
    if not path.is_dir():
        return checkpoint.load(path)
    if not (path / which).exists() and not (path / LAST).exists():
        raise FileNotFoundError(f"{path} is not a run: it holds no checkpoint ({LAST})")
    return checkpoint.load(path / which if (path / which).exists() else path / LAST)


class History:
    """One JSON object a line: ``{"kind": "step" | "epoch" | "sample", "step": ..., ...}``.

    Lines of steps after ``step`` (of a run that died after its last checkpoint) are dropped: they will
    come again.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n") or json.loads(line)["step"] > step:
                    break
                kept.append(line)
        checkpoint.write_atomically(path, "".join(kept).encode())
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, kind: str, step: int, **values: Any) -> None:
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


class Screen:
    """Progress for a person (a bar on a terminal), for a log (plain lines) or for nobody (``quiet``).

    The total and the progress are in characters; the bar reckons speed and time left from them.
    """

    def __init__(self, total: int, done: int, *, quiet: bool, seconds_between_lines: float = 5.0) -> None:
        self.quiet = quiet
        self.total, self.done = total, done
        self._first, self._start = done, time.monotonic()
        self._between, self._last_line = seconds_between_lines, self._start
        self._smooth: float | None = None
        self._bar: tqdm[Any] | None = None
        if not quiet and sys.stdout.isatty():
            self._bar = tqdm(
                total=total,
                initial=done,
                unit=" chars",
                unit_scale=True,
                dynamic_ncols=True,
                file=sys.stdout,
                bar_format="{percentage:3.0f}% {bar} {rate_fmt}, {remaining} left{postfix}",
            )

    @property
    def speed(self) -> float:
        """Characters per second since the start."""
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        elif not self.quiet:
            print(text, flush=True)

    def advance(self, count: int, *, loss: float, grad_norm: float, place: str) -> None:
        self.done += count
        self._smooth = loss if self._smooth is None else 0.95 * self._smooth + 0.05 * loss
        if self._bar is not None:
            shown = loss_text(self._smooth)
            self._bar.set_postfix_str(f"{shown}, |g| {grad_norm:.2f}, {place}", refresh=False)
            self._bar.update(count)
        elif not self.quiet and time.monotonic() - self._last_line >= self._between:
            self._last_line = time.monotonic()
            left = round((self.total - self.done) / self.speed)
            print(
                f"{place}  {100 * self.done / self.total:3.0f}%  loss {loss_text(self._smooth)}  "
                f"|g| {grad_norm:.2f}  {self.speed:,.0f} chars/s  {left // 60}:{left % 60:02d} left",
                flush=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def loss_text(nats: float) -> str:
    """A cross-entropy in both units."""
    return f"{nats:.3f} nats ({nats / math.log(2):.3f} bits/char)"


@contextmanager
def stop_on_signal(trainer: Trainer, screen: Screen) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the training after the step in hand; a second one ends it at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if trainer.stopping:
            raise KeyboardInterrupt
        trainer.stopping = True
        if not screen.quiet:
            # The signal may have come in the middle of a print, which must not be entered twice.
            os.write(2, b"\nstopping after this step (once more: stop at once)\n")

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
