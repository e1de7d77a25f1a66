from __future__ import annotations

import numpy as np
import pytest

from lec7 import layers as L
from lec7.models import CharLM
from lec7.summary import summary


def test_summary_of_a_convolutional_network() -> None:
    rng = np.random.default_rng(0)
    network = L.Sequential(
        L.Conv2d(1, 6, 5, rng=rng, padding=2, activation="relu"),
        L.MaxPool2d(2),
        L.Residual(L.Conv2d(6, 6, 3, rng=rng, padding="same")),
        L.Concat(L.Conv2d(6, 2, 1, rng=rng), L.Conv2d(6, 3, 1, rng=rng, bias=False)),
        L.GlobalAvgPool(),
        L.Linear(5, 10, rng=rng),
    )
    rows = {row.name: row for row in summary(network, (2, 28, 28, 1))}
    assert list(rows) == ["0", "1", "2.layer", "3.0", "3.1", "4", "5"]
    first = rows["0"]
    assert (first.kind, first.output_shape) == ("Conv2d", (2, 28, 28, 6))
    assert first.parameters == 5 * 5 * 6 + 6
    assert first.activations == 2 * 28 * 28 * 6
    assert first.bytes == 4 * (first.parameters + first.activations)
    assert first.flops == 2 * (2 * 28 * 28 * 6) * 25
    assert rows["2.layer"].flops == 2 * (2 * 14 * 14 * 6) * 9 * 6
    assert rows["5"].output_shape == (2, 10)
    assert rows["5"].flops == 2 * 2 * 5 * 10
    assert sum(row.parameters for row in rows.values()) == sum(p.size for p in network.params.values())
    assert "forward" not in vars(network.children["0"])


def test_summary_counts_transposed_and_locally_connected_filters() -> None:
    rng = np.random.default_rng(0)
    network = L.Sequential(
        L.ConvTranspose2d(6, 4, 4, rng=rng, stride=2, padding=1, groups=2),
        L.LocallyConnected2d(4, 3, 2, input_size=(10, 14), rng=rng, stride=2),
    )
    up, local = summary(network, (2, 5, 7, 6))
    assert (up.output_shape, local.output_shape) == ((2, 10, 14, 4), (2, 5, 7, 3))
    assert up.parameters == 4 * 4 * 2 * 6 + 4
    assert up.flops == 2 * (2 * 5 * 7 * 6) * 16 * 2
    assert local.parameters == 5 * 7 * (2 * 2 * 4 * 3 + 3)
    assert local.flops == 2 * (2 * 5 * 7 * 3) * 2 * 2 * 4


def test_summary_of_a_language_model() -> None:
    model = CharLM(65, rng=np.random.default_rng(0), hidden=128, embedding=32, layers=2, dropout=0.1)
    model.forward(np.zeros((3, 4), np.int32))
    kept = model.buffers["1.h"].copy()
    rows = summary(model, (50, 16))
    assert [row.kind for row in rows] == ["Embedding", "LSTM", "Dropout", "LSTM", "Dropout", "Linear"]
    assert rows[1].flops == 2 * 50 * 16 * 512 * (32 + 128)
    assert rows[-1].output_shape == (50, 16, 65)
    np.testing.assert_array_equal(model.buffers["1.h"], kept)


def test_summary_counts_a_shared_parameter_once() -> None:
    rng = np.random.default_rng(0)
    layer = L.Linear(4, 4, rng=rng)
    other = L.Linear(4, 4, rng=rng)
    other.share_parameter("weight", layer)
    rows = summary(L.Sequential(layer, layer, other), (3, 4))
    assert [row.parameters for row in rows] == [20, 0, 4]


def test_summary_of_attention_counts_projections_and_products() -> None:
    rows = summary(L.MultiHeadAttention(8, 2, rng=np.random.default_rng(0)), (5, 3, 8))
    assert sum(row.parameters for row in rows) == 4 * (64 + 8)
    assert sum(row.flops for row in rows) == 4 * (2 * 15 * 64) + 2 * (2 * 3 * 5 * 5 * 8)


def test_summary_prints_a_table() -> None:
    rng = np.random.default_rng(0)
    lines = str(summary(L.Sequential(L.Linear(100, 1000, rng=rng), L.Relu()), (2, 100))).splitlines()
    assert lines[0].split() == ["layer", "output", "shape", "parameters", "activations", "bytes", "FLOPs"]
    assert lines[2].split() == ["0", "Linear", "(2,", "1000)", "101,000", "2,000", "412,000", "400,000"]
    assert lines[-1].split() == ["total", "101,000", "4,000", "420,000", "402,000"]
    assert len({len(line) for line in lines}) == 1


def test_summary_refuses_what_the_network_refuses() -> None:
    network = L.Sequential(L.Linear(4, 3, rng=np.random.default_rng(0)))
    with pytest.raises(ValueError, match="linear"):
        summary(network, (2, 5))
    assert "forward" not in vars(network.children["0"])
