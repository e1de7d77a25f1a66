"""What `compare_torch.py` compares: one function for each family of ops, one line for each row.

A family's function makes the arrays once and returns a `Pair`: closures without arguments that do the same
work in lec7 and in PyTorch. They return what they computed, so that it can be compared before it is timed.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from lec7 import losses, ops, optimizers
from lec7.models.char_lm import CharLM
from lec7.training import Trainer

Array = NDArray[Any]
Closure = Callable[[], Sequence[Any]]

# Relative to the norm of a result: one element of 10^9 that is wrong by its own size shows.
TOLERANCE = 2e-5


def as_arrays(results: Sequence[Any]) -> list[Array]:
    return [r.detach().numpy() if isinstance(r, torch.Tensor) else np.asarray(r) for r in results]


@dataclass(kw_only=True)
class Pair:
    """The same work in both libraries.

    ``theirs`` are PyTorch's ways to do it, of which the fastest counts; ``align`` brings their results, whose
    ``names`` are given, into lec7's layout. ``flops`` are those of the formula (a multiply-add is two);
    ``amount`` is what a call does in terms of ``unit``. ``compare``: closures to compare in place of the
    timed ones, where those draw random numbers. ``calls``: how many calls in a row have to agree, where each
    goes on from the last.
    """

    ours: Closure
    theirs: list[Closure]
    names: str
    align: Callable[[Sequence[Any]], list[Array]] = as_arrays
    flops: float = 0
    amount: float = 0
    unit: str = "GB/s"
    compare: tuple[Closure, Closure] | None = None
    calls: int = 1
    tolerance: float = TOLERANCE


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    return scale * rng.standard_normal(shape, np.float32)


def tensors(*arrays: Array, grad: bool = False) -> list[torch.Tensor]:
    return [torch.from_numpy(a).requires_grad_(grad) for a in arrays]


def no_grad(function: Closure) -> Closure:
    return torch.inference_mode()(function)


# --- linear -------------------------------------------------------------------------------------------------


def matmul(
    rng: np.random.Generator, *, M: int, N: int, K: int, transpose_a: bool = False, transpose_b: bool = False
) -> Pair:
    a = normal(rng, *((K, M) if transpose_a else (M, K)))
    b = normal(rng, *((N, K) if transpose_b else (K, N)))
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


def torch_gates(a: Array, cell: str) -> Array:
    """Reorder the last axis from an LSTM's gates i f o g (lec7) to i f g o (PyTorch), and back."""
    if cell != "lstm":
        return a
    i, f, o, g = np.split(a, 4, axis=-1)
    return np.concatenate([i, f, g, o], axis=-1)


def copy_cell(
    cell: str, weights: Sequence[Array], weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any
) -> None:
    """lec7's weight_x, weight_h and bias into PyTorch's parameters, whose second bias becomes 0."""
    with torch.no_grad():
        for parameter, weight in zip((weight_ih, weight_hh, bias_ih), weights, strict=True):
            parameter.copy_(torch.from_numpy(torch_gates(weight, cell).T))
        bias_hh.zero_()


def recurrent(
    rng: np.random.Generator, *, T: int, N: int, D: int, H: int, layers: int = 1, cell: str, backward: bool
) -> Pair:
    forward_op, backward_op = getattr(ops, f"{cell}_forward"), getattr(ops, f"{cell}_backward")
    G = GATES[cell] * H
    inputs = [D, *[H] * (layers - 1)]
    weights = [[normal(rng, *s, scale=0.08) for s in ((i, G), (H, G), (G,))] for i in inputs]
    module = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](D, H, layers)
    for layer_weights, parameters in zip(weights, module.all_weights, strict=True):
        copy_cell(cell, layer_weights, *parameters)
    x, dy = normal(rng, T, N, D), normal(rng, T, N, H)
    state = [np.zeros((N, H), np.float32)] * (2 if cell == "lstm" else 1)
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


