"""How long calls take that have threads of their own, or a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

# Seconds: a call as long as this is a block of its own; beside it, the waking of threads is nothing.
SLOW = 0.1
SLOW_ROUNDS = 3


def nothing() -> None:
    """On the CPU a call is done when it returns."""


@dataclass(frozen=True)
class Clock:
    """``wait`` returns when what was called is done. All times are in seconds.

    settle: of rest before a block. Each library has an OpenMP pool of its own, whose idle threads spin for
    some milliseconds after a call and take the cores from the other library's: until they sleep.
    block: of calls in a row.  chunk: shorter calls are timed several at once, without waiting in between.
    """

    wait: Callable[[], None] = nothing
    settle: float = 0.015
    block: float = 0.03
    chunk: float = 1e-4

    def seconds(self, call: Callable[[], Any], repeat: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        self.wait()
        return (time.perf_counter() - start) / repeat

    def block_median(self, call: Callable[[], Any], repeat: int, chunks: int) -> float:
        """Seconds a call: the median over chunks of `repeat` calls, after one call that wakes the threads."""
        call()
        self.wait()
        return statistics.median(self.seconds(call, repeat) for _ in range(chunks))

    def alternate(self, calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
        """Seconds a call of each: the median over rounds, in which they take turns."""
        blocks: list[Callable[[], float]] = []
        for call in calls:
            time.sleep(self.settle)
            estimate = self.seconds(call)
            if estimate >= SLOW:
                blocks.append(partial(self.seconds, call))
                rounds = min(rounds, SLOW_ROUNDS)
                continue
            estimate = self.block_median(call, 1, 3)
            repeat = max(1, round(self.chunk / estimate))
            chunks = max(1, round(self.block / (estimate * repeat)))
            blocks.append(partial(self.block_median, call, repeat, chunks))
        times: list[list[float]] = [[] for _ in calls]
        for turn in range(rounds):
            for i in range(len(blocks))[:: 1 if turn % 2 == 0 else -1]:
                time.sleep(self.settle)
                times[i].append(blocks[i]())
        return [statistics.median(t) for t in times]
