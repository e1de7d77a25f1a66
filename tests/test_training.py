"""The training loop, and that it goes on from anywhere bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lec7 import checkpoint, losses, ops, optimizers
from lec7.layers import LSTM, BatchNorm, Dropout, Embedding, Linear, Parameters, Recurrent, Sequential
from lec7.models import CharLM
from lec7.models.char_lm import text_batches
from lec7.text import Vocabulary, default_text, read_text
from lec7.training import Trainer, load_parameters, minibatches

RNG = np.random.default_rng(3)
X = RNG.standard_normal((90, 6)).astype(np.float32)
LABELS = (X[:, 0] * X[:, 1] > 0).astype(np.int32) + (X[:, 2] > 0.5)


def classifier(seed: int = 0, optimizer: optimizers.Optimizer | None = None, **options) -> Trainer:
    rng = np.random.default_rng(seed)
    model = Sequential(
        Linear(6, 32, rng=rng, activation="relu"), Dropout(0.1, rng=rng), Linear(32, 3, rng=rng)
    )
    optimizer = optimizer or optimizers.Adam()
    options = {"schedule": optimizers.cosine(1e-2, 12 * 60), **options}
    return Trainer(model, optimizer, losses.softmax_cross_entropy, rng=rng, **options)


def batches(rng: np.random.Generator):
    return minibatches(X, LABELS, 8, rng)


def tokens_batches():
    tokens = np.random.default_rng(0).integers(0, 7, 500)
    return text_batches(tokens.astype(np.int32), steps=5, batch=4)[0]


def language_model() -> Trainer:
    rng = np.random.default_rng(0)
    model = CharLM(7, rng=rng, hidden=8, embedding=4, layers=2, dropout=0.2)
    return Trainer(
        model, optimizers.RMSProp(), losses.softmax_cross_entropy, rng=rng, schedule=1e-2, clip=0.1
    )


def test_training_learns() -> None:
    trainer = classifier()
    seen: list[float] = []
    trainer.fit(batches, epochs=60, on_step=[lambda t, r: seen.append(r.loss)])
    assert trainer.step_count == len(seen) == 60 * 12
    assert np.mean(seen[:12]) > 0.7
    assert np.mean(seen[-12:]) < 0.3
    logits, _ = trainer.model.forward(X)
    assert (logits.argmax(axis=1) == LABELS).mean() > 0.95


def test_a_step_is_the_formula() -> None:
    trainer = classifier(optimizer=optimizers.SGD(), schedule=0.5, clip=0.01)
    before = trainer.parameters.values.copy()
    with trainer.model.keeping_buffers():
        y, cache = trainer.model.forward(X, training=True)
    loss, dy = losses.softmax_cross_entropy(y, LABELS)
    trainer.model.backward(dy, cache)
    grads = trainer.parameters.grads.copy()
    trainer.parameters.zero_grads()
    norm = np.sqrt(np.sum(grads.astype(np.float64) ** 2))

    result = trainer.step(X, LABELS)
    assert norm > 0.01
    assert (result.loss, result.lr) == (loss, 0.5)
    assert result.grad_norm == pytest.approx(norm, rel=1e-6)
    expected = before - 0.5 * (0.01 / norm) * grads
    np.testing.assert_allclose(trainer.parameters.values, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(trainer.parameters.grads, grads)  # of this step alone


def test_frozen_parameters_stay() -> None:
    trainer = classifier(frozen=["0."])
    before = {name: value.copy() for name, value in trainer.model.params.items()}
    trainer.fit(batches, epochs=1)
    for name, value in trainer.model.params.items():
        assert (value == before[name]).all() == name.startswith("0."), name


RULES = [
    optimizers.SGD,
    lambda: optimizers.SGD(momentum=0.9, nesterov=True),
    optimizers.RMSProp,
    optimizers.AdamW,
]


@pytest.mark.parametrize("stop", [1, 11, 12, 13, 40])
@pytest.mark.parametrize("rule", RULES)
def test_resume_is_bit_for_bit(tmp_path: Path, rule, stop: int) -> None:
    """Stopped at an epoch's begin, middle and end, saved, built anew and restored: as if never stopped."""
    whole = classifier(optimizer=rule())
    losses_of_whole: list[float] = []
    whole.fit(batches, epochs=5, on_step=[lambda t, r: losses_of_whole.append(r.loss)])

    first = classifier(optimizer=rule())
    losses_of_parts: list[float] = []

    def halt(trainer: Trainer, result) -> None:
        losses_of_parts.append(result.loss)
        trainer.stopping = trainer.step_count == stop

    first.fit(batches, epochs=5, on_step=[halt])
    assert first.step_count == stop
    tensors, state = first.state()
    checkpoint.save(tmp_path / "c", tensors, {"trainer": state})

    second = classifier(seed=99, optimizer=rule())  # another start, which restore must undo
    tensors, metadata = checkpoint.load(tmp_path / "c")
    second.restore(tensors, metadata["trainer"])
    second.fit(batches, epochs=5, on_step=[lambda t, r: losses_of_parts.append(r.loss)])
    assert losses_of_parts == losses_of_whole
    np.testing.assert_array_equal(second.parameters.values, whole.parameters.values)
    assert (second.step_count, second.epoch, second.batch) == (60, 5, 0)


