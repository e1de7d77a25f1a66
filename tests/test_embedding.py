import numpy as np
import pytest
from checking import SIZES, agrees, check_gradients, normal, rejects, same_bits

from lec7 import _cpu, reference


def forward_and_backward(ops, tokens, weight, dy):
    return ops.embedding_forward(tokens, weight), ops.embedding_backward(
        dy, tokens, num_embeddings=len(weight)
    )


def operands(rng, shape, vocabulary, width, integer=np.int64):
    return (
        rng.integers(0, vocabulary, shape, integer),
        normal(rng, vocabulary, width),
        normal(rng, *shape, width),
    )


def test_embedding_worked_example():
    tokens, weight = np.array([[2, 0, 2]]), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    np.testing.assert_array_equal(reference.embedding_forward(tokens, weight), [[[5, 6], [1, 2], [5, 6]]])
    dy = np.array([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]])
    dweight = reference.embedding_backward(dy, tokens, num_embeddings=3)
    np.testing.assert_array_equal(dweight, [[2, 20], [0, 0], [5, 50]])


def test_embedding_gradients(rng):
    tokens = np.array([[0, 2, 2], [2, 1, 0]])
    check_gradients(
        lambda weight: reference.embedding_forward(tokens, weight),
        lambda dy, weight: reference.embedding_backward(dy, tokens, num_embeddings=4),
        rng.standard_normal((4, 3)),
    )


@pytest.mark.parametrize("integer", [np.int32, np.int64])
def test_embedding_agrees(integer, backend, rng):
    for shape in ((), (0,), (2, 0), (1,), (2, 3, 4), (101,)):
        agrees("embedding", backend, forward_and_backward, *operands(rng, shape, 7, 5, integer))
    for n in SIZES:
        agrees("embedding", backend, forward_and_backward, *operands(rng, (6,), 3, n, integer))
        agrees("embedding", backend, forward_and_backward, *operands(rng, (n,), 1, 3, integer))
        agrees("embedding", backend, forward_and_backward, *operands(rng, (3,), n, 4, integer))


@pytest.mark.parametrize(("vocabulary", "width"), [(2, 3), (2, 8), (255, 8), (256, 3), (65_537, 8)])
def test_embedding_of_many_tokens_agrees(vocabulary, width, backend, rng):
    """Several tiles of a sort of one, two and three passes; tokens that are rare and that are everywhere."""
    tokens, weight, dy = operands(rng, (2500,), vocabulary, width)
    tokens[rng.random(tokens.shape) < 0.5] = vocabulary - 1
    agrees("embedding", backend, forward_and_backward, tokens, weight, dy)


def test_embedding_bits_do_not_depend_on_threads(backend, rng):
    same_bits(backend, forward_and_backward, *operands(rng, (50, 200), 67, 65))
    same_bits(backend, forward_and_backward, *operands(rng, (4000,), 5003, 33))


def test_embedding_rejects():
    weight, dy = np.zeros((5, 3), np.float32), np.zeros((2, 2, 3), np.float32)
    tokens = np.zeros((2, 2), np.int64)
    for ops in (_cpu, reference):
        for bad in (-1, 5, 2**31, 2**62, -(2**63)):
            wrong = tokens.copy()
            wrong[1, 0] = bad
            rejects(ValueError, ("embedding", bad, "(1, 0)"), ops.embedding_forward, wrong, weight)
            rejects(
                ValueError, ("embedding", bad, "(1, 0)"), ops.embedding_backward, dy, wrong, num_embeddings=5
            )
        for dtype in (np.float32, np.uint32, np.int16, bool):
            wrong = tokens.astype(dtype)
            rejects(TypeError, ("embedding", wrong.dtype, (2, 2)), ops.embedding_forward, wrong, weight)
        rejects(ValueError, ("embedding", (3,)), ops.embedding_forward, tokens, weight[0])
        rejects(ValueError, ("embedding", (1, 5, 3)), ops.embedding_forward, tokens, weight[None])
        rejects(ValueError, ("embedding",), ops.embedding_forward, tokens, weight[:0])
        for shape in ((2, 1, 3), (2, 3), (2, 2), (2, 2, 2, 3)):
            wrong = np.zeros(shape, np.float32)
            rejects(
                ValueError,
                ("embedding", (2, 2), shape),
                ops.embedding_backward,
                wrong,
                tokens,
                num_embeddings=5,
            )
    rejects(TypeError, ("embedding", "int64", (5, 3)), _cpu.embedding_forward, tokens, weight.astype(int))
    for bad in (0, -1):
        rejects(ValueError, ("embedding", bad), _cpu.embedding_backward, dy, tokens, num_embeddings=bad)
    rejects(ValueError, ("embedding",), _cpu.embedding_backward, dy, tokens, num_embeddings=2**62)
