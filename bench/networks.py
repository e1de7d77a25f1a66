"""Whole networks as a plain `Sequential`, each in lec7's layers and in PyTorch's, with the same weights.

A training step is all of it: forward, loss, backward, update; lec7's also takes the gradient's norm, which
`Trainer` always reports.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from pair import Array, Closure, Data, Pair, as_arrays, no_grad, normal, tensors
from torch import nn
from torch.nn import functional

from lec7 import layers, losses, optimizers
from lec7.layers import Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, Sequential
from lec7.summary import summary
from lec7.training import Trainer

Rng = np.random.Generator

TOLERANCE = 1e-4  # each layer passes on the errors of those before it
# Where rounding decides which of two almost equal numbers a max pool takes, or whether ReLU lets one through,
# all gradients below differ: by up to 8e-3 in AlexNet and VGG16, where PyTorch's two formats differ too.
CHANGE_TOLERANCE = 2e-2

# --- the networks -------------------------------------------------------------------------------------------


def alexnet(rng: Rng) -> Sequential:
    """Krizhevsky, Sutskever, Hinton 2012, without groups; alpha is the paper's times the window's size."""
    conv, linear = partial(Conv2d, rng=rng, activation="relu"), partial(Linear, rng=rng)
    norm = partial(layers.LocalResponseNorm, size=5, alpha=5e-4, beta=0.75, k=2.0)
    return Sequential(
        conv(3, 96, 11, stride=4),
        norm(),
        MaxPool2d(3, stride=2),
        conv(96, 256, 5, padding=2),
        norm(),
        MaxPool2d(3, stride=2),
        conv(256, 384, 3, padding=1),
        conv(384, 384, 3, padding=1),
        conv(384, 256, 3, padding=1),
        MaxPool2d(3, stride=2),
        Flatten(),
        linear(6 * 6 * 256, 4096, activation="relu"),
        Dropout(0.5, rng=rng),
        linear(4096, 4096, activation="relu"),
        Dropout(0.5, rng=rng),
        linear(4096, 1000),
    )


def torch_alexnet() -> nn.Sequential:
    relu = partial(nn.ReLU, inplace=True)
    norm = partial(nn.LocalResponseNorm, 5, alpha=5e-4, beta=0.75, k=2.0)
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, stride=4), relu()),
        norm(),
        nn.MaxPool2d(3, stride=2),
        *(nn.Conv2d(96, 256, 5, padding=2), relu()),
        norm(),
        nn.MaxPool2d(3, stride=2),
        *(nn.Conv2d(256, 384, 3, padding=1), relu()),
        *(nn.Conv2d(384, 384, 3, padding=1), relu()),
        *(nn.Conv2d(384, 256, 3, padding=1), relu()),
        nn.MaxPool2d(3, stride=2),
        nn.Flatten(),
        *(nn.Linear(6 * 6 * 256, 4096), relu(), nn.Dropout(0.5)),
        *(nn.Linear(4096, 4096), relu(), nn.Dropout(0.5)),
        nn.Linear(4096, 1000),
    )


VGG16_STAGES = (64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)


def vgg16(rng: Rng) -> Sequential:
    """Simonyan, Zisserman 2015, table 1, column D."""
    linear = partial(Linear, rng=rng)
    stack: list[Layer] = []
    channels = 3
    for stage in VGG16_STAGES:
        for filters in stage:
            stack.append(Conv2d(channels, filters, 3, padding=1, rng=rng, activation="relu"))
            channels = filters
        stack.append(MaxPool2d(2, stride=2))
    return Sequential(
        *stack,
        Flatten(),
        linear(7 * 7 * 512, 4096, activation="relu"),
        Dropout(0.5, rng=rng),
        linear(4096, 4096, activation="relu"),
        Dropout(0.5, rng=rng),
        linear(4096, 1000),
    )


def torch_vgg16() -> nn.Sequential:
    relu = partial(nn.ReLU, inplace=True)
    stack: list[nn.Module] = []
    channels = 3
    for stage in VGG16_STAGES:
        for filters in stage:
            stack += [nn.Conv2d(channels, filters, 3, padding=1), relu()]
            channels = filters
        stack.append(nn.MaxPool2d(2, stride=2))
    return nn.Sequential(
        *stack,
        nn.Flatten(),
        *(nn.Linear(7 * 7 * 512, 4096), relu(), nn.Dropout(0.5)),
        *(nn.Linear(4096, 4096), relu(), nn.Dropout(0.5)),
        nn.Linear(4096, 1000),
    )


def lenet5(rng: Rng) -> Sequential:
    """LeCun, Bottou, Bengio, Haffner 1998, section II.B, with today's ReLU and max pooling."""
    conv, linear = partial(Conv2d, rng=rng, activation="relu"), partial(Linear, rng=rng)
    return Sequential(
        conv(1, 6, 5, padding=2),
        MaxPool2d(2, stride=2),
        conv(6, 16, 5),
        MaxPool2d(2, stride=2),
        Flatten(),
        linear(5 * 5 * 16, 120, activation="relu"),
        linear(120, 84, activation="relu"),
        linear(84, 10),
    )


