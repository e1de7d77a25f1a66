"""What `compare_torch.py` compares: one function for each family of ops, one line for each row.

A family's function makes the arrays once and returns a `Pair`: closures without arguments that do the same
work in lec7 and in PyTorch. They return what they computed, so that it can be compared before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from characters import sample_chars, train_chars
from convolutions import MEAN_TARGETS, conv2d, conv_rows
from memory import MemoryRow, memory_rows
from networks import ALEXNET, LENET5, VGG16, inference, training_step
from pair import (
    Array,
    Closure,
    Data,
    Pair,
    Row,
    as_arrays,
    channels_last,
    copy_cell,
    no_grad,
    normal,
    rows,
    tensors,
    torch_formats,
    torch_gates,
)
from torch.nn import functional

from lec7 import ops, optimizers

# --- linear -------------------------------------------------------------------------------------------------


def matmul(
    data: Data,
    *,
    M: int,
    N: int,
    K: int,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> Pair:
    a = data.normal(*((K, M) if transpose_a else (M, K)))
    b = data.normal(*((N, K) if transpose_b else (K, N)))
    ta, tb = tensors(a, b)
    ta, tb = ta.T if transpose_a else ta, tb.T if transpose_b else tb
    return Pair(
        ours=lambda: (ops.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b),),
        theirs=[no_grad(lambda: (ta @ tb,))],
        names="c",
        flops=2 * M * N * K,
    )


# --- recurrent ----------------------------------------------------------------------------------------------

GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def recurrent(
    data: Data, *, T: int, N: int, D: int, H: int, layers: int = 1, cell: str, backward: bool
) -> Pair:
    forward_op, backward_op = getattr(ops, f"{cell}_forward"), getattr(ops, f"{cell}_backward")
    G = GATES[cell] * H
    inputs = [D, *[H] * (layers - 1)]
    weights = [[data.normal(*s, scale=0.08) for s in ((i, G), (H, G), (G,))] for i in inputs]
    module = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](D, H, layers)
    module = data.module(module)
    for layer_weights, parameters in zip(weights, module.all_weights, strict=True):
        copy_cell(cell, layer_weights, *parameters)
    x, dy = data.normal(T, N, D), data.normal(T, N, H)
    state = [data.zeros(N, H)] * (2 if cell == "lstm" else 1)
    (tx,), (tdy,) = tensors(x, grad=True), tensors(dy)
    wanted = ("dx", "dweight_x", "dweight_h", "dbias")

    def forward() -> list[tuple[Array, Array, Any]]:
        passed, h = [], x
        for w in weights:
            hs, *_, saved = forward_op(h, *state, *w)
            passed.append((h, hs, saved))
            h = hs
        return passed

    def ours() -> Sequence[Array]:
        passed = forward()
        if not backward:
            return (passed[-1][1],)
        grads, dh = [], dy
        for w, (h, hs, saved) in zip(weights[::-1], passed[::-1], strict=True):
            nothing = (None,) * len(state)
            dh, *rest = backward_op(dh, *nothing, h, *state, *w[:2], hs, saved, needs=wanted)
            grads = [*rest[-3:], *grads]
        return (passed[-1][1], dh, *grads)

    def theirs() -> Sequence[torch.Tensor]:
        hs = module(tx)[0]
        return (hs, *torch.autograd.grad(hs, [tx, *module.parameters()], tdy))

    def align(results: Sequence[torch.Tensor]) -> list[Array]:
        hs, *grads = as_arrays(results)
        if not grads:
            return [hs]
        dx, *rest = grads
        kept = [g for i, g in enumerate(rest) if i % 4 != 3]  # the second bias has the gradient of the first
        return [hs, dx, *(torch_gates(g.T, cell) for g in kept)]

    return Pair(
        ours=ours,
        theirs=[theirs if backward else no_grad(lambda: (module(tx)[0],))],
        names="hs dx" + " dweight_x dweight_h dbias" * layers if backward else "hs",
        align=align,
        flops=(3 if backward else 1) * sum(2 * T * N * G * (i + H) for i in inputs),
    )


def recurrent_step(data: Data, *, N: int, D: int, H: int) -> Pair:
    weights = [data.normal(*s, scale=0.08) for s in ((D, 4 * H), (H, 4 * H), (4 * H,))]
    x, h, c = data.normal(N, D), data.normal(N, H), data.normal(N, H)
    module = data.module(torch.nn.LSTMCell(D, H))
    copy_cell("lstm", weights, *module.parameters())
    tx, th, tc = tensors(x, h, c)
    return Pair(
        ours=lambda: ops.lstm_step_forward(x, h, c, *weights)[:2],
        theirs=[no_grad(lambda: module(tx, (th, tc)))],
        names="h c",
        flops=2 * N * 4 * H * (D + H),
    )


# --- pool and norm ------------------------------------------------------------------------------------------


def pool2d(data: Data, *, N: int, H: int, C: int, K: int, stride: int, kind: str, backward: bool) -> Pair:
    x = data.normal(N, H, H, C)
    options = {"kernel_size": K, "stride": stride}
    y = ops.avg_pool2d_forward(x, **options)
    dy = data.normal(*y.shape)
    torch_pool = {"max": functional.max_pool2d, "avg": functional.avg_pool2d}[kind]

    def ours_max() -> Sequence[Array]:
        y, argmax = ops.max_pool2d_forward(x, **options)
        return (y, ops.max_pool2d_backward(dy, argmax, x_shape=x.shape)) if backward else (y,)

    def ours_avg() -> Sequence[Array]:
        y = ops.avg_pool2d_forward(x, **options)
        return (y, ops.avg_pool2d_backward(dy, x_shape=x.shape, **options)) if backward else (y,)

    def theirs(tx: torch.Tensor, tdy: torch.Tensor) -> Closure:
        def run() -> Sequence[torch.Tensor]:
            y = torch_pool(tx, K, stride)
            return (y, *torch.autograd.grad(y, tx, tdy)) if backward else (y,)

        return run if backward else no_grad(run)

    return Pair(
        ours=ours_max if kind == "max" else ours_avg,
        theirs=[theirs(tx.requires_grad_(backward), tdy) for tx, tdy in torch_formats(x, dy)],
        names="y dx" if backward else "y",
        align=channels_last,
        amount=(2 if backward else 1) * 4e-9 * (x.size + y.size),
    )


def local_response_norm(data: Data, *, N: int, H: int, C: int, K: int, backward: bool) -> Pair:
    x, dy = data.normal(N, H, H, C), data.normal(N, H, H, C)

    def ours() -> Sequence[Array]:
        y, saved = ops.local_response_norm_forward(x, size=K)
        return (y, ops.local_response_norm_backward(dy, x, saved, size=K)) if backward else (y,)

    def theirs(tx: torch.Tensor, tdy: torch.Tensor) -> Closure:
        def run() -> Sequence[torch.Tensor]:
            y = functional.local_response_norm(tx, K)
            return (y, *torch.autograd.grad(y, tx, tdy)) if backward else (y,)

        return run if backward else no_grad(run)

    return Pair(
        ours=ours,
        theirs=[theirs(tx.requires_grad_(backward), tdy) for tx, tdy in torch_formats(x, dy)],
        names="y dx" if backward else "y",
        align=channels_last,
        amount=(5 if backward else 2) * 4e-9 * x.size,
    )


def batch_norm(data: Data, *, N: int, H: int, C: int, backward: bool) -> Pair:
    """Training: the batch's statistics, and running averages that follow them."""
    x, dy, gamma, beta = data.normal(N, H, H, C), data.normal(N, H, H, C), data.normal(C), data.normal(C)
    running = data.zeros(C), data.array(np.ones(C, np.float32))
    trunning = [t.clone() for t in tensors(*running)]
    leaves = tensors(gamma, beta, grad=backward)

    def ours() -> Sequence[Array]:
        y, saved = ops.batch_norm_forward(x, gamma, beta, *running, training=True)
        gradients = ops.batch_norm_backward(dy, x, gamma, saved, training=True) if backward else ()
        return (y, *gradients)

    def theirs(tx: torch.Tensor, tdy: torch.Tensor) -> Closure:
        def run() -> Sequence[torch.Tensor]:
            y = functional.batch_norm(tx, *trunning, *leaves, training=True)
            return (y, *torch.autograd.grad(y, (tx, *leaves), tdy)) if backward else (y,)

        return run if backward else no_grad(run)

    return Pair(
        ours=ours,
        theirs=[theirs(tx.requires_grad_(backward), tdy) for tx, tdy in torch_formats(x, dy)],
        names="y dx dgamma dbeta" if backward else "y",
        align=channels_last,
        amount=(8 if backward else 3) * 4e-9 * x.size,  # statistics need a pass of their own
    )


