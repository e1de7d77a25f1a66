"""Networks on a GPU, or on the host build of its kernels: as on the CPU, and from one to the other."""

from pathlib import Path

import numpy as np
import pytest
from checking import required
from test_layers import CASES

from lec7 import cuda, losses, optimizers
from lec7 import layers as L
from lec7.cli import main
from lec7.models import CharLM
from lec7.training import Trainer

pytestmark = pytest.mark.cuda
if not cuda.is_available():
    reason = "there is no GPU, and LEC7_CUDA_HOST names no host build"
    if not required() & {"cuda", "cuda_host"}:
        pytest.skip(reason, allow_module_level=True)
    raise RuntimeError(reason)

RULES = {
    "sgd": lambda: optimizers.SGD(momentum=0.9, nesterov=True),
    "rmsprop": optimizers.RMSProp,
    "adamw": optimizers.AdamW,
}


def close(got, expected, name=""):
    scale = max(np.abs(expected).max(initial=0), 1)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=2e-6 * scale, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_layer_agrees_with_the_cpu(case):
    build, shape = CASES[case]
    rng = np.random.default_rng(2)
    x = rng.standard_normal(shape, np.float32)
    host, device = build(np.random.default_rng(1)), build(np.random.default_rng(1)).to("cuda")
    y, cache = host.forward(x, training=True)
    dy = rng.standard_normal(y.shape, np.float32)
    dx = host.backward(dy, cache)
    for _ in range(2):  # gradients are added
        y_device, cache = device.forward(cuda.to_device(x), training=True)
        if "dropout" not in case:
            close(y_device, y, "y")
        dx_device = device.backward(cuda.to_device(dy), cache)
    if "dropout" not in case:
        close(dx_device, dx, "dx")
    assert device.grads.keys() == host.grads.keys()
    for name, grad in host.grads.items():
        close(device.grads[name], 2 * grad, name)


def image_network(rng):
    return L.Sequential(
        L.Conv2d(2, 8, 3, rng=rng, padding="same", activation="relu"),
        L.LocalResponseNorm(3),
        L.MaxPool2d(2),
        # no bias before a batch norm: its gradient is rounding alone, which adaptive rules blow up
        L.Residual(L.Conv2d(8, 8, 3, rng=rng, padding="same", bias=False)),
        L.BatchNorm(8),
        L.Flatten(),
        L.Dropout(0.2, rng=rng),
        L.Linear(8 * 3 * 3, 5, rng=rng),
    )


def trainer_on(device, rule, model=image_network):
    rng = np.random.default_rng(5)
    network = model(rng).to(device)
    return Trainer(network, RULES[rule](), losses.softmax_cross_entropy, rng=rng, schedule=3e-3, clip=2.0)


def images(seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((6, 7, 7, 2), np.float32), rng.integers(0, 5, 6)


@pytest.mark.parametrize("rule", RULES)
def test_training_agrees_with_the_cpu(rule):
    host, device = trainer_on("cpu", rule), trainer_on("cuda", rule)
    for step in range(4):
        expected, got = host.step(*images(step)), device.step(*images(step))
        assert got.loss == pytest.approx(expected.loss, rel=1e-5)
        assert got.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    tensors, meta = device.state()
    expected_tensors, expected_meta = host.state()
    assert meta == expected_meta
    assert tensors.keys() == expected_tensors.keys()
    for name, expected in expected_tensors.items():
        assert isinstance(tensors[name], np.ndarray)
        np.testing.assert_allclose(tensors[name], expected, rtol=0, atol=1e-5, err_msg=name)


def test_training_repeats_bit_for_bit():
    first, second = trainer_on("cuda", "adamw"), trainer_on("cuda", "adamw")
    for step in range(2):
        assert first.step(*images(step)) == second.step(*images(step))
    assert first.state()[0]["parameters"].tobytes() == second.state()[0]["parameters"].tobytes()


@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_a_state_moves_between_devices(first, then):
    def language_model(rng):
        return CharLM(7, rng=rng, hidden=8, embedding=4, dropout=0.2)

    def chunk(seed):
        tokens = np.random.default_rng(seed).integers(0, 7, (6, 3))
        return tokens[:-1], tokens[1:]

    whole, start = trainer_on(then, "rmsprop", language_model), trainer_on(first, "rmsprop", language_model)
    for step in range(2):
        whole.step(*chunk(step))
        start.step(*chunk(step))
    resumed = trainer_on(then, "rmsprop", language_model)
    resumed.restore(*start.state())
    result, expected = resumed.step(*chunk(2)), whole.step(*chunk(2))
    if first == then:
        assert result == expected
        assert resumed.state()[0]["parameters"].tobytes() == whole.state()[0]["parameters"].tobytes()
    else:
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)


def test_a_refused_step_leaves_everything():
    trainer = trainer_on("cuda", "sgd")
    trainer.step(*images(0))
    before = {name: array.copy() for name, array in trainer.state()[0].items()}
    x, labels = images(1)
    x[3, 2, 2, 1] = np.nan
    with pytest.raises(FloatingPointError, match="step 2"):
        trainer.step(x, labels)
    for name, array in trainer.state()[0].items():
        if name != "buffer.6.philox":  # the draws of the refused step are not drawn again
            np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_shared_parameters_stay_shared():
    rng = np.random.default_rng(0)
    network = L.Sequential(L.Linear(4, 4, rng=rng), L.Linear(4, 4, rng=rng))
    network.children["1"].share_parameter("weight", network.children["0"])
    network.to("cuda")
    assert network.params["0.weight"] is network.params["1.weight"]
    assert network.to("cpu").params["0.weight"] is network.params["1.weight"]
    assert isinstance(network.params["0.weight"], np.ndarray)


def test_moving_is_refused_once_the_parameters_lie_in_one_buffer():
    trainer = trainer_on("cuda", "sgd")
    with pytest.raises(RuntimeError, match="one buffer"):
        trainer.model.to("cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:99", "CUDA"])
def test_devices_that_are_not_there_are_refused(device):
    with pytest.raises(ValueError, match=device):
        L.Relu().to(device)


def test_train_and_sample_on_a_device(tmp_path: Path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 30, encoding="utf-8")
    sizes = {"hidden": 12, "embedding": 6, "layers": 1, "steps": 10, "batch": 4, "epochs": 1}
    small = ["--quiet", *(word for name, n in sizes.items() for word in (f"--{name}", str(n)))]
    runs = {}
    for device in ("cpu", "cuda"):
        runs[device] = tmp_path / device
        command = ["train", "chars", "--text", str(text), "--run", str(runs[device]), "--device", device]
        assert main([*command, *small]) == 0
    capsys.readouterr()
    written = {}
    for device in ("cpu", "cuda"):  # the checkpoint of the other one
        run = runs["cuda" if device == "cpu" else "cpu"]
        assert main(["sample", str(run), "--length", "20", "--temperature", "0", "--device", device]) == 0
        written[device] = capsys.readouterr().out
    assert written["cpu"] == written["cuda"]
    assert main(["sample", str(runs["cpu"]), "--device", "cuda:99"]) == 1
    assert "cuda:99" in capsys.readouterr().err
