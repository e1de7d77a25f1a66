"""Leaves out one barrier of the kernels after the other and lists those that no test misses.

Such a barrier is not needed, or no case of test_families.cu needs it: add one. The programs are tried in
turn: a plain build is fast, one for ThreadSanitizer (CMakePresets.json) sees everything. Minutes a file.

    PROGRAM=tests/cuda/lec7_cuda_tests
    python tests/cuda/leave_out.py build/release/$PROGRAM build/tsan/$PROGRAM [gemm.cu tile.h ...]
"""

import os
import re
import subprocess
import sys
from pathlib import Path

CUDA = Path(__file__).parents[2] / "cuda"
BARRIER = re.compile(r"^(?!\s*//).*\b(__syncthreads|__syncwarp|sync_grid|wait_for_copies<[^>]+>)\(\)")


def noticed(program: str, place: str) -> bool:
    environment = {**os.environ, "LEC7_LEAVE_OUT": place, "TSAN_OPTIONS": "halt_on_error=1"}
    command = [program, "families", "reduce"]
    return subprocess.run(command, env=environment, capture_output=True).returncode != 0


def main() -> None:
    programs = [name for name in sys.argv[1:] if not name.endswith((".cu", ".h"))]
    files = [name for name in sys.argv[1:] if name not in programs]
    for path in sorted((*CUDA.glob("*.cu"), *CUDA.glob("*.h"))):
        if files and path.name not in files:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            place = f"{path.name}:{number}"
            if BARRIER.match(line) and not any(noticed(program, place) for program in programs):
                print(f"{place}: {line.strip()}", flush=True)


if __name__ == "__main__":
    main()