def layer_norm(data: Data, *, N: int, T: int, D: int, backward: bool) -> Pair:
    x, dy, gamma, beta = data.normal(N, T, D), data.normal(N, T, D), data.normal(D), data.normal(D)
    leaves = tensors(x, gamma, beta, grad=backward)
    (tdy,) = tensors(dy)

    def ours() -> Sequence[Array]:
        y, saved = ops.layer_norm_forward(x, gamma, beta)
        return (y, *ops.layer_norm_backward(dy, x, gamma, saved)) if backward else (y,)

    def theirs() -> Sequence[torch.Tensor]:
        y = functional.layer_norm(leaves[0], (D,), *leaves[1:])
        return (y, *torch.autograd.grad(y, leaves, tdy)) if backward else (y,)

    return Pair(
        ours=ours,
        theirs=[theirs if backward else no_grad(theirs)],
        names="y dx dgamma dbeta" if backward else "y",
        amount=(5 if backward else 2) * 4e-9 * x.size,
    )


def locally_connected2d(data: Data, *, N: int, H: int, C: int, F: int, K: int, backward: bool) -> Pair:
    """PyTorch has no such op: it unfolds the patches and multiplies a batch of matrices, one a position."""
    side = H - K + 1
    x, bias, dy = data.normal(N, H, H, C), data.normal(side, side, F), data.normal(N, side, side, F)
    weight = data.normal(side, side, K, K, C, F, scale=(K * K * C) ** -0.5)
    (tx,) = torch_formats(x)[0]
    tw, tbias, tdy = tensors(weight, bias, dy)
    tw = tw.permute(0, 1, 4, 2, 3, 5).reshape(side**2, -1, F)
    tbias, tdy = tbias.reshape(-1, 1, F), tdy.reshape(N, -1, F).swapaxes(0, 1).contiguous()
    leaves = [t.requires_grad_(backward) for t in (tx, tw, tbias)]

    def ours() -> Sequence[Array]:
        y = ops.locally_connected2d_forward(x, weight, bias)
        return (y, *ops.locally_connected2d_backward(dy, x, weight)) if backward else (y,)

    def theirs() -> Sequence[torch.Tensor]:
        y = torch.baddbmm(tbias, functional.unfold(tx, K).permute(2, 0, 1), tw)
        return (y, *torch.autograd.grad(y, leaves, tdy)) if backward else (y,)

    def align(results: Sequence[torch.Tensor]) -> list[Array]:
        y, *grads = as_arrays(results)
        y = y.swapaxes(0, 1).reshape(dy.shape)
        if not grads:
            return [y]
        dx, dweight, dbias = grads
        dweight = dweight.reshape(side, side, C, K, K, F).transpose(0, 1, 3, 4, 2, 5)
        return [y, dx.transpose(0, 2, 3, 1), dweight, dbias.reshape(bias.shape)]

    return Pair(
        ours=ours,
        theirs=[theirs if backward else no_grad(theirs)],
        names="y dx dweight dbias" if backward else "y",
        align=align,
        flops=(3 if backward else 1) * 2 * N * weight.size,
        amount=(3 if backward else 1) * 4e-9 * weight.size,
    )


