"""What each kernel of a compiled ``_cuda`` takes of a GPU, against the table in docs/cuda_resources.md.

    python cuda/resources.py path/to/_cuda.so            compare: fails where a kernel takes more
    python cuda/resources.py path/to/_cuda.so --write    write the table

Needs cuobjdump and nvdisasm (on PATH or beside the nvcc that CUDACXX names), c++ and c++filt. A kernel's
stack must be empty: what lies there was spilled, or is an array that the compiler could not keep in
registers. Kernels that should use tensor cores, asynchronous copies or loads of 16 bytes must hold those
instructions.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parent / "docs" / "cuda_resources.md"
CHIPS = ("T4", "A100", "RTX 4090", "H100")  # of occupancy.cpp
#: what the machine code of kernels so named holds where the chip has it: products on tensor cores, copies
#: past the registers, loads of 16 bytes. (Float tiles of float16 numbers run where there are no such copies.)
INSTRUCTIONS = {
    r"Tf32Tile": r"HMMA",
    r"HalfTile": r"HMMA",
    r"^recurrent_mma_": r"HMMA",
    r"^recurrent_mma_(forward|backward)_kernel": r"LDG\S*\.128",
    r"^attention_half_(forward|backward)_kernel": r"HMMA",
    r"^attention_half_(?!delta)": r"LDGSTS\S*\.128",
    r"^(gemm|conv|conv_weight_gradient|locally_connected)_kernel<(?!FmaTile<.*float16)": r"LDGSTS",
    r"^(gemm|conv|conv_weight_gradient)_kernel<(?!FmaTile<.*float16)": r"LDGSTS\S*\.128",
    r"^(attention|recurrent)_(forward|backward)_kernel": r"LDGSTS",
    r"^(?!recurrent)\w+_kernel<4\b(?!.*float16)": r"LDG\S*\.128",
    r"^\w+_kernel<4\b.*float16": r"LDG\S*\.(64|128)",
}
#: bytes of a block's shared memory that the driver takes from sm_90 on, counted with the kernel's
RESERVED = 1024
CODE_OF = ("sm_80", "sm_90")
NOISE = r"\(anonymous namespace\)::|lec7::cuda::|lec7::|\((?:int|bool|unsigned int)\)"


@dataclass
class Kernel:
    threads: int = 0
    registers: int = 0  # the most of all chips
    shared: int = 0
    stack: dict[str, int] = field(default_factory=dict)  # chip -> bytes


def tool(name: str) -> str:
    beside = Path(os.environ.get("CUDACXX", "nvcc")).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        sys.exit(f"{name} is neither on PATH nor beside CUDACXX")
    return found


def output(*command: str, text: str | None = None) -> str:
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]])  # cuobjdump looks for nvdisasm
    environment = {**os.environ, "PATH": path}
    return subprocess.run(
        command, env=environment, input=text, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def short_names(mangled: list[str]) -> dict[str, str]:
    """Mangled -> "attention_forward_kernel<2>": without namespaces and parameters."""
    names = {}
    for raw, full in zip(mangled, output("c++filt", text="\n".join(mangled)).splitlines(), strict=True):
        plain = re.sub(NOISE, "", full)
        plain = plain.removeprefix("void ")
        names[raw] = re.match(r"[^<(]+(?:<.*>)?(?=\()", plain)[0] if "(" in plain else plain
    return names


def kernels(module: str) -> dict[str, Kernel]:
    cuobjdump = tool("cuobjdump")
    usage, ptx = output(cuobjdump, "-res-usage", module), output(cuobjdump, "-ptx", module)
    found = re.findall(r"arch = (\w+)|Function (\w+):\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    names = short_names(sorted({name for _, name, *_ in found if name}))
    result: dict[str, Kernel] = defaultdict(Kernel)
    chip = ""
    for arch, name, registers, stack, shared in found:
        chip = arch or chip
        if not name:
            continue
        kernel = result[names[name]]
        kernel.registers = max(kernel.registers, int(registers))
        reserved = RESERVED if int(chip.removeprefix("sm_")) >= 90 and int(shared) else 0
        kernel.shared = max(kernel.shared, int(shared) - reserved)
        if int(stack):
            kernel.stack[chip] = int(stack)
    for name, bounds in re.findall(r"\.entry (\w+)\(.*?\)\n((?:\.\w+[^\n]*\n)*)\{", ptx, re.DOTALL):
        threads = re.search(r"\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?", bounds)
        if threads and names.get(name):
            sizes = [int(n) for n in threads.groups() if n]
            result[names[name]].threads = sizes[0] * (sizes[1] if len(sizes) > 1 else 1)
    return result


def code_complaints(module: str) -> list[str]:
    result = []
    for chip in CODE_OF:
        code = output(tool("cuobjdump"), "-sass", "-arch", chip, module).split("Function : ")[1:]
        names = short_names([function.split("\n", 1)[0].strip() for function in code])
        seen = set()
        for name, function in zip(names.values(), code, strict=True):
            for kernels_so_named, instruction in INSTRUCTIONS.items():
                if re.search(kernels_so_named, name):
                    seen.add(kernels_so_named)
                    if not re.search(instruction, function):
                        result.append(f"{name} has no {instruction} on {chip}")
        result += [f"no kernel is named {unused} on {chip}" for unused in INSTRUCTIONS.keys() - seen]
    return result


def occupancy(found: dict[str, Kernel]) -> dict[str, list[str]]:
    include = Path(tool("nvcc")).resolve().parent.parent / "include"
    with tempfile.TemporaryDirectory() as work:
        program = f"{work}/occupancy"
        output("c++", "-std=c++20", f"-I{include}", str(HERE / "occupancy.cpp"), "-o", program)
        lines = [f"{k.threads} {k.registers} {k.shared}" for k in found.values()]
        shares = output(program, text="\n".join(lines)).splitlines()
    return {name: share.split() for name, share in zip(found, shares, strict=True)}


def written() -> dict[str, tuple[int, int]]:
    """kernel -> (registers, shared bytes) of the table."""
    text = TABLE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)` \| \d+ \| (\d+) \| (\d+) \|", text, re.MULTILINE)
    return {name: (int(registers), int(shared)) for name, registers, shared in rows}


def write(found: dict[str, Kernel]) -> None:
    text = TABLE.read_text(encoding="utf-8")
    head = text[: text.index("| kernel |")]
    lines = [
        "| kernel | threads | registers | static shared | " + " | ".join(CHIPS) + " |",
        "| --- |" + " ---: |" * (3 + len(CHIPS)),
    ]
    for name, shares in sorted(occupancy(found).items()):
        k = found[name]
        cells = [f"`{name}`", k.threads, k.registers, k.shared, *(f"{share} %" for share in shares)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    TABLE.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


def complaints(found: dict[str, Kernel]) -> list[str]:
    result = []
    table = written()
    for name, kernel in sorted(found.items()):
        for chip, stack in kernel.stack.items():
            result.append(f"{name} has {stack} bytes of stack on {chip}")
        if name not in table:
            result.append(f"{name} is not in the table")
            continue
        registers, shared = table[name]
        if kernel.registers > registers:
            result.append(f"{name} takes {kernel.registers} registers, the table allows {registers}")
        if kernel.shared > shared:
            result.append(f"{name} takes {kernel.shared} bytes of shared memory, the table allows {shared}")
    gone = sorted(table.keys() - found.keys())
    return result + [f"{name} is in the table and not in the module" for name in gone]


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("module")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    found = kernels(given.module)
    if unbounded := [name for name, kernel in found.items() if kernel.threads == 0]:
        sys.exit("kernels without __launch_bounds__: " + ", ".join(sorted(unbounded)))
    if given.write:
        write(found)
    problems = complaints(found) + code_complaints(given.module)
    print("\n".join(problems) or f"{len(found)} kernels, each within its row of {TABLE.name}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
