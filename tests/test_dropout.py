import numpy as np
import pytest
from checking import SIZES, agrees, check_gradients, normal, rejects, same_bits

from lec7 import _cpu, reference
from lec7.reference.dropout import philox4x32, random_words


def forward_and_backward(**parameters):
    return lambda ops, x, dy: (ops.dropout_forward(x, **parameters), ops.dropout_backward(dy, **parameters))


KNOWN_ANSWERS = pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        # The known answers that the authors of Philox publish with it.
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)


@KNOWN_ANSWERS
def test_philox_known_answers(counter, key, words):
    assert tuple(int(word) for word in philox4x32(counter, key)) == words


@KNOWN_ANSWERS
def test_philox_known_answers_of_backends(counter, key, words, backend):
    first, offset, seed = (low + (high << 32) for low, high in (counter[:2], counter[2:], key))
    assert tuple(backend._philox(seed, offset, first, 1).view(np.uint32)[0].tolist()) == words


@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
def test_dropout_worked_example(backend_name):
    # seed 0, offset 0: the words of the first known answer, against floor(0.6 * 2^32) = 0x99999999.
    ops = reference if backend_name == "reference" else _cpu
    x = np.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(ops.dropout_forward(x, p=0.6, seed=0), [0, 5, 7.5, 10], rtol=1e-15)
    np.testing.assert_allclose(ops.dropout_forward(x, p=0.88, seed=0), [0, 2 / (1 - 0.88), 0, 0], rtol=1e-15)


def test_dropout_keeps_the_expected_share():
    words = random_words(200_000, seed=5, offset=9)
    for p in (0.1, 0.5, 0.9):
        share = (words >= int(p * 2**32)).mean()
        assert abs(share - (1 - p)) < 5 * np.sqrt(p * (1 - p) / words.size)
    assert (
        len(
            {
                tuple(random_words(8, seed, offset).tolist())
                for seed in (0, 1, 2**40)
                for offset in (0, 1, 2**40)
            }
        )
        == 9
    )


@pytest.mark.parametrize("whole_channels", [False, True])
def test_dropout_gradients(whole_channels, rng):
    parameters = {"p": 0.4, "seed": 3, "offset": 1, "whole_channels": whole_channels}
    check_gradients(
        lambda x: reference.dropout_forward(x, **parameters),
        lambda dy, x: reference.dropout_backward(dy, **parameters),
        rng.standard_normal((3, 2, 4)),
    )


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.99])
def test_dropout_agrees(p, backend, rng):
    for shape in ((), (0, 5), (2, 3, 5), *((n,) for n in SIZES), (1009,)):
        run = forward_and_backward(p=p, seed=1234567890123, offset=77)
        agrees("dropout", backend, run, np.asarray(normal(rng, *shape)), np.asarray(normal(rng, *shape)))


def test_dropout_of_whole_channels_agrees(backend, rng):
    run = forward_and_backward(p=0.5, seed=3, offset=2, whole_channels=True)
    for shape in ((3, 5), (0, 4, 7), (2, 3, 5), (2, 3, 4, 17), (3, 1, 2, 2, 9), *((3, 2, n) for n in SIZES)):
        agrees("dropout", backend, run, normal(rng, *shape), normal(rng, *shape))
    y = backend.dropout_forward(np.ones((40, 6, 5), np.float32), p=0.5, seed=3, whole_channels=True)
    assert {0.0, 2.0} == set(y.ravel().tolist())
    assert (y == y[:, :1]).all()  # every cell of a channel shares its fate


@pytest.mark.parametrize(
    ("seed", "offset"), [(0, 0), (2**64 - 1, 2**64 - 1), (2**32, 1), (2**32 - 1, 2**33), (2**63, 2**63)]
)
def test_dropout_uses_all_bits_of_seed_and_offset(seed, offset, backend, rng):
    agrees(
        "dropout",
        backend,
        forward_and_backward(p=0.5, seed=seed, offset=offset),
        normal(rng, 99),
        normal(rng, 99),
    )


def test_dropout_drops_nan(backend):
    x = np.full(64, np.nan, np.float32)
    for ops in (reference, backend):
        y = ops.dropout_forward(x, p=0.5, seed=0)
        np.testing.assert_array_equal(np.isnan(y), random_words(64, 0, 0) >= 2**31)
        assert (y[~np.isnan(y)] == 0).all()


def test_dropout_bits_do_not_depend_on_threads(backend, rng):
    for whole_channels in (False, True):
        run = forward_and_backward(p=0.3, seed=1, offset=5, whole_channels=whole_channels)
        same_bits(backend, run, normal(rng, 3, 1001, 101), normal(rng, 3, 1001, 101))


def test_dropout_rejects():
    x = np.zeros((2, 3), np.float32)
    for ops in (_cpu, reference):
        for call in (ops.dropout_forward, ops.dropout_backward):
            for p in (-0.1, 1.0, 1.5, np.nan):
                rejects(ValueError, ("dropout", "p"), call, x, p=p, seed=0)
            rejects(ValueError, ("dropout", (3,)), call, x[0], p=0.5, seed=0, whole_channels=True)
            for bad in (-1, 2**64):
                with pytest.raises((ValueError, TypeError, OverflowError), match=r"dropout"):
                    call(x, p=0.5, seed=bad)
                with pytest.raises((ValueError, TypeError, OverflowError), match=r"dropout"):
                    call(x, p=0.5, seed=0, offset=bad)
    rejects(TypeError, ("dropout", "int32", (2, 3)), _cpu.dropout_forward, x.astype(np.int32), p=0.5, seed=0)
    rejects(TypeError, ("dropout",), _cpu.dropout_forward, x, p=0.5, seed=0.5)


@pytest.mark.parametrize("whole_channels", [False, True])
def test_dropout_reads_seed_and_offset_on_the_device(whole_channels, device, rng):
    x, dy = normal(rng, 5, 4, 7), normal(rng, 5, 4, 7)
    for offset in (0, 1, 2**40 + 3, 2**64 - 1):
        seed = offset ^ 0x9E3779B97F4A7C15
        there = {k: np.array(v, np.uint64).view(np.int64) for k, v in (("seed", seed), ("offset", offset))}
        results = set()
        for given in ({}, {"seed": there["seed"]}, {"offset": there["offset"]}, there):
            options = {"p": 0.4, "seed": seed, "offset": offset, "whole_channels": whole_channels, **given}
            results.add(tuple(y.tobytes() for y in forward_and_backward(**options)(device, x, dy)))
        assert len(results) == 1
    with pytest.raises(TypeError, match="dropout: offset must be int64 on a GPU; got dtype int32"):
        device.dropout_forward(x, p=0.4, seed=9, offset=np.array(0, np.int32))