def concat(data: Data, *, channels: Sequence[int], N: int, H: int, backward: bool) -> Pair:
    """PyTorch's gradients are views of dy, which the layer that gets them copies: those copies count here."""
    arrays, dy = [data.normal(N, H, H, c) for c in channels], data.normal(N, H, H, sum(channels))

    def ours() -> Sequence[Array]:
        y = ops.concat_forward(arrays)
        return (y, *ops.concat_backward(dy, channels=channels)) if backward else (y,)

    def theirs(tdy: torch.Tensor, *leaves: torch.Tensor) -> Closure:
        memory = torch.contiguous_format if tdy.is_contiguous() else torch.channels_last

        def run() -> Sequence[torch.Tensor]:
            y = torch.cat(leaves, 1)
            views = torch.autograd.grad(y, leaves, tdy) if backward else ()
            return (y, *(v.contiguous(memory_format=memory) for v in views))

        return run if backward else no_grad(run)

    return Pair(
        ours=ours,
        theirs=[
            theirs(tdy, *(t.requires_grad_(backward) for t in leaves))
            for tdy, *leaves in torch_formats(dy, *arrays)
        ],
        names=" ".join(["y", *(f"dx{i}" for i in range(len(channels)))]) if backward else "y",
        align=channels_last,
        amount=(2 if backward else 1) * 8e-9 * dy.size,
    )


