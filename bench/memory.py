"""Peak memory of a training step, each library in a fresh process.

    python bench/memory.py "VGG16 N8" lec7

prints by how many bytes a process that trains is larger at its peak than before it built the network; by
then, a small network of the same kind has been trained, so that the libraries' code is loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import characters
import networks
import numpy as np
import torch
from networks import ALEXNET, LENET5, VGG16, Network

import lec7

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
STEPS = 3  # the second has the optimizer's state, the third what the first two left behind

Step = Callable[[], Any]


def lec7_network(network: Network, N: int) -> Step:
    rng = np.random.default_rng(0)
    model = network.build(rng)
    trainer = network.trainer(model, rng)
    batch = network.batch(rng, N)
    return lambda: trainer.step(*batch)


def torch_network(network: Network, N: int, memory_format: torch.memory_format) -> Step:
    x, labels = network.batch(np.random.default_rng(0), N)
    module = network.build_torch().to(memory_format=memory_format)
    images = networks.torch_images(x, memory_format)
    return networks.torch_training_step(network, module, images, torch.from_numpy(labels))


def lec7_characters(hidden: int, T: int, N: int) -> Step:
    rng = np.random.default_rng(0)
    step = characters.training_step(characters.char_lm(rng, 65, hidden, 2), rng)
    tokens, labels = rng.integers(65, size=(2, T, N), dtype=np.int32)
    return lambda: step(tokens, labels)


def torch_characters(hidden: int, T: int, N: int) -> Step:
    step = characters.torch_training_step(characters.TorchCharLM(65, hidden, 2))
    tokens, labels = torch.randint(65, (2, T, N))
    return lambda: step(tokens, labels)


@dataclass(frozen=True)
class Job:
    """What builds a training step of each library (PyTorch in several ways), and of a small network."""

    builds: dict[str, Callable[[], Step]]
    small: dict[str, Callable[[], Step]]


def network_builds(network: Network, N: int) -> dict[str, Callable[[], Step]]:
    return {
        "lec7": lambda: lec7_network(network, N),
        "contiguous": lambda: torch_network(network, N, torch.contiguous_format),
        "channels-last": lambda: torch_network(network, N, torch.channels_last),
    }


def character_builds(hidden: int, T: int, N: int) -> dict[str, Callable[[], Step]]:
    return {
        "lec7": lambda: lec7_characters(hidden, T, N),
        "PyTorch": lambda: torch_characters(hidden, T, N),
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


def peak(build: Callable[[], Step], small: Callable[[], Step]) -> int:
    small()()
    lec7.empty_cache()
    before = status("VmRSS:")
    step = build()
    CLEAR.write_text("5")  # the peak so far, which is the initialization's, is forgotten
    for _ in range(STEPS):
        step()
    return status("VmHWM:") - before


@dataclass(frozen=True)
class MemoryRow:
    name: str
    shape: str
    job: str
    most: float

    @property
    def title(self) -> str:
        return self.name

    def measure(self) -> tuple[int, int]:
        """Bytes of lec7, and of PyTorch's thriftiest way.

        PyTorch gets no huge pages here: it would only be larger.
        """
        environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
        environment["OMP_NUM_THREADS"] = str(lec7.get_num_threads())

        def run(build: str) -> int:
            command = [sys.executable, __file__, self.job, build]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            return int(done.stdout)

        ours, *theirs = map(run, JOBS[self.job].builds)
        return ours, min(theirs)


def memory_rows(most: float) -> list[MemoryRow]:
    names = [(job, *job.split(" ", 1)) for job in JOBS]
    return [MemoryRow(f"{name}, training step", shape, job, most) for job, name, shape in names]


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in JOBS or sys.argv[2] not in JOBS[sys.argv[1]].builds:
        sys.exit(
            f"usage: {sys.argv[0]} JOB LIBRARY: { ({name: [*job.builds] for name, job in JOBS.items()}) }"
        )
    job, library = JOBS[sys.argv[1]], sys.argv[2]
    print(peak(job.builds[library], job.small[library]))
