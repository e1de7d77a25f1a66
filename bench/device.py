"""Where rows are run: the devices of both libraries, and how calls there are waited for and timed."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from timing import Clock

import lec7
from lec7 import cuda

Name = Literal["cpu", "cuda"]
HALF = torch.float16, torch.bfloat16

# A block of calls on a GPU begins with an idle queue and ends with a synchronization: 10 µs of 10 ms.
CUDA_BLOCK, CUDA_CHUNK = 0.1, 0.01


@dataclass(frozen=True)
class Device:
    """``ours`` and ``theirs``: where lec7's arrays live, and PyTorch's. They differ where the host build of
    the CUDA kernels stands in for a GPU: it shares the host's memory with PyTorch.
    """

    ours: Name = "cpu"
    theirs: Name = "cpu"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """That lec7 has there."""
        return (torch.float32, torch.float64) if self.ours == "cpu" else (torch.float32, *HALF)

    @property
    def description(self) -> str:
        if self.ours == "cpu":
            return f"{cpu_name()}, {lec7.build_info()['isa']}"
        info = cuda.device_info()
        major, minor = info["compute_capability"]
        return f"{info['name']} ({major}.{minor}, {info['multiprocessors']} multiprocessors)"

    @property
    def versions(self) -> dict[str, str]:
        """Of what both libraries are built on there."""
        found = {}
        if self.ours == "cuda":
            found["CUDA of lec7"] = (cuda.build_info() or {})["toolkit"]
        if self.theirs == "cuda":
            found["CUDA of PyTorch"] = str(torch.version.cuda)
            found["cuDNN"] = str(torch.backends.cudnn.version())
        return found

    def array(self, tensor: torch.Tensor) -> Any:
        """lec7's array of the same memory as PyTorch's, which is there already."""
        return tensor.numpy() if self.ours == "cpu" else cuda.from_dlpack(tensor)

    def wait(self) -> None:
        if self.ours == "cuda":
            cuda.synchronize()
        if self.theirs == "cuda":
            torch.cuda.synchronize()

    @property
    def clock(self) -> Clock:
        if self.ours == "cpu":
            return Clock()
        return Clock(wait=self.wait, settle=0, block=CUDA_BLOCK, chunk=CUDA_CHUNK)

    def empty_cache(self) -> None:
        """Give freed memory back: the next row may need it in the other library."""
        lec7.empty_cache()
        if self.ours == "cuda":
            cuda.empty_cache()
        if self.theirs == "cuda":
            torch.cuda.empty_cache()

    def set_tf32(self, allow: bool) -> None:
        """Whether products may round their operands to tf32, in both libraries."""
        if self.ours == "cuda":
            cuda.set_allow_tf32(allow)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow


CPU = Device()


def find_device(name: Name) -> Device:
    """The CPU, or the GPU of both libraries (with LEC7_CUDA_HOST, what stands in for it).

    Raises:  RuntimeError: there is none, or one of the libraries has no CUDA.
    """
    if name == "cpu":
        return CPU
    cuda.select(name)
    if os.environ.get("LEC7_CUDA_HOST"):
        return Device("cuda", "cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(f"cuda: this PyTorch ({torch.__version__}) has no CUDA, or finds no GPU")
    torch.backends.cudnn.benchmark = True
    return Device("cuda", "cuda")


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