def add(data: Data, *, N: int, H: int, C: int) -> Pair:
    y, x = data.normal(N, H, H, C), data.normal(N, H, H, C)
    ty, tx = tensors(y, x)
    ty = ty.clone()

    def ours() -> Sequence[Array]:
        ops.add_(y, x)
        return (y,)

    return Pair(
        ours=ours, theirs=[no_grad(lambda: (ty.add_(tx),))], names="y", amount=12e-9 * y.size, calls=2
    )


# --- attention, softmax -------------------------------------------------------------------------------------


def attention(
    data: Data, *, N: int, heads: int, T: int, d: int, causal: bool = False, backward: bool
) -> Pair:
    q, k, v, dy = (data.normal(N, heads, T, d) for _ in range(4))
    leaves = tensors(q, k, v, grad=backward)
    (tdy,) = tensors(dy)

    def ours() -> Sequence[Array]:
        y, lse = ops.attention_forward(q, k, v, causal=causal)
        return (y, *ops.attention_backward(dy, q, k, v, y, lse, causal=causal)) if backward else (y,)

    def theirs() -> Sequence[torch.Tensor]:
        y = functional.scaled_dot_product_attention(*leaves, is_causal=causal)
        return (y, *torch.autograd.grad(y, leaves, tdy)) if backward else (y,)

    product = 2 * N * heads * T * T * d / (2 if causal else 1)
    return Pair(
        ours=ours,
        theirs=[theirs if backward else no_grad(theirs)],
        names="y dq dk dv" if backward else "y",
        flops=(7 if backward else 2) * product,  # backward computes the scores again
    )


def softmax_cross_entropy(data: Data, *, N: int, K: int, backward: bool) -> Pair:
    logits, labels = data.normal(N, K), data.integers(K, N)
    (tlogits,), (tlabels,) = tensors(logits, grad=backward), tensors(labels)

    def ours() -> Sequence[Array]:
        loss, saved = ops.softmax_cross_entropy_forward(logits, labels)
        return (loss, ops.softmax_cross_entropy_backward(1.0, logits, labels, saved)) if backward else (loss,)

    def theirs() -> Sequence[torch.Tensor]:
        loss = functional.cross_entropy(tlogits, tlabels)
        return (loss, *torch.autograd.grad(loss, tlogits)) if backward else (loss,)

    return Pair(
        ours=ours,
        theirs=[theirs if backward else no_grad(theirs)],
        names="loss dlogits" if backward else "loss",
        amount=(3 if backward else 1) * 4e-9 * logits.size,
    )


# --- activation, dropout, embedding -------------------------------------------------------------------------


def activation(data: Data, *, elements: int, kind: str, backward: bool) -> Pair:
    forward_op, backward_op = getattr(ops, f"{kind}_forward"), getattr(ops, f"{kind}_backward")
    torch_op = getattr(torch, kind)
    x, dy = data.normal(elements), data.normal(elements)
    (tx,), (tdy,) = tensors(x, grad=backward), tensors(dy)

    def ours() -> Sequence[Array]:
        y = forward_op(x)
        return (y, backward_op(dy, y)) if backward else (y,)

    def theirs() -> Sequence[torch.Tensor]:
        y = torch_op(tx)
        return (y, *torch.autograd.grad(y, tx, tdy)) if backward else (y,)

    return Pair(
        ours=ours,
        theirs=[theirs if backward else no_grad(theirs)],
        names="y dx" if backward else "y",
        amount=(5 if backward else 2) * 4e-9 * elements,
    )


