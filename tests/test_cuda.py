"""What is CUDA's own: values that the device checks, and errors that appear when the host waits for it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checking import normal
from conftest import device_module, missing

import lec7.cuda
from lec7 import _cpu


@pytest.mark.parametrize("name", ["cuda", "cuda_host"])
def test_backend_is_here(name: str) -> None:
    """Without it the tests of the ops do not run on it: this says why."""
    try:
        device_module(name)
    except ImportError as error:
        missing(name, f"{name}: {error}")


# --- chips --------------------------------------------------------------------------------------------------

SEVEN = "75-real 80-real 86-real 89-real 90-real 100-real 120"


@pytest.mark.parametrize(
    ("chips", "runs", "runs_not"),
    [
        (SEVEN, (75, 80, 86, 87, 89, 90, 100, 103, 120, 121, 130), (70, 72, 61, 110)),
        ("75 80-real", (75, 80, 90, 120), (70, 72)),
        ("90-virtual", (90, 100), (80, 89)),
        ("90a", (90,), (89, 100, 103, 120)),
        ("86-real", (86, 89), (80, 90, 75)),
        ("native", (70, 90), ()),
        ("the host", (80,), ()),
    ],
)
def test_the_chips_that_run_a_build(chips, runs, runs_not):
    assert [c for c in (*runs, *runs_not) if lec7.cuda._runs_on(chips, c)] == list(runs)


def test_a_gpu_without_code_is_not_available(monkeypatch):
    class Module:
        device_count = staticmethod(lambda: 2)
        current_device = staticmethod(lambda: 0)
        compute_capability = staticmethod({0: 70, 1: 90}.get)
        build_info = staticmethod(lambda: {"chips": "80-real 90"})
        selected = None

        @classmethod
        def set_device(cls, device):
            cls.selected = device

    monkeypatch.setattr(lec7.cuda, "_module", lambda: Module)
    assert not lec7.cuda.is_available()
    for device in ("cuda", "cuda:0"):
        with pytest.raises(
            RuntimeError, match=rf"{device}: the GPU is an sm_70, .* has code for 80-real 90 only"
        ):
            lec7.cuda.select(device)
    assert Module.selected is None
    lec7.cuda.select("cuda:1")
    assert Module.selected == 1
    monkeypatch.setattr(Module, "current_device", staticmethod(lambda: 1))
    assert lec7.cuda.is_available()
    monkeypatch.setattr(Module, "device_count", staticmethod(lambda: 0))
    with pytest.raises(RuntimeError, match="cuda:5: there is no NVIDIA GPU"):
        lec7.cuda.select("cuda:5")


# --- values -------------------------------------------------------------------------------------------------

# An op with integers or probabilities that must be in a range, as call(ops, values, *arrays).
Call = Callable[..., Any]


def embedding_forward(ops: Any, tokens: Any, weight: Any, dy: Any) -> Any:
    return ops.embedding_forward(tokens, weight)


def embedding_backward(ops: Any, tokens: Any, weight: Any, dy: Any) -> Any:
    return ops.embedding_backward(dy, tokens, num_embeddings=5)


def cross_entropy_forward(ops: Any, labels: Any, logits: Any, lse: Any) -> Any:
    return ops.softmax_cross_entropy_forward(logits, labels, reduction="none", ignore_index=-7)[0]


def cross_entropy_backward(ops: Any, labels: Any, logits: Any, lse: Any) -> Any:
    return ops.softmax_cross_entropy_backward(2.0, logits, labels, lse, reduction="sum", ignore_index=-7)


def binary_cross_entropy_forward(ops: Any, targets: Any, logits: Any) -> Any:
    return ops.binary_cross_entropy_forward(logits, targets, reduction="none")


def binary_cross_entropy_backward(ops: Any, targets: Any, logits: Any) -> Any:
    return ops.binary_cross_entropy_backward(1.0, logits, targets, reduction="sum")


def max_pool_backward(ops: Any, argmax: Any, dy: Any) -> Any:
    return ops.max_pool2d_backward(dy, argmax, x_shape=(2, 6, 6, 3))


def operands(rng: np.random.Generator, call: Call, integer: type) -> tuple[np.ndarray, ...]:
    """Good values, and the other arrays of the call."""
    if call in (embedding_forward, embedding_backward):
        return rng.integers(0, 5, (4, 3), integer), normal(rng, 5, 8), normal(rng, 4, 3, 8)
    if call in (cross_entropy_forward, cross_entropy_backward):
        labels = rng.integers(0, 5, (4, 3), integer)
        labels[0, 0] = -7
        return labels, normal(rng, 4, 3, 5), 2 + normal(rng, 4, 3)
    if call is max_pool_backward:
        return rng.integers(-1, 36, (2, 3, 3, 3), integer), normal(rng, 2, 3, 3, 3)
    return rng.uniform(0, 1, (4, 3)).astype(np.float32), normal(rng, 4, 3)


OF_INTEGERS = (
    embedding_forward,
    embedding_backward,
    cross_entropy_forward,
    cross_entropy_backward,
    max_pool_backward,
)
OF_PROBABILITIES = (binary_cross_entropy_forward, binary_cross_entropy_backward)
CASES = [
    *((call, np.int32, bad) for call in OF_INTEGERS for bad in (-2, 36, 2**31 - 1, -(2**31))),
    *((call, np.int64, bad) for call in OF_INTEGERS for bad in (2**32 + 1, 2**62, -(2**63))),
    *((call, np.float32, bad) for call in OF_PROBABILITIES for bad in (-0.25, 1.5, np.nan, np.inf)),
]


def cpu_message(call: Call, *arrays: np.ndarray) -> str:
    with pytest.raises(ValueError, match=r"outside|not in") as caught:
        call(_cpu, *arrays)
    return str(caught.value)


@pytest.mark.parametrize(("call", "integer", "bad"), CASES)
def test_values_outside_appear_when_the_host_waits(call, integer, bad, cuda, rng):
    """The message is the CPU's; what the bad values have no part in is as it is without them."""
    good, *arrays = operands(rng, call, integer)
    wrong = good.copy()
    wrong[1, 2] = wrong[-1, 0] = bad
    message = cpu_message(call, wrong, *arrays)

    on_device = [cuda.to_device(a) for a in (wrong, *arrays)]
    expected = call(cuda, cuda.to_device(good), *on_device[1:]).numpy()
    for wait in (lambda y: y.numpy(), lambda y: cuda.synchronize()):
        y = call(cuda, *on_device)
        with pytest.raises(ValueError, match="outside") as caught:
            wait(y)
        assert str(caught.value) == message
        cuda.synchronize()  # it is reported once
        kept, known = (without(call, result, wrong, bad) for result in (y.numpy(), expected))
        np.testing.assert_array_equal(kept, known)
    for array, device in zip(arrays, on_device[1:], strict=True):
        np.testing.assert_array_equal(device.numpy(), array)


