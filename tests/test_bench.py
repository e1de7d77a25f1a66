"""The benchmarks' rows: both libraries compute the same, on the CPU and on CUDA's backends (needs PyTorch).

The sizes are cut down, so that the host build of the kernels is done in seconds.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import devices

torch = pytest.importorskip("torch", reason="the benchmarks compare with PyTorch, which is not installed")

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))

from cases import CUDA_HALF_MOST, CUDA_MOST, CUDA_TF32_MEANS, HALF_SUITES, SUITES  # noqa: E402
from device import CPU, find_device  # noqa: E402
from memory import Job, MemoryRow, network_builds, peak  # noqa: E402
from networks import LENET5  # noqa: E402
from pair import DisagreementError, verify  # noqa: E402

LARGEST = {
    **{"T": 6, "N": 2, "H": 13, "D": 12, "C": 16, "F": 16, "groups": 16, "d": 32, "heads": 2, "V": 11},
    **{"hidden": 9, "length": 7, "elements": 999, "parameters": 999, "M": 37},
}
OF_SUITES = {
    "gemm": {"N": 35, "K": 33},
    "softmax": {"K": 21},
    "dropout": {"elements": 10**7},  # of fewer, the shares that are kept differ more
}


def small(row, largest):
    sizes = {k: min(v, largest.get(k, v)) if type(v) is int else v for k, v in row.sizes.items()}
    return dataclasses.replace(row, sizes=sizes)


def small_rows(suite, dtypes=(torch.float32,)):
    """Each distinct row that is left of a suite; of networks, LeNet-5."""
    found = {}
    for row in SUITES[suite]:
        if isinstance(row, MemoryRow) or row.dtype not in dtypes:
            continue
        if "network" in getattr(row.family, "keywords", {}) and row.family.keywords["network"] is not LENET5:
            continue
        row = small(row, LARGEST | OF_SUITES.get(suite, {}))
        kind = row.name.split(",")[0] if suite == "conv" else row.name
        found.setdefault((kind, row.direction, *row.sizes.items()), row)
    return list(found.values())


@pytest.fixture(scope="module", params=["cpu", *devices("cuda_host", "cuda")])
def device(request):
    return CPU if request.param == "cpu" else find_device("cuda")


@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite != "memory"])
def test_rows_agree(device, suite):
    rows = small_rows(suite, device.dtypes)
    assert rows
    for row in rows:
        try:
            verify(row.make(device))
        except DisagreementError as error:
            pytest.fail(f"{row.title} {row.shape}: {error}")


@pytest.mark.parametrize("suite", ["gemm", "conv"])
def test_rows_agree_in_tf32(device, suite):
    """The wider tolerance is enough; it is needed where the host is the GPU: there lec7 alone rounds."""
    if device.ours == "cpu":
        pytest.skip("tf32 is a GPU's")
    device.set_tf32(True)
    try:
        rows = small_rows(suite, device.dtypes)
        pairs = [row.make(device) for row in rows if row.direction != "forward + backward"]
        for pair in pairs:
            verify(pair, "tf32")
        if device.theirs == "cpu":
            with pytest.raises(DisagreementError, match="more than 2e-05"):
                verify(pairs[0])
    finally:
        device.set_tf32(False)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("suite", HALF_SUITES)
def test_rows_agree_in_half_types(device, suite, precision):
    if device.ours == "cpu":
        pytest.skip("half types are a GPU's")
    for row in small_rows(suite):
        pair = dataclasses.replace(row, dtype=getattr(torch, precision)).make(device)
        try:
            verify(pair, precision)
        except DisagreementError as error:
            pytest.fail(f"{row.title} {row.shape}: {error}")


def test_a_wrong_result_is_found(device):
    pair = small_rows("gemm", device.dtypes)[0].make(device)
    verify(pair)
    wrong = dataclasses.replace(pair, theirs=[lambda: [1.0001 * c for c in pair.theirs[0]()]])
    with pytest.raises(DisagreementError, match=r"c: relative error 1\.0e-04, more than 2e-05"):
        verify(wrong)


def test_memory_of_a_gpu_is_counted(device):
    """A training step with Adam holds parameters, gradients and two moments at least."""
    if device.ours == "cpu":
        pytest.skip("the kernel counts a process's memory")
    job = Job(network_builds(LENET5, 2), network_builds(LENET5, 1))
    numbers = sum(p.numel() for p in LENET5.build_torch().parameters())
    assert 16 * numbers < peak(job, "lec7", "cuda") < 64 * numbers
    if device.theirs == "cuda":  # its convolutions take scratch
        assert 16 * numbers < peak(job, "contiguous", "cuda")


def test_targets_on_a_gpu_name_rows():
    titles = {f"{suite}: {row.title}" for suite, rows in SUITES.items() for row in rows}
    assert titles >= CUDA_MOST.keys() | CUDA_HALF_MOST.keys()
    assert SUITES.keys() >= CUDA_TF32_MEANS.keys() | {*HALF_SUITES}


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, BENCH / "compare_torch.py", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_without_a_gpu_one_line_says_so():
    done = run("--device", "cuda", LEC7_CUDA_HOST="", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("compare_torch.py --device cuda: ")
    assert done.stderr.count("\n") == 1


def test_the_command(device, tmp_path):
    """All of it for one small row: verified, timed, printed, checked, written."""
    row = ["--suite", "recurrent", "--filter", "LSTM step N1 D64", "--rounds", "1", "--peak", "100"]
    where = ["--device", "cpu" if device is CPU else "cuda"]
    done = run(*row, *where, "--json", tmp_path / "results.json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["machine"]["peak_gflops"] == 100
    (result,) = report["rows"]
    assert result["ratio"] == result["lec7"] / result["torch"] > 0
    assert result["most"] == (0.2 if device is CPU else None)