def dropout(data: Data, *, elements: int, p: float, backward: bool) -> Pair:
    host_x = normal(data.rng, elements)
    host_x[host_x == 0] = 1  # so that a 0 in y is one that dropout made
    x, dy = data.array(host_x), data.normal(elements)
    (tx,), (tdy,) = tensors(x, grad=backward), tensors(dy)
    seed = 7

    def ours() -> Sequence[Array]:
        y = ops.dropout_forward(x, p=p, seed=seed)
        return (y, ops.dropout_backward(dy, p=p, seed=seed)) if backward else (y,)

    def theirs() -> Sequence[torch.Tensor]:
        y = functional.dropout(tx, p)
        return (y, *torch.autograd.grad(y, tx, tdy)) if backward else (y,)

    def summary(results: Sequence[Any]) -> Sequence[float]:
        """What no draw changes: how many are kept, the factor of these, whether dx has the same mask."""
        y, *dx = as_arrays(results)
        kept = y != 0
        factors = y[kept] / host_x[kept]
        same = [np.array_equal(dx[0], as_arrays([dy])[0] * (kept / np.float32(1 - p)))] if dx else []
        return (kept.mean(), factors.min(), factors.max(), *same)

    timed = theirs if backward else no_grad(theirs)
    return Pair(
        ours=ours,
        theirs=[timed],
        compare=(lambda: summary(ours()), lambda: summary(timed())),
        names="kept smallest_factor largest_factor" + (" dx_has_the_mask" if backward else ""),
        amount=(4 if backward else 2) * 4e-9 * elements,
        tolerance=2e-3,  # 4 standard deviations of the difference of two shares of 10^7 draws are 1e-3 of 0.5
    )


def embedding(data: Data, *, T: int, N: int, V: int, D: int, backward: bool) -> Pair:
    tokens, weight, dy = data.integers(V, T, N), data.normal(V, D), data.normal(T, N, D)
    (ttokens, tdy), (tweight,) = tensors(tokens, dy), tensors(weight, grad=backward)

    def ours() -> Sequence[Array]:
        y = ops.embedding_forward(tokens, weight)
        return (y, ops.embedding_backward(dy, tokens, num_embeddings=V)) if backward else (y,)

    def theirs() -> Sequence[torch.Tensor]:
        y = functional.embedding(ttokens, tweight)
        return (y, *torch.autograd.grad(y, tweight, tdy)) if backward else (y,)

    return Pair(
        ours=ours,
        theirs=[theirs if backward else no_grad(theirs)],
        names="y dweight" if backward else "y",
        amount=4e-9 * (2 * dy.size + (dy.size + weight.size if backward else 0)),
    )


# --- optimizers ---------------------------------------------------------------------------------------------


def optimizer(
    data: Data,
    *,
    parameters: int,
    ours: Callable[[], optimizers.Optimizer],
    theirs: Sequence[Callable[[list[torch.Tensor]], torch.optim.Optimizer]],
    slots: int,
) -> Pair:
    """One update of one flat buffer; ``slots`` arrays of state are read and written beside the parameters."""
    values, grads = data.normal(parameters), data.normal(parameters)
    (tgrads,) = tensors(grads)
    rule = ours()

    def update() -> Sequence[Array]:
        rule.update(values, grads, lr=1e-4)
        return (values,)

    def torch_update(make: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> Closure:
        leaf = tensors(values)[0].clone().requires_grad_()
        leaf.grad = tgrads
        torch_rule = make([leaf])

        def run() -> Sequence[torch.Tensor]:
            torch_rule.step()
            return (leaf,)

        return run

    amount = 4e-9 * parameters * (3 + 2 * slots)
    return Pair(
        ours=update,
        theirs=[torch_update(m) for m in theirs],
        names="params",
        amount=amount,
        limit="bandwidth",
        calls=2,
    )


# --- the rows -----------------------------------------------------------------------------------------------

lstm, gru = partial(recurrent, cell="lstm"), partial(recurrent, cell="gru")
conv_transpose2d = partial(conv2d, transposed=True)
inception = partial(concat, channels=(64, 128, 32, 32))
max_pool, avg_pool = partial(pool2d, kind="max"), partial(pool2d, kind="avg")
sgd = partial(
    optimizer,
    slots=1,
    ours=lambda: optimizers.SGD(momentum=0.9),
    theirs=[lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9, fused=True)],
)
rmsprop = partial(  # PyTorch has no fused one
    optimizer,
    slots=1,
    ours=optimizers.RMSProp,
    theirs=[partial(torch.optim.RMSprop, lr=1e-4, foreach=foreach) for foreach in (False, True)],
)
adam = partial(
    optimizer,
    slots=2,
    ours=optimizers.Adam,
    theirs=[partial(torch.optim.Adam, lr=1e-4, fused=True)],
)

