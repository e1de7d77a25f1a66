"""The same op in lec7 and in PyTorch: do the results agree, and how long does each take?

Both libraries alternate in one process on the same number of threads, PyTorch at its best: with huge pages,
in its better memory format, with its fused optimizers. A row is timed only if the results agree.

    python bench/compare_torch.py --suite recurrent
    python bench/compare_torch.py --suite all --check --json results.json
    python bench/compare_torch.py --device cuda --tf32 --suite conv
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

# PyTorch reads it when it is imported: without it, large fresh results cost it a page fault for every 4 KiB.
if os.environ.get("THP_MEM_ALLOC_ENABLE") != "1":
    os.execve(sys.executable, sys.orig_argv, {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"})

try:
    import torch
except ModuleNotFoundError:
    sys.exit("compare_torch.py compares with PyTorch, which is not installed: pip install '.[bench]'")

import numpy as np
from cases import CUDA_HALF_MOST, CUDA_MOST, CUDA_TF32_MEANS, HALF_SUITES, MEANS, SUITES, matmul
from device import CPU, Device, find_device
from memory import MemoryRow
from pair import Data, DisagreementError, Row, tensors, verify
from timing import SLOW

import lec7
from lec7 import cuda, ops

ROUNDS = 7
SUITE_ROUNDS = {"conv": 5}  # of many rows: 360


@dataclass(frozen=True)
class Result:
    suite: str
    name: str
    direction: str
    shape: str
    quantity: Literal["seconds", "bytes"]
    lec7: float
    torch: float
    ratio: float
    lec7_of_peak: float | None = None
    torch_of_peak: float | None = None
    lec7_rate: float | None = None
    torch_rate: float | None = None
    unit: str | None = None
    most: float | None = None
    least: float | None = None

    @property
    def title(self) -> str:
        return f"{self.suite}: {self.name}{', ' * bool(self.direction)}{self.direction} {self.shape}"

    def misses(self) -> list[str]:
        found = []
        if self.most is not None and self.ratio > self.most:
            found.append(f"ratio {self.ratio:.2f}, at most {self.most:.2f}")
        if self.least is not None and self.lec7_of_peak is not None and self.lec7_of_peak < self.least:
            found.append(f"{self.lec7_of_peak:.0%} of the peak, at least {self.least:.0%}")
        return found


@dataclass(frozen=True)
class Peaks:
    """What times are fractions of: FLOP/s, and GB/s of an update in place; and where they are from."""

    flops: float
    bandwidth: float
    source: str


@dataclass(frozen=True)
class Setting:
    """Where and how rows are run. ``precision``: float32; tf32, to which products round their operands; or
    float16 or bfloat16, in which arrays are stored.
    """

    device: Device
    precision: str
    peaks: Peaks
    markdown: bool


def compare(suite: str, row: Row | MemoryRow, setting: Setting, *, rounds: int) -> Result:
    clock, peaks = setting.device.clock, setting.peaks
    if isinstance(row, MemoryRow):
        a, b = row.measure(setting.device)
        return Result(
            suite=suite,
            name=row.name,
            direction="",
            shape=row.shape,
            quantity="bytes",
            lec7=a,
            torch=b,
            ratio=a / b,
            most=row.most,
        )
    pair = row.make(setting.device)
    verify(pair, setting.precision)
    theirs = pair.theirs
    if len(theirs) > 1:
        quick = [clock.seconds(call) for call in theirs]
        if min(quick) < SLOW:
            quick = clock.alternate(theirs, 1)
        theirs = [theirs[quick.index(min(quick))]]
    a, b = clock.alternate([pair.ours, *theirs], rounds)
    work, peak = (pair.flops, peaks.flops) if pair.limit == "flops" else (pair.amount, peaks.bandwidth)
    work, amount = work or None, pair.amount or None
    return Result(
        suite=suite,
        name=row.name,
        direction=row.direction,
        shape=row.shape,
        quantity="seconds",
        lec7=a,
        torch=b,
        ratio=a / b,
        lec7_of_peak=work and work / a / peak,
        torch_of_peak=work and work / b / peak,
        lec7_rate=amount and amount / a,
        torch_rate=amount and amount / b,
        unit=amount and pair.unit,
        most=row.most,
        least=row.least,
    )


def best_matmul(rounds: int) -> float:
    """FLOP/s of the faster library's 2048^3 product: a peak that is a little too small."""
    pair = matmul(Data(), M=2048, N=2048, K=2048)
    return pair.flops / min(CPU.clock.alternate([pair.ours, *pair.theirs], rounds))


def in_place_bandwidth(rounds: int) -> float:
    """GB/s at which the faster library multiplies the numbers of an array in place, read and written."""
    x = Data().normal(4 * 10**7)  # as much as Adam's four arrays in the suite
    (tx,) = tensors(x)
    calls = [lambda: ops.scale_(x, -1.0), lambda: tx.mul_(-1.0)]
    return 8e-9 * x.size / min(CPU.clock.alternate(calls, rounds))