def without(call: Call, result: np.ndarray, wrong: np.ndarray, bad: float) -> np.ndarray:
    """What bad values have no part in: rows, not the sums that lose a term."""
    if call in (embedding_backward, max_pool_backward):
        return result[:0]
    return result[(wrong != bad) & (wrong == wrong)]


def test_sums_leave_out_values_outside(cuda, rng):
    tokens, dy = np.array([1, 0, 7, 1, -1, 2]), normal(rng, 6, 4)
    kept = tokens[[0, 1, 3, 5]]
    dweight = cuda.embedding_backward(cuda.to_device(dy), cuda.to_device(tokens), num_embeddings=3)
    with pytest.raises(ValueError, match=r"tokens is 7 at \(2,\)"):
        cuda.synchronize()
    expected = _cpu.embedding_backward(dy[[0, 1, 3, 5]], kept, num_embeddings=3)
    np.testing.assert_array_equal(dweight.numpy(), expected)

    argmax, dy = np.array([0, 3, -5, 0, 2]).reshape(1, 5, 1), normal(rng, 1, 5, 1)
    dx = cuda.max_pool1d_backward(cuda.to_device(dy), cuda.to_device(argmax), x_shape=(1, 3, 1))
    with pytest.raises(ValueError, match=r"argmax is 3 at \(0, 1, 0\)"):
        cuda.synchronize()
    np.testing.assert_array_equal(dx.numpy().ravel(), [dy[0, 0, 0] + dy[0, 3, 0], 0, dy[0, 4, 0]])


def test_the_first_of_many_values_is_named(cuda):
    """Many blocks look for it; a message has the first place, whichever block is ready first."""
    labels = np.zeros((70_001,), np.int64)
    labels[[20_000, 16_384, 69_999]] = (9, 8, 7)
    logits = cuda.to_device(np.zeros((labels.size, 2), np.float32))
    cuda.softmax_cross_entropy_forward(logits, cuda.to_device(labels))
    with pytest.raises(ValueError, match=r"labels is 8 at \(16384,\), outside \[0, 2\)"):
        cuda.synchronize()


def test_a_replay_reports_the_values_of_its_time(cuda):
    """With the shape of its own arrays, whatever was checked since it was recorded."""
    tokens, weight = cuda.to_device(np.zeros((2, 3), np.int64)), cuda.to_device(np.zeros((4, 5), np.float32))
    with cuda.Graph() as graph:
        cuda.embedding_forward(tokens, weight)
    for n in range(1, 200):
        cuda.embedding_forward(cuda.to_device(np.zeros(n, np.int64)), cuda.zeros((n, 1)))
    graph.replay()
    cuda.synchronize()
    for bad in (4, -1):
        tokens[...] = np.array([[0, 1, 2], [3, 3, bad]])
        graph.replay()
        with pytest.raises(ValueError, match=rf"embedding: tokens is {bad} at \(1, 2\), outside \[0, 4\)"):
            cuda.synchronize()


def test_the_first_of_several_ops_is_reported_once(cuda):
    weight = cuda.to_device(np.zeros((3, 2), np.float32))
    targets = cuda.to_device(np.array([0.5, 2], np.float32))
    cuda.embedding_forward(cuda.to_device(np.array([0, 1, 2])), weight)
    cuda.embedding_forward(cuda.to_device(np.array([0, 4])), weight)
    cuda.binary_cross_entropy_forward(targets, targets)
    cuda.embedding_forward(cuda.to_device(np.array([-9])), weight)
    with pytest.raises(ValueError, match=r"tokens is 4 at \(1,\)"):
        cuda.synchronize()
    cuda.synchronize()
    cuda.binary_cross_entropy_forward(targets, targets)
    with pytest.raises(ValueError, match="targets is 2"):
        cuda.synchronize()