def torch_lenet5() -> nn.Sequential:
    relu = partial(nn.ReLU, inplace=True)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), relu()),
        nn.MaxPool2d(2, stride=2),
        *(nn.Conv2d(6, 16, 5), relu()),
        nn.MaxPool2d(2, stride=2),
        nn.Flatten(),
        *(nn.Linear(5 * 5 * 16, 120), relu()),
        *(nn.Linear(120, 84), relu()),
        nn.Linear(84, 10),
    )


@dataclass(frozen=True, kw_only=True)
class Network:
    """``channels``: of the images that are flattened, whose order differs; rules with the learning rate."""

    build: Callable[[Rng], Sequential]
    build_torch: Callable[[], nn.Sequential]
    image: tuple[int, int, int]
    classes: int
    channels: int
    lr: float
    rule: Callable[[], optimizers.Optimizer]
    torch_rule: Callable[..., torch.optim.Optimizer]

    def batch(self, rng: Rng, N: int) -> tuple[Array, Array]:
        return normal(rng, N, *self.image), rng.integers(self.classes, size=N)

    def trainer(self, model: Sequential, rng: Rng) -> Trainer:
        return Trainer(model, self.rule(), losses.softmax_cross_entropy, rng=rng, schedule=self.lr)


ALEXNET = Network(
    build=alexnet,
    build_torch=torch_alexnet,
    image=(227, 227, 3),
    classes=1000,
    channels=256,
    lr=1e-3,
    rule=lambda: optimizers.SGD(momentum=0.9),
    torch_rule=partial(torch.optim.SGD, momentum=0.9, fused=True),
)
VGG16 = Network(
    build=vgg16,
    build_torch=torch_vgg16,
    image=(224, 224, 3),
    classes=1000,
    channels=512,
    lr=1e-4,
    rule=optimizers.SGD,
    torch_rule=partial(torch.optim.SGD, fused=True),
)
LENET5 = Network(
    build=lenet5,
    build_torch=torch_lenet5,
    image=(28, 28, 1),
    classes=10,
    channels=16,
    lr=1e-3,
    rule=optimizers.Adam,
    torch_rule=partial(torch.optim.Adam, fused=True),
)

# --- the rows -----------------------------------------------------------------------------------------------

FORMATS = torch.contiguous_format, torch.channels_last


def torch_parameters(network: Network, model: Sequential) -> list[Array]:
    """A network's parameters as PyTorch has them: filters (F, C, KH, KW), matrices (out, in)."""
    children = list(model.children.values())
    flat = next(i for i, layer in enumerate(children) if isinstance(layer, Flatten))
    found = []
    for name, value in zip(model.params, as_arrays([*model.params.values()]), strict=True):
        if name == f"{flat + 1}.weight":  # its inputs are (H, W, C) here, (C, H, W) there
            places = value.reshape(-1, network.channels, value.shape[1])
            value = places.transpose(1, 0, 2).reshape(value.shape)
        found.append(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T)
    return found