def find_peaks(device: Device, precision: str, *, given: float | None, rounds: int) -> Peaks:
    """Measured on the CPU; on a GPU those of its clocks and units. ``given``: --peak in FLOP/s."""
    if device.ours == "cpu":
        bandwidth = in_place_bandwidth(rounds)
        source = "the better of the two libraries' 2048^3 products"
        return Peaks(given or best_matmul(rounds), bandwidth, "--peak" if given else source)
    info = cuda.device_info()
    flops = info[f"{precision if precision in ('float32', 'tf32') else 'half'}_flops"]
    if not flops:  # no tensor cores for it: products are of float32
        flops = info["float32_flops"]
    source = "--peak" if given else f"the highest clock, in {precision}"
    return Peaks(given or flops, 1e-9 * info["bandwidth"], source)


def duration(seconds: float) -> str:
    unit, size = next((u, s) for u, s in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)) if seconds >= s or u == "µs")
    value = seconds / size
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 1))))}f} {unit}"


def size(count: float) -> str:
    return f"{count / 1e6:,.{0 if count >= 1e8 else 1}f} MB"


HEAD = ["op", "shape", "lec7", "PyTorch", "ratio", "of peak", "rate"]
WIDTHS = [54, 46, 8, 8, 6, 12, 24]


def line(texts: Sequence[str], *, markdown: bool) -> str:
    if markdown:
        return f"| {' | '.join(texts)} |"
    left = [text.ljust(width) for text, width in zip(texts[:2], WIDTHS, strict=False)]
    return "  ".join(left + [t.rjust(w) for t, w in zip(texts[2:], WIDTHS[2:], strict=False)]).rstrip()


def cells(row: Row, result: Result) -> list[str]:
    def both(write: Callable[[float], str], a: float | None, b: float | None) -> str:
        return "" if a is None or b is None else f"{write(a)} / {write(b)}"

    show = duration if result.quantity == "seconds" else size
    rate = both(lambda r: f"{r:,.0f}" if r >= 100 else f"{r:.1f}", result.lec7_rate, result.torch_rate)
    return [
        row.title,
        row.shape,
        show(result.lec7),
        show(result.torch),
        f"{result.ratio:.2f}",
        both(lambda share: f"{share:.0%}", result.lec7_of_peak, result.torch_of_peak),
        f"{rate} {result.unit}" if rate else "",
    ]


def run_suite(
    suite: str, rows: Sequence[Row | MemoryRow], setting: Setting, *, rounds: int
) -> tuple[list[Result], list[str]]:
    """Compare and print each row; return the results, and what the disagreeing rows say."""
    markdown = setting.markdown
    print(f"\n### {suite}\n" if markdown else f"\n{suite}")
    print(line(HEAD, markdown=markdown))
    if markdown:
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    results, disagreements = [], []
    for row in rows:
        try:
            result = compare(suite, row, setting, rounds=rounds)
        except DisagreementError as error:
            text = f"the results disagree: {error}"
            disagreements.append(f"{suite}: {row.title} {row.shape}: {text}")
            print(line([row.title, row.shape, text], markdown=markdown), flush=True)
        else:
            results.append(result)
            print(line(cells(row, result), markdown=markdown), flush=True)
        gc.collect()
        setting.device.empty_cache()
    for direction, mean in means(results).items():
        of = f" of {direction}" if direction else ""
        print(f"\ngeometric mean of the ratios{of}: {mean:.2f}")
    return results, disagreements


def means(results: Sequence[Result]) -> dict[str, float]:
    """The geometric mean of the ratios of each direction that has several rows."""
    ratios: dict[str, list[float]] = {}
    for r in sorted(results, key=lambda r: r.direction):
        ratios.setdefault(r.direction, []).append(r.ratio)
    return {direction: statistics.geometric_mean(of) for direction, of in ratios.items() if len(of) > 1}


def rows_on(device: Device, suite: str, precision: str = "float32") -> list[Row | MemoryRow]:
    """A suite's rows, of those types that the device has, with their targets there."""
    if device.ours == "cpu":
        return [*SUITES[suite]]
    half = precision in ("float16", "bfloat16")
    targets = CUDA_MOST | CUDA_HALF_MOST if half else CUDA_MOST
    made: list[Row | MemoryRow] = []
    for row in SUITES[suite]:
        most = targets.get(f"{suite}: {row.title}")
        if isinstance(row, MemoryRow):
            if precision == "float32":
                made.append(replace(row, most=most))
        elif row.dtype in device.dtypes and (not half or suite in HALF_SUITES):
            dtype = getattr(torch, precision) if half else row.dtype
            made.append(replace(row, dtype=dtype, most=most, least=None))
    return made


