"""The runtime around the ops: threads, forks, the GIL, ISAs, the cache, denormals, imports, errors."""

import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ISAS

import lec7
from lec7 import _cpu, ops

MIB = 1 << 20
SECONDS = 120  # a hang, not a slow machine


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter; environment="" removes a variable."""
    merged = {**os.environ, **environment}
    merged = {name: value for name, value in merged.items() if name not in environment or value}
    return subprocess.run(
        [sys.executable, "-c", code], env=merged, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def printed(code: str, **environment: str) -> str:
    """What it prints; it must succeed."""
    result = run_python(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(autouse=True)
def settings_come_back():
    threads, limit = lec7.get_num_threads(), lec7.cache_info()["limit"]
    yield
    lec7.set_num_threads(threads)
    lec7.set_cache_limit(limit)


def products(seed: int) -> bytes:
    """A few ops, large enough for several threads; their bits."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 150, 150), np.float32)
    return ops.softmax_forward(ops.matmul(a, ops.tanh_forward(b))).tobytes()


# --- threads ---


@pytest.mark.parametrize("count", [1, 2, 5])
def test_threads_are_set(count):
    expected = products(0)
    lec7.set_num_threads(count)
    assert lec7.get_num_threads() == count
    assert products(0) == expected


@pytest.mark.parametrize("count", [0, -1])
def test_threads_refuse_counts_below_one(count):
    before = lec7.get_num_threads()
    with pytest.raises(ValueError, match=f"set_num_threads: the count is at least 1; got {count}"):
        lec7.set_num_threads(count)
    assert lec7.get_num_threads() == before


@pytest.mark.parametrize("count", [None, "2", 1.5, 1 << 70])
def test_threads_refuse_what_is_no_count(count):
    with pytest.raises(TypeError, match="set_num_threads"):
        lec7.set_num_threads(count)


GET_THREADS = "import lec7; print(lec7.get_num_threads())"
needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system"
)


def test_threads_follow_omp_num_threads():
    assert printed(GET_THREADS, OMP_NUM_THREADS="3") == "3"


@needs_affinity
def test_threads_follow_the_affinity():
    assert 1 <= int(printed(GET_THREADS, OMP_NUM_THREADS="")) <= len(os.sched_getaffinity(0))
    narrowed = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    assert printed(narrowed + GET_THREADS, OMP_NUM_THREADS="") == "1"


def test_threads_of_python_call_ops_at_once():
    expected = [products(seed) for seed in range(8)]
    lec7.set_num_threads(2)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(products, range(8))) == expected


def test_ops_release_the_gil():
    """Another Python thread runs in the middle of an op."""
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.001):
            ticks.append(time.perf_counter())

    a = np.ones((1200, 1200), np.float32)
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        for _ in range(100):  # a loaded machine may give the other thread no time at once
            start = time.perf_counter()
            ops.matmul(a, a)
            end = time.perf_counter()
            quarter = (end - start) / 4
            if any(start + quarter < t < end - quarter for t in ticks):
                return
            ticks.clear()
    finally:
        stop.set()
        thread.join()
    pytest.fail("no other Python thread ran during the op")