@pytest.mark.parametrize("stop", [10, 24, 31])
def test_resume_keeps_recurrent_state_and_dropout(tmp_path: Path, stop: int) -> None:
    whole, first, second = language_model(), language_model(), language_model()
    whole.fit(tokens_batches(), epochs=3)

    def halt(trainer: Trainer, result) -> None:
        trainer.stopping = trainer.step_count == stop

    first.fit(tokens_batches(), epochs=3, on_step=[halt])
    tensors, state = first.state()
    assert {name for name in tensors if name.endswith((".h", ".c", ".philox"))} == {
        *("buffer.1.h", "buffer.1.c", "buffer.2.philox", "buffer.3.h", "buffer.3.c", "buffer.4.philox")
    }
    checkpoint.save(tmp_path / "c", tensors, {"trainer": state})
    tensors, metadata = checkpoint.load(tmp_path / "c")
    second.restore(tensors, metadata["trainer"])
    second.fit(tokens_batches(), epochs=3)
    np.testing.assert_array_equal(second.parameters.values, whole.parameters.values)


def test_resume_keeps_running_averages(tmp_path: Path) -> None:
    def trainer(seed: int) -> Trainer:
        rng = np.random.default_rng(seed)
        model = Sequential(Linear(6, 9, rng=rng), BatchNorm(9), Linear(9, 3, rng=rng))
        rule = optimizers.SGD(momentum=0.5)
        return Trainer(model, rule, losses.softmax_cross_entropy, rng=rng, schedule=0.1)

    whole, first, second = trainer(0), trainer(0), trainer(1)
    whole.fit(batches, epochs=3)
    first.fit(batches, epochs=1)
    tensors, state = first.state()
    checkpoint.save(tmp_path / "c", tensors, {"trainer": state})
    tensors, metadata = checkpoint.load(tmp_path / "c")
    kept = {name: array.copy() for name, array in tensors.items()}
    second.restore(tensors, metadata["trainer"])
    second.fit(batches, epochs=3)
    for name, array in kept.items():  # they are the caller's
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)
    for name in ("1.running_mean", "1.running_var"):
        assert (whole.model.buffers[name] != first.model.buffers[name]).all()
        np.testing.assert_array_equal(second.model.buffers[name], whole.model.buffers[name])
    np.testing.assert_array_equal(second.model.forward(X)[0], whole.model.forward(X)[0])


def test_restore_refuses_another_network() -> None:
    tensors, state = classifier().state()
    with pytest.raises(ValueError, match="the state is of Adam, the optimizer is SGD"):
        classifier(optimizer=optimizers.SGD()).restore(tensors, state)
    rng = np.random.default_rng(0)
    wider = Parameters(Sequential(Linear(6, 48, rng=rng), Dropout(rng=rng), Linear(48, 3, rng=rng)))
    with pytest.raises(ValueError, match=r"the network has shape \(.*the checkpoint shape \("):
        load_parameters(wider, tensors, state)
    other = Parameters(Sequential(Linear(6, 32, rng=rng)))
    with pytest.raises(ValueError, match=r"parameter 2\.\w+: the network has none"):
        load_parameters(other, tensors, state)


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    trainer = classifier()
    trainer.step(X, LABELS)
    before = trainer.parameters.values.copy()
    with pytest.raises(FloatingPointError, match="step 2: loss nan"):
        trainer.step(np.full_like(X, np.nan), LABELS)
    np.testing.assert_array_equal(trainer.parameters.values, before)
    assert trainer.step_count == 1


