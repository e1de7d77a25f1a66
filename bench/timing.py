"""How long calls take that have threads of their own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

# Each library has an OpenMP pool of its own, whose idle threads spin for some milliseconds after a call and
# take the cores from the other library's: wait until they sleep.
SETTLE = 0.015
BLOCK = 0.03  # seconds of calls in a row
CHUNK = 1e-4  # calls shorter than this are timed several at once
SLOW = 0.1  # a call as long as this is a block of its own: beside it, the waking of threads is nothing
SLOW_ROUNDS = 3


def block_median(call: Callable[[], Any], repeat: int, chunks: int) -> float:
    """Seconds a call: the median over chunks of `repeat` calls, after one call that wakes the threads."""
    call()
    times = []
    for _ in range(chunks):
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        times.append((time.perf_counter() - start) / repeat)
    return statistics.median(times)


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Seconds a call of each: the median over rounds, in which they take turns."""
    blocks: list[Callable[[], float]] = []
    for call in calls:
        time.sleep(SETTLE)
        estimate = seconds(call)
        if estimate >= SLOW:
            blocks.append(partial(seconds, call))
            rounds = min(rounds, SLOW_ROUNDS)
            continue
        estimate = block_median(call, 1, 3)
        repeat = max(1, round(CHUNK / estimate))
        chunks = max(1, round(BLOCK / (estimate * repeat)))
        blocks.append(partial(block_median, call, repeat, chunks))
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        for i in range(len(blocks))[:: 1 if turn % 2 == 0 else -1]:
            time.sleep(SETTLE)
            times[i].append(blocks[i]())
    return [statistics.median(t) for t in times]