def recurrent_step(rng: np.random.Generator, *, N: int, D: int, H: int) -> Pair:
    weights = [normal(rng, *s, scale=0.08) for s in ((D, 4 * H), (H, 4 * H), (4 * H,))]
    x, h, c = normal(rng, N, D), normal(rng, N, H), normal(rng, N, H)
    module = torch.nn.LSTMCell(D, H)
    copy_cell("lstm", weights, *module.parameters())
    tx, th, tc = tensors(x, h, c)
    return Pair(
        ours=lambda: ops.lstm_step_forward(x, h, c, *weights)[:2],
        theirs=[no_grad(lambda: module(tx, (th, tc)))],
        names="h c",
        flops=2 * N * 4 * H * (D + H),
    )


# --- conv and pool: PyTorch's better memory format ----------------------------------------------------------


def torch_formats(*arrays: Array) -> list[list[torch.Tensor]]:
    """Arrays with channels last as PyTorch's NCHW tensors: contiguous, and in channels-last memory."""
    nchw = [torch.from_numpy(a).movedim(-1, 1) for a in arrays]
    formats = torch.contiguous_format, torch.channels_last
    return [[t.clone(memory_format=f) for t in nchw] for f in formats]


def channels_last(results: Sequence[torch.Tensor]) -> list[Array]:
    """Images back to (N, H, W, C); filters (F, C, KH, KW) are stored like images of (F, KH, KW, C)."""
    return [a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for a in as_arrays(results)]


