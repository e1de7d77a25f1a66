"""Leaves out one barrier of the kernels after the other and lists those that no test misses.

Such a barrier is not needed, or no case of test_families.cu needs it: add one. Usage, with a build for
ThreadSanitizer (CMakePresets.json; it takes a while):

    python tests/cuda/leave_out.py build/tsan/tests/cuda/lec7_cuda_tests [FILE ...]
"""

import os
import re
import subprocess
import sys
from pathlib import Path

CUDA = Path(__file__).parents[2] / "cuda"
BARRIER = re.compile(r"^(?!\s*//).*\b(__syncthreads|__syncwarp|sync_grid)\(\)")


def noticed(program: str, place: str) -> bool:
    environment = {**os.environ, "LEC7_LEAVE_OUT": place, "TSAN_OPTIONS": "halt_on_error=1"}
    suites = ["families", "reduce"]
    return subprocess.run([program, *suites], env=environment, capture_output=True).returncode != 0


def main() -> None:
    program, *only = sys.argv[1:]
    for path in sorted((*CUDA.glob("*.cu"), *CUDA.glob("*.h"))):
        if only and path.name not in only:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            place = f"{path.name}:{number}"
            if BARRIER.match(line) and not noticed(program, place):
                print(f"{place}: {line.strip()}", flush=True)


if __name__ == "__main__":
    main()