def normalized(**options) -> Trainer:
    rng = np.random.default_rng(0)
    model = Sequential(Linear(6, 8, rng=rng), BatchNorm(8), Dropout(0.1, rng=rng), Linear(8, 3, rng=rng))
    return Trainer(model, optimizers.SGD(), losses.softmax_cross_entropy, rng=rng, schedule=0.1, **options)


def test_a_refused_step_leaves_the_buffers() -> None:
    refused, untroubled = normalized(), normalized()
    for trainer in (refused, untroubled):
        trainer.step(X, LABELS)
    before = {name: a.copy() for name, a in refused.model.buffers.items()}
    assert before["1.running_mean"].any()
    with pytest.raises(FloatingPointError):
        refused.step(np.full_like(X, np.nan), LABELS)
    for name, kept in before.items():
        np.testing.assert_array_equal(refused.model.buffers[name], kept)
    for trainer in (refused, untroubled):
        trainer.step(X, LABELS)
    np.testing.assert_array_equal(refused.parameters.values, untroubled.parameters.values)


def test_a_refused_step_leaves_the_carried_state() -> None:
    trainer = language_model()
    x, targets = next(iter(tokens_batches()(np.random.default_rng(0))))
    trainer.step(x, targets)
    before = {name: a.copy() for name, a in trainer.model.buffers.items()}
    trainer.model.params["0.weight"][x[0, 0]] = np.nan
    with pytest.raises(FloatingPointError):
        trainer.step(x, targets)
    assert set(before) >= {"1.h", "1.c"}
    for name, kept in before.items():
        np.testing.assert_array_equal(trainer.model.buffers[name], kept)


def test_load_parameters_loads_running_averages(tmp_path: Path) -> None:
    trainer = normalized()
    trainer.fit(batches, epochs=1)
    tensors, state = trainer.state()
    checkpoint.save(tmp_path / "c", tensors, {"trainer": state})
    tensors, metadata = checkpoint.load(tmp_path / "c")
    model = normalized().model
    load_parameters(Parameters(model), tensors, metadata["trainer"])
    y, _ = model.forward(X)
    np.testing.assert_array_equal(y, trainer.model.forward(X)[0])


def test_load_parameters_carries_nothing_over() -> None:
    trainer = language_model()
    trainer.step(*next(iter(tokens_batches()(np.random.default_rng(0)))))
    model = language_model().model
    load_parameters(Parameters(model), *trainer.state())
    assert set(trainer.model.buffers) - set(model.buffers) == {"1.h", "1.c", "3.h", "3.c"}
    model.forward(np.zeros((2, 1), np.int32))  # another batch size than the trainer's


def test_a_missing_or_misshapen_buffer_is_refused() -> None:
    trainer = normalized()
    tensors, state = trainer.state()
    tensors = {name: a.copy() for name, a in tensors.items()}
    missing = {name: a for name, a in tensors.items() if name != "buffer.1.running_var"}
    misshapen = {**tensors, "buffer.1.running_var": np.ones(7, np.float32)}
    trainer.step(X, LABELS)
    now = {"parameters": trainer.parameters.values, **trainer.model.buffers}
    before = {name: a.copy() for name, a in now.items()}
    for wrong, its in (missing, "none"), (misshapen, r"float32 \(7,\)"):
        with pytest.raises(ValueError, match=rf"buffer 1\.running_var: .*float32 \(8,\), .* {its}"):
            trainer.restore(wrong, state)
    for name, a in {"parameters": trainer.parameters.values, **trainer.model.buffers}.items():
        np.testing.assert_array_equal(a, before[name])


def test_a_frozen_batch_norm_keeps_its_running_averages() -> None:
    trainer = normalized(frozen=["0.", "1."])
    norm = trainer.model.children["1"]
    assert [layer.frozen for layer in trainer.model.children.values()] == [True, True, False, False]
    norm.buffers["running_mean"][...] = 0.25
    x = RNG.standard_normal((5, 8)).astype(np.float32)
    np.testing.assert_array_equal(norm.forward(x, training=True)[0], norm.forward(x)[0])
    values = trainer.parameters.values.copy()
    trainer.step(X, LABELS)
    assert (norm.buffers["running_mean"] == 0.25).all()
    assert (norm.buffers["running_var"] == 1).all()
    assert (trainer.parameters.values != values).any()

    Parameters(trainer.model)  # nothing is frozen any more
    assert not norm.frozen
    norm.forward(x, training=True)
    assert (norm.buffers["running_mean"] != 0.25).all()


