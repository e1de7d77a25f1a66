"""Networks on a GPU, or on the host build of its kernels: as on the CPU, and from one to the other."""

import re
from pathlib import Path

import numpy as np
import pytest
from checking import required
from test_layers import CASES

from lec7 import checkpoint, cuda, losses, ops, optimizers
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


def language_model(rng):
    return CharLM(7, rng=rng, hidden=8, embedding=4, dropout=0.2)


def chunk(seed):
    tokens = np.random.default_rng(seed).integers(0, 7, (6, 3))
    return tokens[:-1], tokens[1:]


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


def test_a_step_waits_when_all_of_it_is_launched(monkeypatch):
    trainer, done = trainer_on("cuda", "adamw"), []

    def noting(name, function):
        return lambda *args, **options: (done.append(name), function(*args, **options))[1]

    monkeypatch.setattr(trainer.model, "backward", noting("backward", trainer.model.backward))
    monkeypatch.setattr(ops, "global_norm", noting("norm", ops.global_norm))
    monkeypatch.setattr(ops, "adam_update_", noting("update", ops.adam_update_))
    for name in ("numpy", "item", "__float__"):
        monkeypatch.setattr(cuda.Array, name, noting("wait", getattr(cuda.Array, name)))
    trainer.step(*images(0))
    assert done == ["backward", "norm", "wait", "wait", "update"]  # the second finds the loss done


def test_training_repeats_bit_for_bit():
    first, second = trainer_on("cuda", "adamw"), trainer_on("cuda", "adamw")
    for step in range(2):
        assert first.step(*images(step)) == second.step(*images(step))
    assert first.state()[0]["parameters"].tobytes() == second.state()[0]["parameters"].tobytes()


@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_a_state_moves_between_devices(first, then):
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


def test_a_training_step_is_recorded_and_replayed():
    def ready():
        rng = np.random.default_rng(3)
        network = L.Sequential(
            L.Conv2d(2, 8, 3, rng=rng, padding="same", activation="relu"),
            L.MaxPool2d(2),
            L.BatchNorm(8),
            L.Flatten(),
            L.Linear(8 * 3 * 3, 5, rng=rng),
        )
        parameters = L.Parameters(network.to("cuda"))
        return network, parameters, *map(cuda.to_device, images(0))

    def step(network, parameters, x, labels):
        logits, cache = network.forward(x, training=True)
        loss, saved = ops.softmax_cross_entropy_forward(logits, labels)
        network.backward(ops.softmax_cross_entropy_backward(1.0, logits, labels, saved), cache)
        ops.sgd_update_(parameters.values, parameters.grads, lr=0.1)
        parameters.zero_grads()
        return loss

    expected, recorded, graph = ready(), ready(), cuda.Graph()
    with graph:
        loss = step(*recorded)
    before = recorded[1].values.numpy()
    assert before.tobytes() == expected[1].values.numpy().tobytes()  # recording runs nothing
    for seed in range(3):
        x, labels = images(seed)
        for network in (expected, recorded):
            network[2][...], network[3][...] = x, labels
        graph.replay()
        assert float(step(*expected)) == float(loss)
        assert recorded[1].values.numpy().tobytes() == expected[1].values.numpy().tobytes()
    assert recorded[1].values.numpy().tobytes() != before.tobytes()


# --- training steps in a graph ------------------------------------------------------------------------------

REPLAYED = {**RULES, "adam": optimizers.Adam, "momentum-less": optimizers.SGD}


def scheduled(rule, model, device="cuda"):
    """A trainer whose steps have everything that changes from one to the next."""
    rng = np.random.default_rng(5)
    return Trainer(
        model(rng).to(device),
        REPLAYED[rule](),
        losses.softmax_cross_entropy,
        rng=rng,
        schedule=optimizers.cosine(1e-2, 12, warmup=3),
        clip=0.5,  # the gradients' norms are larger
    )


class Replayed:
    """Steps of a trainer that replay one recorded step."""

    def __init__(self, trainer, batch):
        self.inputs = [cuda.to_device(a) for a in batch]
        self.graph = cuda.Graph()
        with self.graph:
            self.result = trainer.step(*self.inputs)

    def step(self, *batch):
        for array, value in zip(self.inputs, batch, strict=True):
            array[...] = value
        self.graph.replay()
        return type(self.result)(*(float(getattr(self.result, f)) for f in ("loss", "grad_norm", "lr")))


