"""The same op in lec7 and in PyTorch: do the results agree, and how long does each take?

Both libraries alternate in one process on the same number of threads, PyTorch at its best: with huge pages,
in its better memory format, with its fused optimizers. A row is timed only if the results agree.

    python bench/compare_torch.py --suite recurrent
    python bench/compare_torch.py --suite all --check --json results.json
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# PyTorch reads it when it is imported: without it, large fresh results cost it a page fault for every 4 KiB.
if os.environ.get("THP_MEM_ALLOC_ENABLE") != "1":
    os.execve(sys.executable, sys.orig_argv, {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"})

try:
    import torch
except ModuleNotFoundError:
    sys.exit("compare_torch.py compares with PyTorch, which is not installed: pip install '.[bench]'")

import numpy as np
from cases import SUITES, Closure, Pair, Row, as_arrays, matmul

import lec7

# Each library has an OpenMP pool of its own, whose idle threads spin for some milliseconds after a call and
# take the cores from the other library's: wait until they sleep.
SETTLE = 0.015
BLOCK = 0.03  # seconds of calls in a row
CHUNK = 1e-4  # calls shorter than this are timed several at once


class DisagreementError(Exception):
    """The two libraries computed different things."""


@dataclass(frozen=True)
class Result:
    suite: str
    name: str
    direction: str
    shape: str
    lec7_seconds: float
    torch_seconds: float
    ratio: float
    lec7_of_peak: float | None
    torch_of_peak: float | None
    lec7_rate: float | None
    torch_rate: float | None
    unit: str | None
    most: float | None
    least: float | None

    def misses(self) -> list[str]:
        found = []
        if self.most is not None and self.ratio > self.most:
            found.append(f"ratio {self.ratio:.2f}, at most {self.most:.2f}")
        if self.least is not None and self.lec7_of_peak is not None and self.lec7_of_peak < self.least:
            found.append(f"{self.lec7_of_peak:.0%} of the peak, at least {self.least:.0%}")
        return found


def verify(pair: Pair) -> None:
    """Call both sides and compare all results.

    Raises:  DisagreementError: names the result, the error and the limit.
    """
    ours, *theirs = pair.compare or (pair.ours, *pair.theirs)
    names = pair.names.split()
    for call in range(pair.calls):
        expected = as_arrays(ours())
        for variant in theirs:
            for name, a, b in zip(names, expected, pair.align(variant()), strict=True):
                where = f"{name} (call {call + 1})" if pair.calls > 1 else name
                if a.shape != b.shape:
                    raise DisagreementError(f"{where}: lec7 gives the shape {a.shape}, PyTorch {b.shape}")
                difference = float(np.linalg.norm(np.subtract(a, b, dtype=np.float64)))
                error = difference / max(float(np.linalg.norm(b)), 1e-30)
                if not error <= pair.tolerance:  # NaN too
                    raise DisagreementError(
                        f"{where}: relative error {error:.1e}, more than {pair.tolerance:.0e}"
                    )


def block_median(call: Closure, repeat: int, chunks: int) -> float:
    """Seconds a call: the median over chunks of `repeat` calls, after one call that wakes the threads."""
    call()
    times = []
    for _ in range(chunks):
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        times.append((time.perf_counter() - start) / repeat)
    return statistics.median(times)


def alternate(calls: Sequence[Closure], rounds: int) -> list[float]:
    """Seconds a call of each: the median over rounds, in which they take turns."""
    plans = []
    for call in calls:
        time.sleep(SETTLE)
        seconds = block_median(call, 1, 3)
        repeat = max(1, round(CHUNK / seconds))
        plans.append((call, repeat, max(1, round(BLOCK / (seconds * repeat)))))
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        for i in range(len(plans))[:: 1 if turn % 2 == 0 else -1]:
            time.sleep(SETTLE)
            times[i].append(block_median(*plans[i]))
    return [statistics.median(t) for t in times]


def compare(suite: str, row: Row, *, rounds: int, peak: float) -> Result:
    pair = row.make()
    verify(pair)
    theirs = pair.theirs
    if len(theirs) > 1:
        quick = alternate(theirs, 2)
        theirs = [theirs[quick.index(min(quick))]]
    a, b = alternate([pair.ours, *theirs], rounds)
    flops, amount = pair.flops or None, pair.amount or None
    return Result(
        suite=suite,
        name=row.name,
        direction=row.direction,
        shape=row.shape,
        lec7_seconds=a,
        torch_seconds=b,
        ratio=a / b,
        lec7_of_peak=flops and flops / a / peak,
        torch_of_peak=flops and flops / b / peak,
        lec7_rate=amount and amount / a,
        torch_rate=amount and amount / b,
        unit=amount and pair.unit,
        most=row.most,
        least=row.least,
    )


def best_matmul(rounds: int) -> float:
    """FLOP/s of the faster library's 2048^3 product: a peak that is a little too small."""
    pair = matmul(np.random.default_rng(0), M=2048, N=2048, K=2048)
    return pair.flops / min(alternate([pair.ours, *pair.theirs], rounds))


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def duration(seconds: float) -> str:
    unit, size = next((u, s) for u, s in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)) if seconds >= s or u == "µs")
    value = seconds / size
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 1))))}f} {unit}"


