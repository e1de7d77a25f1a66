"""How lec7's cost grows: with batch and time steps, with threads, and what its import takes.

    python bench/scaling.py size --plot scaling.png
    python bench/scaling.py threads --suite conv
    python bench/scaling.py import --check

Linear growth is a constant time for each item. `threads` times lec7's side of the rows of
`compare_torch.py`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timing import Clock

import lec7
from lec7 import ops

ROUNDS = 5
CLOCK = Clock()
SIZES = [1, 2, 4, 8, 16, 32, 64, 128]
LONG = 5e-3  # a row whose second thread must help
SPEEDUP = 1.9
IMPORT = 0.15  # seconds

Call = Callable[[], Any]

# --- size ---------------------------------------------------------------------------------------------------


def normal(*shape: int, scale: float = 1.0) -> Any:
    return scale * np.random.default_rng(0).standard_normal(shape, np.float32)


def conv(N: int, *, backward: bool = False) -> Call:
    x, dy, weight = normal(N, 32, 32, 64), normal(N, 32, 32, 64), normal(3, 3, 64, 64, scale=24**-1)
    if backward:
        return lambda: ops.conv2d_backward(dy, x, weight, padding=1)
    return lambda: ops.conv2d_forward(x, weight, padding=1)


def lstm(T: int, N: int, *, backward: bool = False) -> Call:
    H = 256
    weights = [normal(*shape, scale=0.08) for shape in ((H, 4 * H), (H, 4 * H), (4 * H,))]
    x, dhs = normal(T, N, H), normal(T, N, H)
    state = [np.zeros((N, H), np.float32)] * 2
    if backward:
        hs, *_, saved = ops.lstm_forward(x, *state, *weights)
        return lambda: ops.lstm_backward(dhs, None, None, x, *state, *weights[:2], hs, saved)
    return lambda: ops.lstm_forward(x, *state, *weights)


def linear(N: int) -> Call:
    x, weight = normal(N, 4096), normal(4096, 4096, scale=1 / 64)
    return lambda: ops.linear_forward(x, weight)


#: name -> (what grows, the call of that size)
GROWING: dict[str, tuple[str, Callable[[int], Call]]] = {
    "conv 3x3, 64 to 64, 32 x 32, forward": ("N", conv),
    "conv 3x3, 64 to 64, 32 x 32, backward": ("N", partial(conv, backward=True)),
    "LSTM 256, T 16, forward": ("N", partial(lstm, 16)),
    "LSTM 256, N 16, forward": ("T", partial(lstm, N=16)),
    "LSTM 256, N 16, backward": ("T", partial(lstm, N=16, backward=True)),
    "LSTM 256, N 1, forward": ("T", partial(lstm, N=1)),
    "linear 4096 to 4096, forward": ("N", linear),
}


def size_table() -> dict[str, list[float]]:
    """Print microseconds an item; return seconds a call, of each size."""
    print("microseconds for each image, time step or row (N, T: what grows)\n")
    print(f"{'':40}" + "".join(f"{size:>9}" for size in SIZES))
    times = {}
    for name, (variable, make) in GROWING.items():
        times[name] = [CLOCK.alternate([make(size)], ROUNDS)[0] for size in SIZES]
        each = (1e6 * t / size for t, size in zip(times[name], SIZES, strict=True))
        print(f"{name + ', ' + variable:40}" + "".join(f"{t:9.1f}" for t in each), flush=True)
        lec7.empty_cache()
    return times


def plot(times: dict[str, list[float]], file: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        sys.exit("--plot needs matplotlib, which is not installed: pip install matplotlib")
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, (variable, _) in GROWING.items():
        axes.plot(SIZES, [1e3 * t for t in times[name]], marker="o", label=f"{name}: {variable}")
    low = 1e3 * min(t[0] for t in times.values())
    axes.plot(SIZES, [low * size for size in SIZES], color="gray", linestyle=":", label="proportional")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="N (images, sequences, rows) or T (time steps)",
        ylabel="milliseconds a call",
        title=f"lec7 {lec7.__version__}, {lec7.build_info()['isa']}, threads: {lec7.get_num_threads()}",
    )
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.savefig(file, dpi=150)


# --- threads ------------------------------------------------------------------------------------------------


def with_threads(call: Call, threads: int) -> Call:
    def run() -> None:
        lec7.set_num_threads(threads)
        call()

    return run


def thread_table(suites: Sequence[str], most: int) -> list[str]:
    """Print the speedup of each row that takes one thread long; return those that miss the target."""
    from cases import SUITES  # only here, since it needs PyTorch
    from pair import Row

    print(f"{'':100}{'1 thread':>12}{f'{most} threads':>12}{'ratio':>8}")
    missed = []
    for suite, rows in SUITES.items():
        for row in rows:
            if not isinstance(row, Row) or (suites and suite not in suites):
                continue
            ours = row.make().ours
            one, several = with_threads(ours, 1), with_threads(ours, most)
            if min(CLOCK.seconds(one) for _ in range(3)) >= LONG:
                a, b = CLOCK.alternate([one, several], ROUNDS)
                name = f"{suite}: {row.title} {row.shape}"
                print(f"{name:100}{1e3 * a:9.1f} ms{1e3 * b:9.1f} ms{a / b:8.2f}", flush=True)
                if a / b < SPEEDUP:
                    missed.append(f"{name}: {a / b:.2f} times one thread's speed, at least {SPEEDUP}")
            lec7.empty_cache()
    return missed


# --- import -------------------------------------------------------------------------------------------------


def import_table() -> list[str]:
    """Print the median times of fresh interpreters; return the target that `import lec7` misses."""

    def run(statement: str) -> float:
        command = [sys.executable, "-c", statement]
        return statistics.median(
            CLOCK.seconds(lambda: subprocess.run(command, check=True)) for _ in range(2 * ROUNDS + 1)
        )

    start = run("pass")
    numpy, ours = run("import numpy") - start, run("import lec7") - start
    print(f"import lec7: {1e3 * ours:.0f} ms, of them NumPy {1e3 * numpy:.0f}; interpreter {1e3 * start:.0f}")
    return [f"import lec7: {ours:.3f} s, at most {IMPORT}"] if ours > IMPORT else []


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=["size", "threads", "import"])
    add("--threads", type=int, default=lec7.get_num_threads(), help="of lec7 (%(default)s)")
    add("--suite", action="append", default=[], help="of `threads`: a suite of compare_torch.py (all)")
    add("--plot", type=Path, metavar="FILE", help="of `size`: draw the times there (needs matplotlib)")
    add("--check", action="store_true", help="fail where a target is missed (threads: at 2 threads)")
    args = parser.parse_args()
    lec7.set_num_threads(args.threads)
    print(
        f"{time.strftime('%Y-%m-%d')}: lec7 {lec7.__version__}, {lec7.build_info()['isa']}, "
        f"threads: {args.threads}, load average {os.getloadavg()[0]:.1f}\n"
    )
    missed: list[str] = []
    if args.what == "size":
        times = size_table()
        if args.plot:
            plot(times, args.plot)
    elif args.what == "threads":
        missed = thread_table(args.suite, args.threads)
    else:
        missed = import_table()
    if args.check:
        for miss in missed:
            print(f"FAILED {miss}", file=sys.stderr)
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
