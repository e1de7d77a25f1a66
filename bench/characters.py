"""The character LSTM of `lec7 train chars`: training and sampling."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from pair import Array, Data, Pair, as_arrays, copy_cell, no_grad, tensors
from torch.nn import functional

from lec7 import losses, optimizers
from lec7.models.char_lm import CharLM
from lec7.training import Trainer

LR = 2e-3
CLIP = 0.1  # it acts


class TorchCharLM(torch.nn.Module):
    """The network of `lec7 train chars`, whose embedding is as wide as its LSTM here."""

    def __init__(self, V: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(V, hidden)
        self.lstm = torch.nn.LSTM(hidden, hidden, layers)
        self.output = torch.nn.Linear(hidden, V)
        for *_, second_bias in self.lstm.all_weights:
            torch.nn.init.zeros_(second_bias).requires_grad_(False)  # it would count twice in the norm

    def copy(self, model: CharLM) -> None:
        """Take the weights of lec7's."""
        output = model.output.params
        table, weight, bias = as_arrays([model.embedding.params["weight"], output["weight"], output["bias"]])
        with torch.no_grad():
            self.embedding.weight.copy_(torch.from_numpy(table))
            self.output.weight.copy_(torch.from_numpy(weight.T))
            self.output.bias.copy_(torch.from_numpy(bias))
        for cell, parameters in zip(model.cells, self.lstm.all_weights, strict=True):
            copy_cell("lstm", [cell.params[k] for k in ("weight_x", "weight_h", "bias")], *parameters)


def char_lm(rng: np.random.Generator, V: int, hidden: int, layers: int) -> CharLM:
    return CharLM(V, rng=rng, layers=layers, hidden=hidden, embedding=hidden)


def training_step(model: CharLM, rng: np.random.Generator) -> Callable[[Array, Array], Sequence[float]]:
    """A whole step from tokens and labels, the state carried on, gradients clipped, Adam: loss, norm."""
    trainer = Trainer(model, optimizers.Adam(), losses.softmax_cross_entropy, rng=rng, schedule=LR, clip=CLIP)

    def step(tokens: Array, labels: Array) -> Sequence[float]:
        result = trainer.step(tokens, labels)
        return result.loss, result.grad_norm

    return step


def torch_training_step(model: TorchCharLM) -> Callable[[torch.Tensor, torch.Tensor], Sequence[float]]:
    adam = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    state = None

    def step(tokens: torch.Tensor, labels: torch.Tensor) -> Sequence[float]:
        nonlocal state
        hs, state = model.lstm(model.embedding(tokens), state)
        state = tuple(s.detach() for s in state)
        loss = functional.cross_entropy(model.output(hs).flatten(0, 1), labels.flatten())
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adam.step()
        return loss.item(), norm.item()

    return step


def train_chars(data: Data, *, T: int, N: int, hidden: int, layers: int, V: int) -> Pair:
    model = char_lm(data.rng, V, hidden, layers).to(data.device.ours)
    torch_model = data.module(TorchCharLM(V, hidden, layers))
    torch_model.copy(model)
    ours, theirs = training_step(model, data.rng), torch_training_step(torch_model)
    batches = [tuple(map(data.array, data.rng.integers(V, size=(2, T, N), dtype=np.int32))) for _ in range(8)]
    torch_batches = [[t.long() for t in tensors(*batch)] for batch in batches]
    ours_batches, theirs_batches = itertools.cycle(batches), itertools.cycle(torch_batches)
    products = sum(2 * T * N * 4 * hidden * 2 * hidden for _ in range(layers)) + 2 * T * N * hidden * V
    return Pair(
        ours=lambda: ours(*next(ours_batches)),
        theirs=[lambda: theirs(*next(theirs_batches))],
        names="loss grad_norm",
        flops=3 * products,
        amount=T * N,
        unit="chars/s",
        calls=3,
        tolerance=1e-4,  # PyTorch adds up the squares of the gradient's norm in float32
    )


def sample_chars(data: Data, *, hidden: int, layers: int, V: int, length: int) -> Pair:
    """Text drawn character by character; PyTorch's loop of LSTMCell draws by the same Gumbel-max trick."""
    rng, device = data.rng, data.device.theirs
    model = char_lm(rng, V, hidden, layers).to(data.device.ours)
    torch_model = data.module(TorchCharLM(V, hidden, layers))
    torch_model.copy(model)
    cells = [data.module(torch.nn.LSTMCell(hidden, hidden)) for _ in range(layers)]
    for cell, parameters in zip(cells, torch_model.lstm.all_weights, strict=True):
        cell.load_state_dict(dict(zip(cell.state_dict(), parameters, strict=True)))
    prime = rng.integers(V, size=1, dtype=np.int32)

    def ours(temperature: float) -> Sequence[Array]:
        tokens = model.generate(prime, length=length, temperature=temperature, rng=rng)
        return (np.fromiter(tokens, np.int64),)

    def theirs(temperature: float) -> Sequence[Array]:
        noise = torch.from_numpy(temperature * rng.gumbel(size=(length, V)).astype(np.float32)).to(device)
        states = [(torch.zeros(1, hidden, device=device),) * 2 for _ in cells]
        token, tokens = torch.from_numpy(prime).to(device), []
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