FORK = f"""
import multiprocessing, sys
import numpy as np
import lec7
from lec7 import ops

def work(seed):
    a = np.random.default_rng(seed).standard_normal((300, 300), dtype=np.float32)
    return lec7.get_num_threads(), ops.matmul(a, a).tobytes()

lec7.set_num_threads(4)
expected = [work(seed)[1] for seed in range(3)]  # the parent's threads exist before the fork
with multiprocessing.get_context("fork").Pool(2) as pool:
    results = pool.map_async(work, range(3)).get({SECONDS // 2})
assert [bits for _, bits in results] == expected
assert {{threads for threads, _ in results}} == {{1}}
assert work(0) == (4, expected[0])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_computes():
    printed("import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + FORK)


# --- ISAs ---

GET_ISA = "import lec7; print(lec7.build_info()['isa'])"


@pytest.mark.parametrize("isa", ISAS)
def test_isa_is_forced_by_the_environment(isa):
    if isa in _cpu._usable_isas():
        assert printed(GET_ISA, LEC7_ISA=isa) == isa
    else:
        result = run_python(GET_ISA, LEC7_ISA=isa)
        assert result.returncode != 0
        assert f"LEC7_ISA: {isa} is not " in result.stderr


def test_isa_is_the_best_without_the_environment():
    assert printed(GET_ISA, LEC7_ISA="") == _cpu._usable_isas()[-1]


def test_isa_of_another_name_is_refused():
    result = run_python(GET_ISA, LEC7_ISA="sse9")
    assert result.returncode != 0
    assert 'ImportError: LEC7_ISA: "sse9" is not one of baseline, avx2, avx512' in result.stderr
    before = _cpu._isa()
    with pytest.raises(ValueError, match='"sse9" is not one of baseline, avx2, avx512'):
        _cpu._set_isa("sse9")
    assert _cpu._isa() == before


# --- the cache ---


@pytest.fixture
def empty_cache():
    gc.collect()
    lec7.empty_cache()
    assert lec7.cache_info()["cached"] == 0
    yield
    lec7.empty_cache()


@pytest.mark.usefixtures("empty_cache")
def test_cache_keeps_and_gives_back():
    before = lec7.cache_info()
    assert set(before) == {"in_use", "cached", "limit"}
    y = ops.relu_forward(np.ones(MIB, np.float32))
    taken = lec7.cache_info()["in_use"] - before["in_use"]
    assert 4 * MIB <= taken <= 5 * MIB
    del y
    assert lec7.cache_info() == {**before, "cached": taken}
    y = ops.relu_forward(np.ones(MIB, np.float32))
    assert lec7.cache_info() == {**before, "in_use": before["in_use"] + taken}
    del y
    lec7.empty_cache()
    assert lec7.cache_info() == before


@pytest.mark.usefixtures("empty_cache")
def test_cache_is_bounded():
    for limit in (0, 3 * MIB, 20 * MIB):
        lec7.set_cache_limit(limit)
        assert lec7.cache_info()["limit"] == limit
        for size in range(1, 9):
            ops.relu_forward(np.ones(size * MIB // 4, np.float32))
            assert lec7.cache_info()["cached"] <= limit
    assert lec7.cache_info()["cached"] > 0
    lec7.set_cache_limit(0)
    assert lec7.cache_info()["cached"] == 0
    for limit in (-1, 0.5, "1"):
        with pytest.raises(TypeError):
            lec7.set_cache_limit(limit)


@pytest.mark.usefixtures("empty_cache")
def test_results_outlive_the_cache():
    x = np.arange(MIB, dtype=np.float32)
    results = [ops.relu_forward(x) for _ in range(4)]
    view = results[0][10:20]
    del results[0], results[1]
    lec7.set_cache_limit(0)
    lec7.empty_cache()
    others = [ops.relu_forward(-x) for _ in range(4)]
    for result in results:
        np.testing.assert_array_equal(result, x)
    np.testing.assert_array_equal(view, x[10:20])
    assert not any(other.any() for other in others)


def test_cache_is_shared_by_threads():
    def use(seed: int) -> bool:
        x = np.full(MIB // 16 * (1 + seed % 3), seed, np.float32)
        return all((ops.relu_forward(x) == seed).all() for _ in range(20))

    in_use = lec7.cache_info()["in_use"]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(12)))
    assert lec7.cache_info()["in_use"] == in_use


# --- floating point ---


def test_denormals_are_flushed_inside_only(cpu):
    """1e-30 * 1e-10 is a denormal number of float32: zero in a kernel, on every thread, but not in NumPy."""
    small, smaller = np.full((1, 1), 1e-30, np.float32), np.full((1, 1), 1e-10, np.float32)
    many = np.full((400, 1), 1e-30, np.float32), np.full((1, 400), 1e-10, np.float32)
    for threads in (1, 4):
        lec7.set_num_threads(threads)
        assert (small * smaller)[0, 0] != 0
        assert cpu.matmul(small, smaller)[0, 0] == 0
        x = np.repeat(many[0], 400, axis=1) / 400
        assert not cpu.matmul(x, np.repeat(many[1], 400, axis=0)).any()
        assert (small * smaller)[0, 0] != 0


# --- the package ---


def test_import_is_light():
    code = """
import sys
import numpy.random
before = set(sys.modules)
import lec7, lec7.ops, lec7.reference, lec7.layers
modules = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(modules - set(sys.stdlib_module_names)))
"""
    assert set(printed(code).split()) <= {"lec7", "numpy", "safetensors", "tqdm"}


def test_build_info():
    info = lec7.build_info()
    assert set(info) == {"version", "compiler", "flags", "isas_built", "isa", "openmp", "cuda"}
    assert info["version"] == lec7.__version__
    assert info["isa"] == _cpu._isa()
    assert info["isas_built"][0] == "baseline"
    assert set(_cpu._usable_isas()) <= set(info["isas_built"]) <= set(ISAS)
    assert info["openmp"] >= 201511
    assert "-O3" in info["flags"]
    assert " " in info["compiler"]
    assert info["cuda"] is None or set(info["cuda"]) == {"toolkit", "chips"}


# --- errors ---


def test_errors_have_the_types_of_python(cpu):
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"matmul: the inner sizes differ; a \(M, K\) = \(2, 3\), b"):
        cpu.matmul(x, x)
    for wrong in (x.astype(np.float16), x.astype(int), x.astype(complex), x.astype(">f4"), [["a"]], None):
        with pytest.raises(TypeError, match="relu: x must be float32 or float64; got dtype "):
            cpu.relu_forward(wrong)
    with pytest.raises(TypeError, match="matmul: all arrays have one dtype; a is float32"):
        cpu.matmul(x, np.ones((3, 2)))
    with pytest.raises(TypeError, match="incompatible function arguments"):
        cpu.matmul(x)


@pytest.mark.parametrize(
    ("size", "error"), [(1 << 23, MemoryError), (1 << 24, ValueError), (1 << 40, ValueError)]
)
def test_absurd_sizes_are_refused(size, error, cpu):
    """A product over nothing needs no memory for its inputs, and 2**46 numbers or more for its result."""
    before = lec7.cache_info()["in_use"]
    with pytest.raises(error):
        cpu.matmul(np.ones((size, 0)), np.ones((0, size)))
    assert lec7.cache_info()["in_use"] == before
    assert cpu.matmul(np.ones((2, 3)), np.ones((3, 2)))[0, 0] == 3