def conv2d(
    rng: np.random.Generator,
    *,
    N: int,
    H: int,
    C: int,
    F: int,
    K: int,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    backward: bool,
) -> Pair:
    options = {"stride": stride, "padding": padding, "groups": groups}
    x = normal(rng, N, H, H, C)
    weight = normal(rng, K, K, C // groups, F, scale=(K * K * C // groups) ** -0.5)
    bias = normal(rng, F)
    y = ops.conv2d_forward(x, weight, bias, **options)
    dy = normal(rng, *y.shape)
    (tbias,) = tensors(bias, grad=backward)

    def ours() -> Sequence[Array]:
        y = ops.conv2d_forward(x, weight, bias, **options)
        return (y, *ops.conv2d_backward(dy, x, weight, **options)) if backward else (y,)

    def theirs(tx: torch.Tensor, tw: torch.Tensor, tdy: torch.Tensor) -> Closure:
        def run() -> Sequence[torch.Tensor]:
            y = torch.conv2d(tx, tw, tbias, stride, padding, 1, groups)
            return (y, *torch.autograd.grad(y, (tx, tw, tbias), tdy)) if backward else (y,)

        return run if backward else no_grad(run)

    def align(results: Sequence[torch.Tensor]) -> list[Array]:
        arrays = channels_last(results)
        return [a.transpose(1, 2, 3, 0) if i == 2 else a for i, a in enumerate(arrays)]

    images = torch_formats(x, dy)
    filters = torch_formats(np.ascontiguousarray(np.moveaxis(weight, -1, 0)))
    return Pair(
        ours=ours,
        theirs=[
            theirs(tx.requires_grad_(backward), tw.requires_grad_(backward), tdy)
            for (tx, tdy), (tw,) in zip(images, filters, strict=True)
        ],
        names="y dx dweight dbias" if backward else "y",
        align=align,
        flops=(3 if backward else 1) * 2 * y.size * K * K * C // groups,
    )


def pool2d(
    rng: np.random.Generator, *, N: int, H: int, C: int, K: int, stride: int, kind: str, backward: bool
) -> Pair:
    x = normal(rng, N, H, H, C)
    options = {"kernel_size": K, "stride": stride}
    y = ops.avg_pool2d_forward(x, **options)
    dy = normal(rng, *y.shape)
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


# --- attention, softmax -------------------------------------------------------------------------------------


def attention(
    rng: np.random.Generator, *, N: int, heads: int, T: int, d: int, causal: bool = False, backward: bool
) -> Pair:
    q, k, v, dy = (normal(rng, N, heads, T, d) for _ in range(4))
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


def softmax_cross_entropy(rng: np.random.Generator, *, N: int, K: int, backward: bool) -> Pair:
    logits, labels = normal(rng, N, K), rng.integers(K, size=N)
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


# --- optimizers ---------------------------------------------------------------------------------------------


def optimizer(
    rng: np.random.Generator,
    *,
    parameters: int,
    ours: Callable[[], optimizers.Optimizer],
    theirs: Sequence[Callable[[list[torch.Tensor]], torch.optim.Optimizer]],
    slots: int,
) -> Pair:
    """One update of one flat buffer; ``slots`` arrays of state are read and written beside the parameters."""
    values, grads = normal(rng, parameters), normal(rng, parameters)
    (tgrads,) = tensors(grads)
    rule = ours()

    def update() -> Sequence[Array]:
        rule.update(values, grads, lr=1e-4)
        return (values,)

    def torch_update(make: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> Closure:
        leaf = torch.from_numpy(values.copy()).requires_grad_()
        leaf.grad = tgrads
        torch_rule = make([leaf])

        def run() -> Sequence[torch.Tensor]:
            torch_rule.step()
            return (leaf,)

        return run

    amount = 4e-9 * parameters * (3 + 2 * slots)
    return Pair(ours=update, theirs=[torch_update(m) for m in theirs], names="params", amount=amount, calls=2)


# --- whole jobs ---------------------------------------------------------------------------------------------


class TorchCharLM(torch.nn.Module):
    """The network of `lec7 train chars`, with the weights of one."""

    def __init__(self, model: CharLM) -> None:
        super().__init__()
        vocabulary, embedding = model.embedding.params["weight"].shape
        hidden = model.cells[0].hidden_size
        self.embedding = torch.nn.Embedding(vocabulary, embedding)
        self.lstm = torch.nn.LSTM(embedding, hidden, len(model.cells))
        self.output = torch.nn.Linear(hidden, vocabulary)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.from_numpy(model.embedding.params["weight"]))
            self.output.weight.copy_(torch.from_numpy(model.output.params["weight"].T))
            self.output.bias.copy_(torch.from_numpy(model.output.params["bias"]))
        for cell, parameters in zip(model.cells, self.lstm.all_weights, strict=True):
            copy_cell("lstm", [cell.params[k] for k in ("weight_x", "weight_h", "bias")], *parameters)
            parameters[3].requires_grad_(False)  # a second bias would count twice in the gradient's norm


def train_chars(rng: np.random.Generator, *, T: int, N: int, hidden: int, layers: int, V: int) -> Pair:
    """A whole training step of the character LSTM, its state carried on, gradients clipped, Adam."""
    clip, lr = 0.1, 2e-3  # a clip that acts
    model = CharLM(V, rng=rng, layers=layers, hidden=hidden, embedding=hidden)
    torch_model = TorchCharLM(model)
    trainer = Trainer(model, optimizers.Adam(), losses.softmax_cross_entropy, rng=rng, schedule=lr, clip=clip)
    adam = torch.optim.Adam(torch_model.parameters(), lr=lr, fused=True)
    batches = [tuple(rng.integers(V, size=(2, T, N), dtype=np.int32)) for _ in range(8)]
    torch_batches = [tensors(*(a.astype(np.int64) for a in batch)) for batch in batches]
    ours_batches, theirs_batches = itertools.cycle(batches), itertools.cycle(torch_batches)
    state = None

    def ours() -> Sequence[float]:
        result = trainer.step(*next(ours_batches))
        return result.loss, result.grad_norm

    def theirs() -> Sequence[float]:
        nonlocal state
        tokens, labels = next(theirs_batches)
        hs, state = torch_model.lstm(torch_model.embedding(tokens), state)
        state = tuple(s.detach() for s in state)
        loss = functional.cross_entropy(torch_model.output(hs).flatten(0, 1), labels.flatten())
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(torch_model.parameters(), clip)
        adam.step()
        return loss.item(), norm.item()

    products = sum(2 * T * N * 4 * hidden * 2 * hidden for _ in range(layers)) + 2 * T * N * hidden * V
    return Pair(
        ours=ours,
        theirs=[theirs],
        names="loss grad_norm",
        flops=3 * products,
        amount=T * N,
        unit="chars/s",
        calls=3,
        tolerance=1e-4,  # PyTorch adds up the squares of the gradient's norm in float32
    )


def sample_chars(rng: np.random.Generator, *, hidden: int, layers: int, V: int, length: int) -> Pair:
    """Text drawn character by character; PyTorch's loop of LSTMCell draws by the same Gumbel-max trick."""
    model = CharLM(V, rng=rng, layers=layers, hidden=hidden, embedding=hidden)
    torch_model = TorchCharLM(model)
    cells = [torch.nn.LSTMCell(hidden, hidden) for _ in range(layers)]
    for cell, parameters in zip(cells, torch_model.lstm.all_weights, strict=True):
        cell.load_state_dict(dict(zip(cell.state_dict(), parameters, strict=True)))
    prime = rng.integers(V, size=1, dtype=np.int32)

    def ours(temperature: float) -> Sequence[Array]:
        tokens = model.generate(prime, length=length, temperature=temperature, rng=rng)
        return (np.fromiter(tokens, np.int64),)

    def theirs(temperature: float) -> Sequence[Array]:
        noise = torch.from_numpy(temperature * rng.gumbel(size=(length, V)).astype(np.float32))
        states = [(torch.zeros(1, hidden), torch.zeros(1, hidden)) for _ in cells]
        token, tokens = torch.from_numpy(prime), []
        for t in range(length):
            h = torch_model.embedding(token)
            for i, cell in enumerate(cells):
                states[i] = cell(h, states[i])
                h = states[i][0]
            token = (torch_model.output(h) + noise[t]).argmax(1)
            tokens.append(token.item())
        return (np.array(tokens),)

    return Pair(
        ours=lambda: ours(0.8),
        theirs=[no_grad(lambda: theirs(0.8))],
        compare=(lambda: ours(0.0), no_grad(lambda: theirs(0.0))),
        names="tokens",
        flops=length * (2 * 8 * hidden * hidden * layers + 2 * hidden * V),
        amount=length,
        unit="chars/s",
    )


# --- the rows -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """``most``: the largest ratio lec7 / PyTorch, ``least``: the smallest fraction of the peak, that pass."""

    name: str
    direction: str
    family: Callable[..., Pair]
    sizes: dict[str, Any]
    most: float | None = None
    least: float | None = None

    @property
    def title(self) -> str:
        return f"{self.name}, {self.direction}" if self.direction else self.name

    @property
    def shape(self) -> str:
        sizes = self.sizes.items()
        return " ".join(k if v is True else f"{k}{v}" if len(k) == 1 else f"{k} {v:,}" for k, v in sizes)

    def make(self) -> Pair:
        return self.family(np.random.default_rng(0), **self.sizes)


def rows(
    name: str,
    family: Callable[..., Pair],
    *,
    most: float | tuple[float | None, float | None] | None = None,
    least: float | None = None,
    **sizes: Any,
) -> list[Row]:
    """One row; two, forward and forward + backward (each with its ``most``), where the family has both."""
    if "backward" not in inspect.signature(family).parameters:
        return [Row(name, "", family, sizes, most, least)]
    forward, both = most if isinstance(most, tuple) else (most, most)
    return [
        Row(name, "forward", partial(family, backward=False), sizes, forward, least),
        Row(name, "forward + backward", partial(family, backward=True), sizes, both, least),
    ]


lstm, gru = partial(recurrent, cell="lstm"), partial(recurrent, cell="gru")
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

SUITES: dict[str, list[Row]] = {
    "gemm": [
        *rows("matmul", matmul, M=2048, N=2048, K=2048, least=0.90),
        *rows("matmul", matmul, M=512, N=512, K=512, least=0.85),
        *rows("matmul", matmul, M=64, N=4096, K=9216, least=0.80),
        *rows("matmul, gradient of x", matmul, M=64, N=9216, K=4096, transpose_b=True),
        *rows("matmul, gradient of weight", matmul, M=9216, N=4096, K=64, transpose_a=True),
        *rows("matmul, LSTM input", matmul, M=2500, N=512, K=128),
        *rows("matmul, LSTM gradient of x", matmul, M=2500, N=128, K=512, transpose_b=True),
        *rows("matmul, LSTM gradient of weight", matmul, M=128, N=512, K=2500, transpose_a=True),
        *rows("matmul, LSTM step", matmul, M=50, N=2048, K=512),
        *rows("matmul, LSTM step", matmul, M=1, N=2048, K=512),
    ],
    "recurrent": [
        *rows("LSTM", lstm, T=50, N=50, D=128, H=128, layers=2, most=(None, 0.85)),
        *rows("LSTM", lstm, T=50, N=64, D=512, H=512, most=(None, 0.95)),
        *rows("LSTM", lstm, T=25, N=1, D=64, H=100, most=(None, 0.45)),
        *rows("LSTM", lstm, T=100, N=16, D=256, H=256),
        *rows("GRU", gru, T=50, N=50, D=128, H=128),
        *rows("LSTM step", recurrent_step, N=1, D=64, H=100, most=0.25),
        *rows("LSTM step", recurrent_step, N=1, D=512, H=512),
        *rows("LSTM step", recurrent_step, N=64, D=512, H=512),
    ],
    "conv": [
        *rows("conv 3x3", conv2d, N=1, H=56, C=256, F=256, K=3, padding=1, least=0.40),
        *rows("conv 3x3", conv2d, N=8, H=56, C=256, F=256, K=3, padding=1, least=0.40),
        *rows("conv 3x3", conv2d, N=1, H=56, C=64, F=64, K=3, padding=1),
        *rows("conv 3x3", conv2d, N=8, H=56, C=64, F=64, K=3, padding=1),
        *rows("conv 1x1", conv2d, N=1, H=56, C=256, F=64, K=1),
        *rows("conv 1x1", conv2d, N=8, H=56, C=256, F=64, K=1),
        *rows("conv 5x5", conv2d, N=1, H=27, C=96, F=256, K=5, padding=2),
        *rows("conv 5x5", conv2d, N=8, H=27, C=96, F=256, K=5, padding=2),
        *rows("conv 11x11, first layer", conv2d, N=1, H=227, C=3, F=96, K=11, stride=4),
        *rows("conv 11x11, first layer", conv2d, N=8, H=227, C=3, F=96, K=11, stride=4),
        *rows("conv 3x3, depthwise", conv2d, N=8, H=56, C=128, F=128, K=3, padding=1, groups=128),
    ],
    "pool": [
        *rows("max pool 3x3", max_pool, N=32, H=55, C=96, K=3, stride=2),
        *rows("max pool 2x2", max_pool, N=8, H=224, C=64, K=2, stride=2),
        *rows("max pool 3x3", max_pool, N=1, H=112, C=64, K=3, stride=2),
        *rows("average pool 2x2", avg_pool, N=32, H=28, C=256, K=2, stride=2),
        *rows("average pool 7x7", avg_pool, N=64, H=7, C=2048, K=7, stride=1),
    ],
    "attention": [
        *rows("attention", attention, N=8, heads=8, T=256, d=64, causal=True),
        *rows("attention", attention, N=2, heads=12, T=1024, d=64, causal=True),
        *rows("attention", attention, N=1, heads=8, T=4096, d=64),
    ],
    "softmax": [*rows("softmax cross-entropy", softmax_cross_entropy, N=4096, K=10000)],
    "optimizer": [
        *rows("SGD, momentum", sgd, parameters=10**7),
        *rows("RMSProp", rmsprop, parameters=10**7),
        *rows("Adam", adam, parameters=10**7),
    ],
    "train": [
        *rows("characters, training step", train_chars, T=50, N=50, hidden=128, layers=2, V=65, most=1 / 1.4),
        *rows("characters, training step", train_chars, T=50, N=50, hidden=512, layers=2, V=65),
        *rows("characters, sampling", sample_chars, hidden=512, layers=2, V=65, length=200, most=1 / 10),
    ],
}