def same_state(a, b):
    (tensors, meta), (expected, expected_meta) = a.state(), b.state()
    assert meta == expected_meta
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert tensors[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("rule", REPLAYED)
def test_replayed_steps_are_the_ordinary_ones(rule, tmp_path):
    plain, trainer = scheduled(rule, image_network), scheduled(rule, image_network)
    assert plain.step(*images(0)) == trainer.step(*images(0))
    before = trainer.state()
    recorded = Replayed(trainer, images(0))
    assert trainer.state()[1] == before[1]  # recording does nothing
    for name, array in before[0].items():
        np.testing.assert_array_equal(trainer.state()[0][name], array)

    for seed in range(1, 4):
        expected = plain.step(*images(seed))
        assert expected.grad_norm > plain.clip
        assert recorded.step(*images(seed)) == expected
    same_state(trainer, plain)
    for seed in range(4, 6):  # ordinary steps go on, and replays go on after them
        assert trainer.step(*images(seed)) == plain.step(*images(seed))
    assert recorded.step(*images(6)) == plain.step(*images(6))
    same_state(trainer, plain)

    checkpoint.save(tmp_path / "a", *trainer.state())
    for device in ("cpu", "cuda"):
        resumed = scheduled(rule, image_network, device)
        resumed.restore(*checkpoint.load(tmp_path / "a"))
        assert (resumed.step_count, resumed.optimizer.steps) == (7, 7)
        assert resumed.model.buffers["6.philox"][1] == 7
        same_state(resumed, trainer)
        result = resumed.step(*images(7))
        if device == "cuda":
            assert result == recorded.step(*images(7))
            same_state(resumed, trainer)


def test_replays_follow_a_state_that_was_restored_or_put_back():
    plain, trainer = scheduled("adam", image_network), scheduled("adam", image_network)
    for seed in range(2):
        plain.step(*images(seed))
        trainer.step(*images(seed))
    tensors, meta = plain.state()
    saved = {name: array.copy() for name, array in tensors.items()}, meta
    recorded = Replayed(trainer, images(0))
    for seed in (2, 3):
        recorded.step(*images(seed))
    for one in (plain, trainer):  # another run's masks go on from there
        saved[0]["buffer.6.philox"] = np.array([2**63 + 5, 17], np.uint64)
        one.restore(*saved)
    for seed in (4, 5):
        assert recorded.step(*images(seed)) == plain.step(*images(seed))
    x, labels = images(6)
    x[0] = np.nan
    for one in (plain, trainer):  # a refused step puts the running averages back
        with pytest.raises(FloatingPointError):
            one.step(x, labels)
    assert recorded.step(*images(7)) == plain.step(*images(7))
    same_state(trainer, plain)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_replays_carry_a_state(cell):
    def model(rng):
        return CharLM(7, rng=rng, cell=cell, hidden=8, embedding=4, dropout=0.2)

    plain, trainer = scheduled("rmsprop", model), scheduled("rmsprop", model)
    plain.step(*chunk(0))
    trainer.step(*chunk(0))
    recorded = Replayed(trainer, chunk(0))
    for seed in range(1, 4):
        assert recorded.step(*chunk(seed)) == plain.step(*chunk(seed))
    for one in (plain, trainer):
        one.model.reset()  # as fit does where an epoch begins
    assert recorded.step(*chunk(4)) == plain.step(*chunk(4))
    assert trainer.step(*chunk(5)) == plain.step(*chunk(5))
    assert recorded.step(*chunk(6)) == plain.step(*chunk(6))
    same_state(trainer, plain)


@pytest.mark.parametrize("mode", ["one_to_one", "many_to_one"])
def test_replays_that_carry_leave_results_alone(mode):
    reader = L.Recurrent(L.LSTM(3, 4, rng=np.random.default_rng(0)), mode=mode, carry=True).to("cuda")
    x = np.random.default_rng(1).standard_normal((5, 2, 3), np.float32)
    x = cuda.to_device(x[0] if mode == "one_to_one" else x)
    first, _ = reader.forward(x)
    before = first.numpy()
    with cuda.Graph() as graph:
        y, _ = reader.forward(x)
    graph.replay()
    np.testing.assert_array_equal(first.numpy(), before)
    second = y.numpy()
    assert np.abs(second - before).max() > 1e-3
    third, _ = reader.forward(x)
    kept = third.numpy()
    graph.replay()
    np.testing.assert_array_equal(third.numpy(), kept)
    assert np.abs(y.numpy() - kept).max() > 1e-3
    np.testing.assert_array_equal(reader.buffers["h"].numpy(), y.numpy())


def test_a_schedule_that_raises_changes_no_count():
    trainer = scheduled("adam", image_network)
    trainer.step(*images(0))
    recorded = Replayed(trainer, images(0))
    recorded.step(*images(1))
    before, schedule = trainer.state()[1], trainer.schedule
    trainer.schedule = lambda step: 1 / 0
    with pytest.raises(ZeroDivisionError):
        recorded.step(*images(2))
    assert trainer.state()[1] == before
    np.testing.assert_array_equal(before["step_count"], 2)
    trainer.schedule = schedule
    assert recorded.step(*images(2)).lr == schedule(2)


def test_a_recorded_loss_is_refused_until_it_is_replayed():
    trainer, batch = scheduled("sgd", image_network), [cuda.to_device(a) for a in images(0)]
    trainer.step(*batch)
    with cuda.Graph() as graph:
        result = trainer.step(*batch)
    for number in (result.loss, result.grad_norm, result.lr):
        with pytest.raises(RuntimeError, match="not replayed yet"):
            float(number)
    graph.replay()
    assert np.isfinite([float(result.loss), float(result.grad_norm), float(result.lr)]).all()


def test_a_step_of_ones_own_is_replayed():
    schedule = optimizers.staircase(1e-2, 2)

    def ready():
        rng = np.random.default_rng(3)
        network = L.Sequential(
            L.Flatten(), L.Linear(98, 8, rng=rng), L.Dropout(rng=rng), L.Linear(8, 5, rng=rng)
        )
        parameters, adam = L.Parameters(network.to("cuda")), optimizers.AdamW()

        def step(x, labels):
            logits, cache = network.forward(x, training=True)
            loss, dlogits = losses.softmax_cross_entropy(logits, labels)
            network.backward(dlogits, cache, needs_dx=False)
            scale = optimizers.clip_scale(ops.global_norm(parameters.grads), 0.1)
            adam.update(parameters.values, parameters.grads, lr=schedule, grad_scale=scale)
            parameters.zero_grads()
            return loss

        return parameters.values, step

    (values, step), (expected, plain) = ready(), ready()
    x, labels = map(cuda.to_device, images(0))
    assert float(step(x, labels)) == float(plain(x, labels))
    with cuda.Graph() as graph:
        loss = step(x, labels)
    for seed in range(1, 5):
        x[...], labels[...] = images(seed)
        graph.replay()
        assert float(loss) == float(plain(x, labels))
        assert values.numpy().tobytes() == expected.numpy().tobytes()


def test_what_a_graph_cannot_record_is_refused():
    trainer = scheduled("adam", image_network)
    batch = [cuda.to_device(a) for a in images(0)]
    state = trainer.state()

    def refused(message, call):
        with pytest.raises(RuntimeError, match=message), cuda.Graph():
            call()

    refused("Adam.update: make one before a graph records", lambda: trainer.step(*batch))
    refused("copies from the host", lambda: trainer.step(*images(0)))
    trainer.optimizer.state = {}
    trainer.step(*images(0))
    update = [trainer.parameters.values, trainer.parameters.grads]
    refused("lr is a schedule or an array", lambda: trainer.optimizer.update(*update, lr=0.1))
    reader = language_model(np.random.default_rng(0)).to("cuda")
    tokens = cuda.to_device(chunk(0)[0])
    refused("Recurrent: take a step before", lambda: reader.forward(tokens, training=True))
    trainer.loss = lambda y, labels: (float(losses.softmax_cross_entropy(y, labels)[0]), y)
    refused("while a graph records; read results", lambda: trainer.step(*batch))
    assert trainer.step_count == trainer.optimizer.steps == state[1]["step_count"] + 1
    cuda.synchronize()


def test_the_example_of_the_documentation(capsys):
    text = (Path(__file__).parents[1] / "docs" / "cuda.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "docs/cuda.md", "exec"), {})
    assert re.fullmatch(r"33 \d\.\d+\n", capsys.readouterr().out)