def missed_targets(results: Sequence[Result], setting: Setting) -> list[str]:
    """What each row misses, and each suite of which all rows are there."""
    found = [f"{r.title}: {miss}" for r in results for miss in r.misses()]
    of_gpu = CUDA_TF32_MEANS if setting.precision == "tf32" else {}
    for suite, targets in (MEANS if setting.device.ours == "cpu" else of_gpu).items():
        of_suite = [r for r in results if r.suite == suite]
        if len(of_suite) == len(SUITES[suite]):
            found += [
                f"{suite}, {direction}: geometric mean {mean:.2f}, at most {targets[direction]:.2f}"
                for direction, mean in means(of_suite).items()
                if mean > targets[direction]
            ]
    return found


def describe(setting: Setting, threads: int) -> dict[str, Any]:
    info, peaks = lec7.build_info(), setting.peaks
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": setting.device.description,
        "precision": setting.precision,
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "peak_gflops": peaks.flops / 1e9,
        "peak_source": peaks.source,
        "in_place_bandwidth": peaks.bandwidth,
        "versions": {
            "lec7": info["version"],
            "compiler": info["compiler"],
            "PyTorch": torch.__version__,
            "NumPy": np.__version__,
            "Python": platform.python_version(),
            **setting.device.versions,
        },
    }


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--suite", choices=[*SUITES, "all"], default="all")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="of both libraries (%(default)s)")
    add("--tf32", action="store_true", help="on a GPU: products round their operands to tf32, in both")
    add(
        "--dtype",
        choices=["float16", "bfloat16"],
        help=f"on a GPU: store arrays so ({', '.join(HALF_SUITES)})",
    )
    add("--filter", default="", metavar="TEXT", help="only the rows with TEXT in 'suite: op shape'")
    add("--threads", type=positive, default=lec7.get_num_threads(), help="of both libraries (%(default)s)")
    add("--rounds", type=positive, help=f"turns that each library takes ({ROUNDS}; fewer in some suites)")
    add("--peak", type=float, metavar="GFLOPS", help="in place of the measured FMA peak, or of the GPU's")
    add("--markdown", action="store_true", help="print the tables in the form of bench/README.md")
    add("--json", type=Path, metavar="FILE", help="write the results there")
    add("--check", action="store_true", help="fail where a row misses its target")
    args = parser.parse_args()
    if args.peak is not None and not args.peak > 0:
        parser.error("--peak is positive")
    if args.device == "cpu" and (args.tf32 or args.dtype):
        parser.error("--tf32 and --dtype are for --device cuda")
    if args.tf32 and args.dtype:
        parser.error("--tf32 is of float32; --dtype stores arrays in another type")
    precision = args.dtype or ("tf32" if args.tf32 else "float32")
    try:
        device = find_device(args.device)
    except RuntimeError as error:
        sys.exit(f"compare_torch.py --device {error}")
    wanted = {
        suite: [
            row
            for row in rows_on(device, suite, precision)
            if args.filter in f"{suite}: {row.title} {row.shape}"
        ]
        for suite in SUITES
        if args.suite in (suite, "all")
    }
    if not any(wanted.values()):
        parser.error(f"no row of suite {args.suite} in {precision} has {args.filter!r} in it")
    lec7.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    device.set_tf32(args.tf32)

    given = args.peak and args.peak * 1e9
    peaks = find_peaks(device, precision, given=given, rounds=args.rounds or ROUNDS)
    setting = Setting(device, precision, peaks, args.markdown)
    machine = describe(setting, args.threads)
    if args.markdown:
        print("## Measured\n")
    on_gpu = device.ours == "cuda"
    where = f"{machine['device']}, {precision}" if on_gpu else machine["device"]
    print(
        f"{machine['date']}: {where}, threads: {args.threads}, "
        f"load average {machine['load_average']:.1f}\n"
        f"{', '.join(f'{name} {version}' for name, version in machine['versions'].items())}\n"
        f"peak: {peaks.flops / 1e9:.0f} GFLOP/s, from {peaks.source}; {peaks.bandwidth:.1f} GB/s"
        f"{'' if on_gpu else ' in place'}",
        flush=True,
    )
    results: list[Result] = []
    failures: list[str] = []
    for suite, rows in wanted.items():
        if rows:
            turns = args.rounds or SUITE_ROUNDS.get(suite, ROUNDS)
            done, disagreements = run_suite(suite, rows, setting, rounds=turns)
            results += done
            failures += disagreements
    if args.check:
        failures += missed_targets(results, setting)
    if args.json:
        report = {"machine": machine, "rows": [asdict(r) for r in results]}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    gc.disable()
    gc.freeze()  # so that the collection after each row does not look through PyTorch
    sys.exit(main())