def test_a_batch_norm_with_gamma_alone_frozen_is_not_frozen() -> None:
    assert not normalized(frozen=["1.gamma"]).model.children["1"].frozen


def test_minibatches_take_each_row_once() -> None:
    parts = list(minibatches(np.arange(10), np.arange(10) * 2, 4, np.random.default_rng(0)))
    assert [len(x) for x, _ in parts] == [4, 4, 2]
    x = np.concatenate([x for x, _ in parts])
    assert sorted(x) == list(range(10))
    assert list(x) != list(range(10))
    np.testing.assert_array_equal(np.concatenate([t for _, t in parts]), x * 2)


def test_text_batches_go_on_where_they_ended() -> None:
    text = np.arange(103, dtype=np.int32)
    make, chunks = text_batches(text, steps=5, batch=4)
    assert chunks == 25 // 5
    starts = set()
    for seed in range(5):
        parts = list(make(np.random.default_rng(seed)))
        assert len(parts) == chunks
        starts.add(int(parts[0][0][0, 0]))
        x = np.concatenate([x for x, _ in parts])
        assert x.shape == (25, 4)
        assert x.dtype == np.int32
        for x, targets in parts:
            np.testing.assert_array_equal(targets, (x + 1) % 103)
            assert x.flags.c_contiguous
        x = np.concatenate([x for x, _ in parts])
        np.testing.assert_array_equal((x[1:] - x[:-1]) % 103, 1)
        assert len(np.unique(x)) == 100
    assert len(starts) > 1
    with pytest.raises(ValueError, match=r"103 characters; 4 streams of 26 steps need at least 105"):
        text_batches(text, steps=26, batch=4)


def test_char_lm_reads_chunks_as_one_text() -> None:
    rng = np.random.default_rng(0)
    model = CharLM(7, rng=rng, hidden=8, embedding=4, layers=2, dropout=0.5)
    tokens = rng.integers(0, 7, 200)
    whole, _ = Sequential(model.embedding, *map(Recurrent, model.cells), model.output).forward(
        tokens[:, None]
    )
    logits = whole[:-1, 0].astype(np.float64)
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(199), tokens[1:]])
    model.forward(tokens[:50, None])
    kept = {name: value.copy() for name, value in model.buffers.items()}
    for chunk in (1000, 199, 60, 7):
        assert model.evaluate(tokens, chunk=chunk) == pytest.approx(expected, rel=1e-5)
    for name, value in model.buffers.items():
        np.testing.assert_array_equal(value, kept[name])


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_generate_draws_from_the_softmax(cell: str) -> None:
    """With a constant recurrence the frequencies of the drawn tokens are the softmax of the bias."""
    model = CharLM(4, rng=np.random.default_rng(0), cell=cell, hidden=5, embedding=3, layers=2)
    model.output.params["weight"][...] = 0
    model.output.params["bias"][...] = np.log([0.1, 0.2, 0.3, 0.4])
    for temperature, expected in ((1.0, [0.1, 0.2, 0.3, 0.4]), (0.5, np.array([1, 4, 9, 16]) / 30)):
        rng = np.random.default_rng(1)
        drawn = list(model.generate(np.array([0]), length=4000, temperature=temperature, rng=rng))
        assert np.bincount(drawn, minlength=4) / 4000 == pytest.approx(expected, abs=0.03)
    rng = np.random.default_rng(2)
    assert set(model.generate(np.array([0]), length=300, temperature=0, rng=rng)) == {3}


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_generate_follows_the_likeliest_path(cell: str) -> None:
    model = CharLM(9, rng=np.random.default_rng(0), cell=cell, hidden=16, embedding=8, layers=2)
    model.output.params["weight"][...] *= 5
    prime = np.array([1, 2, 3])
    greedy = list(model.generate(prime, length=30, temperature=0, rng=np.random.default_rng(0)))
    logits, _ = model.forward(np.concatenate([prime, greedy])[:, None])
    np.testing.assert_array_equal(logits[2:-1, 0].argmax(axis=1), greedy)
    assert len(set(greedy)) > 1
    with pytest.raises(ValueError, match="temperature is 0 or more"):
        next(model.generate(prime, length=1, temperature=-1, rng=np.random.default_rng(0)))
    with pytest.raises(ValueError, match="at least one token"):
        next(model.generate(prime[:0], length=1, temperature=1, rng=np.random.default_rng(0)))