HEAD = ["op", "shape", "lec7", "PyTorch", "ratio", "of peak", "rate"]
WIDTHS = [47, 46, 8, 8, 6, 12, 24]


def line(texts: Sequence[str], *, markdown: bool) -> str:
    if markdown:
        return f"| {' | '.join(texts)} |"
    left = [text.ljust(width) for text, width in zip(texts[:2], WIDTHS, strict=False)]
    return "  ".join(left + [t.rjust(w) for t, w in zip(texts[2:], WIDTHS[2:], strict=False)]).rstrip()


def cells(row: Row, result: Result) -> list[str]:
    def both(show: Callable[[float], str], a: float | None, b: float | None) -> str:
        return "" if a is None or b is None else f"{show(a)} / {show(b)}"

    rate = both(lambda r: f"{r:,.0f}" if r >= 100 else f"{r:.1f}", result.lec7_rate, result.torch_rate)
    return [
        row.title,
        row.shape,
        duration(result.lec7_seconds),
        duration(result.torch_seconds),
        f"{result.ratio:.2f}",
        both(lambda share: f"{share:.0%}", result.lec7_of_peak, result.torch_of_peak),
        f"{rate} {result.unit}" if rate else "",
    ]


def run_suite(
    suite: str, rows: Sequence[Row], *, rounds: int, peak: float, markdown: bool
) -> tuple[list[Result], list[str]]:
    """Compare and print each row; return the results, and what the disagreeing rows say."""
    print(f"\n### {suite}\n" if markdown else f"\n{suite}")
    print(line(HEAD, markdown=markdown))
    if markdown:
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    results, disagreements = [], []
    for row in rows:
        try:
            result = compare(suite, row, rounds=rounds, peak=peak)
        except DisagreementError as error:
            text = f"the results disagree: {error}"
            disagreements.append(f"{suite}: {row.title} {row.shape}: {text}")
            print(line([row.title, row.shape, text], markdown=markdown), flush=True)
        else:
            results.append(result)
            print(line(cells(row, result), markdown=markdown), flush=True)
        gc.collect()
        lec7.empty_cache()
    for direction in sorted({r.direction for r in results}):
        ratios = [r.ratio for r in results if r.direction == direction]
        if len(ratios) > 1:
            mean = statistics.geometric_mean(ratios)
            of = f" of {direction}" if direction else ""
            print(f"\ngeometric mean of the ratios{of}: {mean:.2f}")
    return results, disagreements


def describe(threads: int, rounds: int, peak: float, peak_source: str) -> dict[str, Any]:
    info = lec7.build_info()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "isa": info["isa"],
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "rounds": rounds,
        "peak_gflops": peak / 1e9,
        "peak_source": peak_source,
        "versions": {
            "lec7": info["version"],
            "compiler": info["compiler"],
            "PyTorch": torch.__version__,
            "NumPy": np.__version__,
            "Python": platform.python_version(),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--suite", choices=[*SUITES, "all"], default="all")
    add("--filter", default="", metavar="TEXT", help="only the rows with TEXT in 'suite: op shape'")
    add("--threads", type=int, default=lec7.get_num_threads(), help="of both libraries (%(default)s)")
    add("--rounds", type=int, default=7, help="turns that each library takes (%(default)s)")
    add("--peak", type=float, metavar="GFLOPS", help="the FMA peak that the C++ benchmarks print")
    add("--markdown", action="store_true", help="print the tables in the form of bench/README.md")
    add("--json", type=Path, metavar="FILE", help="write the results there")
    add("--check", action="store_true", help="fail where a row misses its target")
    args = parser.parse_args()
    if args.rounds < 1 or args.threads < 1 or (args.peak is not None and not args.peak > 0):
        parser.error("--rounds, --threads and --peak are positive")
    wanted = {
        suite: [row for row in rows if args.filter in f"{suite}: {row.title} {row.shape}"]
        for suite, rows in SUITES.items()
        if args.suite in (suite, "all")
    }
    if not any(wanted.values()):
        parser.error(f"no row has {args.filter!r} in it")
    lec7.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)

    peak = args.peak * 1e9 if args.peak else best_matmul(args.rounds)
    source = "--peak" if args.peak else "the better of the two libraries' 2048^3 products"
    machine = describe(args.threads, args.rounds, peak, source)
    if args.markdown:
        print("## Measured\n")
    print(
        f"{machine['date']}: {machine['cpu']}, {machine['isa']}, threads: {args.threads}, "
        f"load average {machine['load_average']:.1f}; medians of {args.rounds} rounds\n"
        f"{', '.join(f'{name} {version}' for name, version in machine['versions'].items())}\n"
        f"peak: {peak / 1e9:.0f} GFLOP/s, from {source}",
        flush=True,
    )
    results: list[Result] = []
    failures: list[str] = []
    for suite, rows in wanted.items():
        if rows:
            done, disagreements = run_suite(
                suite, rows, rounds=args.rounds, peak=peak, markdown=args.markdown
            )
            results += done
            failures += disagreements
    if args.check:
        failures += [f"{r.suite}: {r.name} {r.shape}: {miss}" for r in results for miss in r.misses()]
    if args.json:
        report = {"machine": machine, "rows": [asdict(r) for r in results]}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    gc.disable()
    sys.exit(main())