#: suite -> direction -> the largest geometric mean of the ratios of all its rows that passes
MEANS: dict[str, dict[str, float]] = {"conv": MEAN_TARGETS}

#: the targets on a GPU: "suite: title" -> the largest ratio that passes
CUDA_MOST = {
    "recurrent: LSTM, forward + backward": 1.0,
    "train: characters, training step": 1.0,
    "networks: AlexNet, training step": 1.0,
}
#: with float16 and bfloat16: 0.6 of the speed of FlashAttention, which PyTorch has for these
CUDA_HALF_MOST = {"attention: attention, forward": 1 / 0.6}
#: with tf32, as MEANS: 0.8 of cuDNN's speed
CUDA_TF32_MEANS = {"conv": {"forward": 1.25, "forward + backward": 1.25}}
#: the suites whose rows can store their arrays in float16 and bfloat16 on a GPU
HALF_SUITES = ("gemm", "conv", "recurrent", "attention")

SUITES: dict[str, Sequence[Row | MemoryRow]] = {
    "gemm": [
        *rows("matmul", matmul, M=2048, N=2048, K=2048, least=0.93),
        *rows("matmul", matmul, M=512, N=512, K=512, least=0.93),
        *rows("matmul", matmul, M=64, N=4096, K=9216, least=0.85),
        *rows("matmul, float64", matmul, dtype=torch.float64, M=2048, N=2048, K=2048, least=0.93 / 2),
        *rows("matmul, float64", matmul, dtype=torch.float64, M=512, N=512, K=512, least=0.93 / 2),
        *rows("matmul, float64", matmul, dtype=torch.float64, M=64, N=4096, K=9216, least=0.85 / 2),
        *rows("matmul, gradient of x", matmul, M=64, N=9216, K=4096, transpose_b=True),
        *rows("matmul, gradient of weight", matmul, M=9216, N=4096, K=64, transpose_a=True),
        *rows("matmul, LSTM input", matmul, M=2500, N=512, K=128),
        *rows("matmul, LSTM gradient of x", matmul, M=2500, N=128, K=512, transpose_b=True),
        *rows("matmul, LSTM gradient of weight", matmul, M=128, N=512, K=2500, transpose_a=True),
        *rows("matmul, LSTM step", matmul, M=50, N=2048, K=512),
        *rows("matmul, LSTM step", matmul, M=1, N=2048, K=512),
    ],
    "recurrent": [
        *rows("LSTM", lstm, T=50, N=50, D=128, H=128, layers=2, most=(0.90, 0.85)),
        *rows("LSTM", lstm, T=50, N=64, D=512, H=512, most=0.93),
        *rows("LSTM", lstm, T=25, N=1, D=64, H=100, most=0.40),
        *rows("LSTM", lstm, T=100, N=16, D=256, H=256, most=0.93),
        *rows("GRU", gru, T=50, N=50, D=128, H=128, most=(0.90, 0.85)),
        *rows("LSTM step", recurrent_step, N=1, D=64, H=100, most=0.20),
        *rows("LSTM step", recurrent_step, N=1, D=512, H=512, most=0.45),
        *rows("LSTM step", recurrent_step, N=64, D=512, H=512, most=0.70),
    ],
    "conv": conv_rows(),
    "conv_transpose": [
        *rows("transposed conv 4x4", conv_transpose2d, N=8, H=8, C=512, F=256, K=4, stride=2, padding=1),
        *rows("transposed conv 4x4", conv_transpose2d, N=8, H=32, C=128, F=3, K=4, stride=2, padding=1),
        *rows("transposed conv 2x2", conv_transpose2d, N=4, H=32, C=128, F=64, K=2, stride=2),
        *rows("transposed conv 3x3", conv_transpose2d, N=8, H=28, C=64, F=64, K=3, padding=1),
    ],
    "locally_connected": [
        *rows("locally connected 3x3", locally_connected2d, N=8, H=28, C=64, F=64, K=3),
        *rows("locally connected 9x9", locally_connected2d, N=8, H=28, C=16, F=16, K=9),
    ],
    "merge": [
        *rows("concatenation, 64+128+32+32", inception, N=8, H=28, most=0.7),
        *rows("addition in place", add, N=8, H=56, C=256),
    ],
    "pool": [
        *rows("max pool 3x3", max_pool, N=32, H=55, C=96, K=3, stride=2, most=(0.55, 0.50)),
        *rows("max pool 2x2", max_pool, N=8, H=224, C=64, K=2, stride=2, most=1.0),
        *rows("max pool 3x3", max_pool, N=1, H=112, C=64, K=3, stride=2, most=(0.55, 0.50)),
        *rows("average pool 2x2", avg_pool, N=32, H=28, C=256, K=2, stride=2, most=1.0),
        *rows("average pool 7x7", avg_pool, N=64, H=7, C=2048, K=7, stride=1, most=1.0),
    ],
    "norm": [
        *rows("local response norm", local_response_norm, N=32, H=55, C=96, K=5, most=0.05),
        *rows("batch norm, training", batch_norm, N=32, H=56, C=64, most=(0.6, 0.65)),
        *rows("layer norm", layer_norm, N=64, T=50, D=512, most=(0.6, 0.65)),
        *rows("layer norm", layer_norm, N=8, T=196, D=768, most=(0.6, 0.65)),
    ],
    "attention": [
        *rows("attention", attention, N=8, heads=8, T=256, d=64, causal=True, most=0.55),
        *rows("attention", attention, N=2, heads=12, T=1024, d=64, causal=True, most=0.55),
        *rows("attention", attention, N=1, heads=8, T=4096, d=64, most=(0.80, 0.78)),
        *rows("attention", attention, N=64, heads=1, T=20, d=256, most=0.75),
    ],
    "softmax": [*rows("softmax cross-entropy", softmax_cross_entropy, N=4096, K=10000, most=(0.40, 0.30))],
    "activation": [
        *rows("ReLU", partial(activation, kind="relu"), elements=10**7, most=0.70),
        *rows("sigmoid", partial(activation, kind="sigmoid"), elements=10**7, most=0.70),
        *rows("tanh", partial(activation, kind="tanh"), elements=10**7, most=0.70),
    ],
    "dropout": [*rows("dropout", dropout, elements=10**7, p=0.5, most=0.70)],
    "embedding": [
        *rows("embedding", embedding, T=50, N=50, V=65, D=128, most=0.70),
        *rows("embedding", embedding, T=50, N=64, V=10000, D=512, most=0.70),
    ],
    "optimizer": [
        *rows("SGD, momentum", sgd, parameters=10**7, most=1.0, least=0.90),
        *rows("RMSProp", rmsprop, parameters=10**7, most=1.0, least=0.90),
        *rows("Adam", adam, parameters=10**7, most=1.0, least=0.90),
    ],
    "train": [
        *rows("characters, training step", train_chars, T=50, N=50, hidden=128, layers=2, V=65, most=0.70),
        *rows("characters, training step", train_chars, T=50, N=50, hidden=512, layers=2, V=65, most=0.90),
        *rows("characters, sampling", sample_chars, hidden=512, layers=2, V=65, length=200, most=1 / 10),
    ],
    "networks": [
        *rows("AlexNet, inference", partial(inference, network=ALEXNET), N=1, most=0.50),
        *rows("AlexNet, inference", partial(inference, network=ALEXNET), N=8, most=0.50),
        *rows("AlexNet, training step", partial(training_step, network=ALEXNET), N=32, most=0.40),
        *rows("VGG16, inference", partial(inference, network=VGG16), N=1, most=0.45),
        *rows("VGG16, inference", partial(inference, network=VGG16), N=8, most=0.45),
        *rows("VGG16, training step", partial(training_step, network=VGG16), N=8, most=0.40),
        *rows("LeNet-5, inference", partial(inference, network=LENET5), N=64, most=0.50),
        *rows("LeNet-5, training step", partial(training_step, network=LENET5), N=64, most=0.35),
    ],
    "memory": memory_rows(most=0.70),
}