def test_vocabulary() -> None:
    text = "naïve café — 😀\n"
    vocabulary = Vocabulary(text)
    assert list(vocabulary.symbols) == sorted(set(text))
    tokens = vocabulary.encode(text)
    assert tokens.dtype == np.int32
    assert vocabulary.decode(tokens) == text
    assert len(vocabulary.encode("")) == 0
    for unknown in ("x", "\U0010ffff"):
        with pytest.raises(ValueError, match=r"characters .* are not in the vocabulary"):
            vocabulary.encode("na" + unknown)
    with pytest.raises(ValueError, match="the text is empty"):
        Vocabulary("")


def test_read_text(tmp_path: Path) -> None:
    a, b, c, d = (tmp_path / name for name in "abcd")
    a.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    b.write_text("drei ß", encoding="utf-8")
    c.write_bytes(b"ok \xff")
    d.write_bytes(b"")
    assert read_text([a, b]) == "one\ntwo\ndrei ß"
    with pytest.raises(ValueError, match="c is not UTF-8 text: byte 3 is 0xff"):
        read_text([a, c])
    with pytest.raises(ValueError, match="d is empty"):
        read_text([d])


def test_default_text_is_english_prose() -> None:
    text = default_text()
    assert 100_000 < len(text) < 300_000
    words = text.lower().split()
    assert sum(word == "the" for word in words) > 0.04 * len(words)
    assert text.isascii() or sum(not c.isascii() for c in text) < 0.01 * len(text)


def test_losses_are_the_mean_and_its_gradient() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4, 3, 5))
    labels = rng.integers(0, 5, (4, 3))
    targets = rng.random(logits.shape)
    for loss, wanted in (
        (losses.softmax_cross_entropy, labels),
        (losses.binary_cross_entropy, targets),
        (losses.mean_squared_error, targets),
    ):
        value, gradient = loss(logits, wanted)
        assert isinstance(value, float)
        direction = rng.standard_normal(logits.shape)
        eps = 1e-6
        slope = (loss(logits + eps * direction, wanted)[0] - loss(logits - eps * direction, wanted)[0]) / (
            2 * eps
        )
        assert slope == pytest.approx(np.sum(gradient * direction), rel=1e-6)
    weight = np.array([1.0, 0, 2, 1, 1])
    value, gradient = losses.softmax_cross_entropy(
        logits, labels, class_weight=weight, ignore_index=2, label_smoothing=0.1
    )
    expected, _ = ops.softmax_cross_entropy_forward(
        logits, labels, class_weight=weight, ignore_index=2, label_smoothing=0.1
    )
    assert value == float(expected)
    assert not gradient[labels == 2].any()


def test_many_to_one_learns_from_the_first_token() -> None:
    """A whole network through Recurrent: the label is the first token of eight, the rest is noise."""
    rng = np.random.default_rng(0)
    model = Sequential(
        Embedding(4, 8, rng=rng), Recurrent(LSTM(8, 16, rng=rng), mode="many_to_one"), Linear(16, 4, rng=rng)
    )
    trainer = Trainer(model, optimizers.Adam(), losses.softmax_cross_entropy, rng=rng, schedule=1e-2)
    for _ in range(200):
        tokens = rng.integers(0, 4, (8, 32)).astype(np.int32)
        result = trainer.step(tokens, tokens[0])
    assert result.loss < 0.1


def test_an_update_takes_a_schedule():
    """Of the updates that the optimizer has made."""
    schedule = optimizers.staircase(0.5, 2)
    grads = np.linspace(-1, 1, 7, dtype=np.float32)
    params, expected = np.ones(7, np.float32), np.ones(7, np.float32)
    by_schedule, by_number = optimizers.Adam(), optimizers.Adam()
    for step in range(5):
        by_schedule.update(params, grads, lr=schedule)
        by_number.update(expected, grads, lr=schedule(step))
        np.testing.assert_array_equal(params, expected)