def torch_networks(data: Data, network: Network, model: Sequential) -> list[nn.Sequential]:
    """The network in PyTorch with the weights of lec7's, in each memory format."""
    module = data.module(network.build_torch())
    with torch.no_grad():
        ours = torch_parameters(network, model)
        for parameter, value in zip(module.parameters(), ours, strict=True):
            parameter.copy_(torch.from_numpy(value))
    return [module, copy.deepcopy(module).to(memory_format=torch.channels_last)]


def torch_images(x: Array | torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    return tensors(x)[0].movedim(-1, 1).clone(memory_format=memory_format)


def torch_training_step(
    network: Network, module: nn.Sequential, images: torch.Tensor, labels: torch.Tensor
) -> Closure:
    rule = network.torch_rule(module.parameters(), lr=network.lr)
    module.train()

    def step() -> Sequence[float]:
        rule.zero_grad()
        loss = functional.cross_entropy(module(images), labels)
        loss.backward()
        rule.step()
        return (loss.item(),)

    return step


def changes(step: Closure, layers: Iterable[Any], parameters: Callable[[], list[Array]]) -> Closure:
    """A step without dropout, which returns its loss and by how much it changed each parameter."""
    dropouts = [layer for layer in layers if isinstance(layer, Dropout | nn.Dropout)]

    def compared() -> Sequence[Any]:
        before = [a.copy() for a in parameters()]
        rates = [layer.p for layer in dropouts]
        for layer in dropouts:
            layer.p = 0.0
        (loss,) = step()
        for layer, p in zip(dropouts, rates, strict=True):
            layer.p = p
        return (loss, *(after - a for a, after in zip(before, parameters(), strict=True)))

    return compared


def flops(model: Sequential, N: int, network: Network) -> int:
    return N * sum(row.flops for row in summary(model, (1, *network.image)))


def inference(data: Data, *, network: Network, N: int) -> Pair:
    model = network.build(data.rng)
    work = flops(model, N, network)
    model.to(data.device.ours)
    x = data.array(network.batch(data.rng, N)[0])

    def theirs(module: nn.Sequential, images: torch.Tensor) -> Closure:
        module.eval()
        return no_grad(lambda: (module(images),))

    modules = torch_networks(data, network, model)
    return Pair(
        ours=lambda: (model.forward(x)[0],),
        theirs=[theirs(m, torch_images(x, f)) for m, f in zip(modules, FORMATS, strict=True)],
        names="y",
        flops=work,
        amount=N,
        unit="images/s",
        tolerance=TOLERANCE,
    )


def training_step(data: Data, *, network: Network, N: int) -> Pair:
    model = network.build(data.rng)
    work = flops(model, N, network)
    model.to(data.device.ours)
    x, labels = (data.array(a) for a in network.batch(data.rng, N))
    modules = torch_networks(data, network, model)
    trainer = network.trainer(model, data.rng)

    def ours() -> Sequence[float]:
        return (trainer.step(x, labels).loss,)

    theirs = [
        torch_training_step(network, module, torch_images(x, memory_format), *tensors(labels))
        for module, memory_format in zip(modules, FORMATS, strict=True)
    ]
    return Pair(
        ours=ours,
        theirs=theirs,
        compare=(
            changes(ours, model.children.values(), lambda: torch_parameters(network, model)),
            *(
                changes(step, module, lambda module=module: as_arrays([*module.parameters()]))
                for step, module in zip(theirs, modules, strict=True)
            ),
        ),
        names="loss " + " ".join(f"change_of_{name}" for name in model.params),
        flops=3 * work,
        amount=N,
        unit="images/s",
        tolerance=CHANGE_TOLERANCE,
    )
