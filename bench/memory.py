"""Peak memory of a training step, each library in a fresh process.

    python bench/memory.py "VGG16 N8" lec7

prints by how many bytes a process that trains is larger at its peak than before it built the network; by
then, a small network of the same kind has been trained, so that the libraries' code is loaded. With `cuda`
it is what the library has allocated of the GPU's memory, without what its allocator keeps.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import characters
import networks
import numpy as np
import torch
from device import CPU, Device, Name
from networks import ALEXNET, LENET5, VGG16, Network

import lec7
from lec7 import cuda

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
STEPS = 3  # the second has the optimizer's state, the third what the first two left behind

Step = Callable[[], Any]
Build = Callable[[Name], Step]


def lec7_network(network: Network, N: int, where: Name) -> Step:
    rng = np.random.default_rng(0)
    trainer = network.trainer(network.build(rng).to(where), rng)
    batch = [cuda.to_device(a) if where == "cuda" else a for a in network.batch(rng, N)]
    return lambda: trainer.step(*batch)


def torch_network(network: Network, N: int, memory_format: torch.memory_format, where: Name) -> Step:
    x, labels = (torch.from_numpy(a).to(where) for a in network.batch(np.random.default_rng(0), N))
    module = network.build_torch().to(where, memory_format=memory_format)
    images = networks.torch_images(x, memory_format)
    return networks.torch_training_step(network, module, images, labels)


def lec7_characters(hidden: int, T: int, N: int, where: Name) -> Step:
    rng = np.random.default_rng(0)
    step = characters.training_step(characters.char_lm(rng, 65, hidden, 2).to(where), rng)
    tokens, labels = rng.integers(65, size=(2, T, N), dtype=np.int32)
    return lambda: step(tokens, labels)


def torch_characters(hidden: int, T: int, N: int, where: Name) -> Step:
    step = characters.torch_training_step(characters.TorchCharLM(65, hidden, 2).to(where))
    tokens, labels = torch.randint(65, (2, T, N), device=where)
    return lambda: step(tokens, labels)


@dataclass(frozen=True)
class Job:
    """What builds a training step of each library (PyTorch in several ways), and of a small network."""

    builds: dict[str, Build]
    small: dict[str, Build]


def network_builds(network: Network, N: int) -> dict[str, Build]:
    return {
        "lec7": partial(lec7_network, network, N),
        "contiguous": partial(torch_network, network, N, torch.contiguous_format),
        "channels-last": partial(torch_network, network, N, torch.channels_last),
    }


def character_builds(hidden: int, T: int, N: int) -> dict[str, Build]:
    return {
        "lec7": partial(lec7_characters, hidden, T, N),
        "PyTorch": partial(torch_characters, hidden, T, N),
    }


JOBS = {
    "AlexNet N32": Job(network_builds(ALEXNET, 32), network_builds(LENET5, 1)),
    "VGG16 N8": Job(network_builds(VGG16, 8), network_builds(LENET5, 1)),
    "LeNet-5 N64": Job(network_builds(LENET5, 64), network_builds(LENET5, 1)),
    "characters 2x128 T50 N50": Job(character_builds(128, 50, 50), character_builds(8, 2, 1)),
    "characters 2x512 T50 N50": Job(character_builds(512, 50, 50), character_builds(8, 2, 1)),
}


def status(name: str) -> int:
    """A number of bytes that the kernel counts of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


@dataclass(frozen=True)
class Meter:
    """Bytes in use, and the most since `forget`."""

    now: Callable[[], int]
    forget: Callable[[], Any]
    most: Callable[[], int]


def meter(library: str, where: Name) -> Meter:
    if where == "cpu":
        return Meter(lambda: status("VmRSS:"), lambda: CLEAR.write_text("5"), lambda: status("VmHWM:"))
    if library == "lec7":
        return Meter(
            lambda: cuda.memory_info()["in_use"],
            cuda.reset_peak_memory,
            lambda: cuda.memory_info()["peak"],
        )
    return Meter(
        torch.cuda.memory_allocated, torch.cuda.reset_peak_memory_stats, torch.cuda.max_memory_allocated
    )


def peak(job: Job, library: str, where: Name) -> int:
    memory = meter(library, where)
    job.small[library](where)()
    lec7.empty_cache()
    before = memory.now()
    step = job.builds[library](where)
    memory.forget()  # the peak so far is the initialization's
    for _ in range(STEPS):
        step()
    return memory.most() - before


@dataclass(frozen=True)
class MemoryRow:
    name: str
    shape: str
    job: str
    most: float | None

    @property
    def title(self) -> str:
        return self.name

    def measure(self, device: Device = CPU) -> tuple[int, int]:
        """Bytes of lec7, and of PyTorch's thriftiest way.

        PyTorch gets no huge pages here: it would only be larger.
        """
        environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
        environment["OMP_NUM_THREADS"] = str(lec7.get_num_threads())

        def run(build: str) -> int:
            where = device.ours if build == "lec7" else device.theirs
            command = [sys.executable, __file__, self.job, build, where]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            return int(done.stdout)

        ours, *theirs = map(run, JOBS[self.job].builds)
        return ours, min(theirs)


def memory_rows(most: float) -> list[MemoryRow]:
    names = [(job, *job.split(" ", 1)) for job in JOBS]
    return [MemoryRow(f"{name}, training step", shape, job, most) for job, name, shape in names]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("library", help="lec7, or a way of PyTorch's: contiguous, channels-last, PyTorch")
    parser.add_argument("where", nargs="?", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    job = JOBS[args.job]
    if args.library not in job.builds:
        parser.error(f"the libraries of {args.job} are {', '.join(job.builds)}")
    print(peak(job, args.library, args.where))


if __name__ == "__main__":
    main()
