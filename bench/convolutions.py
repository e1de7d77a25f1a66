"""The convolutions of the networks that everyone knows, as rows with targets: a line for each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from pair import Array, Closure, Data, Pair, Row, channels_last, no_grad, rows, tensors, torch_formats

from lec7 import ops


def conv2d(
    data: Data,
    *,
    N: int,
    H: int,
    C: int,
    F: int,
    K: int,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    transposed: bool = False,
    backward: bool,
) -> Pair:
    op = "conv_transpose2d" if transposed else "conv2d"
    forward_op, backward_op = getattr(ops, f"{op}_forward"), getattr(ops, f"{op}_backward")
    torch_op = getattr(torch, op)
    options = {"stride": stride, "padding": padding, "groups": groups}
    x = data.normal(N, H, H, C)
    channels = (F // groups, C) if transposed else (C // groups, F)
    weight = data.normal(K, K, *channels, scale=(K * K * C // groups) ** -0.5)
    bias = data.normal(F)
    y = forward_op(x, weight, bias, **options)
    dy = data.normal(*y.shape)
    (tbias,) = tensors(bias, grad=backward)

    def ours() -> Sequence[Array]:
        y = forward_op(x, weight, bias, **options)
        return (y, *backward_op(dy, x, weight, **options)) if backward else (y,)

    def theirs(tx: torch.Tensor, tw: torch.Tensor, tdy: torch.Tensor) -> Closure:
        def run() -> Sequence[torch.Tensor]:
            y = torch_op(tx, tw, tbias, **options)
            return (y, *torch.autograd.grad(y, (tx, tw, tbias), tdy)) if backward else (y,)

        return run if backward else no_grad(run)

    def align(results: Sequence[torch.Tensor]) -> list[Array]:
        arrays = channels_last(results)
        return [a.transpose(1, 2, 3, 0) if i == 2 else a for i, a in enumerate(arrays)]

    images = torch_formats(x, dy)
    filters = torch_formats(tensors(weight)[0].movedim(-1, 0))
    return Pair(
        ours=ours,
        theirs=[
            theirs(tx.requires_grad_(backward), tw.requires_grad_(backward), tdy)
            for (tx, tdy), (tw,) in zip(images, filters, strict=True)
        ],
        names="y dx dweight dbias" if backward else "y",
        align=align,
        flops=(3 if backward else 1) * 2 * (x if transposed else y).size * weight.size // weight.shape[-1],
    )


# --- the layers of the networks -----------------------------------------------------------------------------


class Layer(NamedTuple):
    """A K x K convolution of (H, H, C) images to F channels; ``padding`` None keeps the size at stride 1."""

    K: int
    C: int
    F: int
    H: int
    stride: int = 1
    padding: int | None = None
    groups: int = 1

    def sizes(self, N: int) -> dict[str, int]:
        """The arguments of ``conv2d``, without those that are the default."""
        padding = self.K // 2 if self.padding is None else self.padding
        options = {"stride": (self.stride, 1), "padding": (padding, 0), "groups": (self.groups, 1)}
        given = {name: value for name, (value, default) in options.items() if value != default}
        return {"N": N, "H": self.H, "C": self.C, "F": self.F, "K": self.K, **given}


def alexnet() -> Iterator[Layer]:
    """Krizhevsky, Sutskever, Hinton 2012, without groups."""
    yield Layer(11, 3, 96, 227, stride=4, padding=0)
    yield Layer(5, 96, 256, 27)
    yield Layer(3, 256, 384, 13)
    yield Layer(3, 384, 384, 13)
    yield Layer(3, 384, 256, 13)


def vgg16() -> Iterator[Layer]:
    """Simonyan, Zisserman 2015, table 1, column D."""
    C = 3
    for H, F, count in (224, 64, 2), (112, 128, 2), (56, 256, 3), (28, 512, 3), (14, 512, 3):
        for _ in range(count):
            yield Layer(3, C, F, H)
            C = F


# H, C, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection
INCEPTIONS = [
    (28, 192, 64, 96, 128, 16, 32, 32),  # 3a
    (28, 256, 128, 128, 192, 32, 96, 64),
    (14, 480, 192, 96, 208, 16, 48, 64),  # 4a
    (14, 512, 160, 112, 224, 24, 64, 64),
    (14, 512, 128, 128, 256, 24, 64, 64),
    (14, 512, 112, 144, 288, 32, 64, 64),
    (14, 528, 256, 160, 320, 32, 128, 128),
    (7, 832, 256, 160, 320, 32, 128, 128),  # 5a
    (7, 832, 384, 192, 384, 48, 128, 128),
]


def googlenet() -> Iterator[Layer]:
    """Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich 2014, table 1."""
    yield Layer(7, 3, 64, 224, stride=2)
    yield Layer(1, 64, 64, 56)
    yield Layer(3, 64, 192, 56)
    for H, C, one, reduce3, three, reduce5, five, projection in INCEPTIONS:
        yield Layer(1, C, one, H)
        yield Layer(1, C, reduce3, H)
        yield Layer(3, reduce3, three, H)
        yield Layer(1, C, reduce5, H)
        yield Layer(5, reduce5, five, H)
        yield Layer(1, C, projection, H)


def resnet50() -> Iterator[Layer]:
    """He, Zhang, Ren, Sun 2016, table 1, halving images in 3x3 convolutions as became usual (v1.5)."""
    yield Layer(7, 3, 64, 224, stride=2)
    C, H = 64, 56
    for width, blocks in (64, 3), (128, 4), (256, 6), (512, 3):
        for block in range(blocks):
            stride = 2 if block == 0 and width > 64 else 1
            yield Layer(1, C, width, H)
            yield Layer(3, width, width, H, stride)
            if block == 0:
                yield Layer(1, C, 4 * width, H, stride)  # the shortcut
            C, H = 4 * width, H // stride
            yield Layer(1, width, C, H)


def lenet5() -> Iterator[Layer]:
    """LeCun, Bottou, Bengio, Haffner 1998, section II.B; its 32 x 32 images are 28 x 28 and a border."""
    yield Layer(5, 1, 6, 28)
    yield Layer(5, 6, 16, 14, padding=0)


def cifar_resnet() -> Iterator[Layer]:
    """He, Zhang, Ren, Sun 2016, section 4.2: the 3x3 inside the stages."""
    yield Layer(3, 16, 16, 32)
    yield Layer(3, 32, 32, 16)
    yield Layer(3, 64, 64, 8)


NETWORKS: dict[str, tuple[Sequence[Layer], Sequence[int]]] = {
    "AlexNet": ([*alexnet()], (1, 8, 16)),
    "VGG16": ([*vgg16()], (1, 8)),
    "GoogLeNet": ([*googlenet()], (1, 8)),
    "ResNet-50": ([*resnet50()], (1, 8)),
    "LeNet-5": ([*lenet5()], (64,)),
    "digits": ([Layer(5, 1, 32, 28)], (64,)),
    "CIFAR": ([*cifar_resnet()], (64,)),
    "depthwise": ([Layer(3, 128, 128, 56, groups=128)], (8,)),
}


# --- the rows -----------------------------------------------------------------------------------------------

#: of the geometric means over all rows
MEAN_TARGETS = {"forward": 0.55, "forward + backward": 0.45}


def targets(layer: Layer) -> tuple[float, float]:
    """The largest ratios lec7 / PyTorch that pass, forward and forward + backward, of a kind of layer."""
    wide = min(layer.C, layer.F) >= 64 and layer.groups == 1
    match layer.K, layer.stride, layer.C:
        case 3, 1, _ if wide and layer.H >= 28:
            return 0.35, 0.35
        case 3, 1, _ if wide:
            return 0.5, 0.5
        case 5, 1, 1:
            return 0.8, 0.3
        case 5, 1, C if C >= 16:
            return 0.5, 0.45
        case (11, 4, 3) | (7, 2, 3):
            return 0.5, 0.3
        case 1, _, _:
            return 0.8, 0.75
    return 1.0, 1.0


def conv_rows() -> list[Row]:
    """Each distinct layer and batch once, named after all networks that have it."""
    users: dict[tuple[Layer, int], list[str]] = {}
    for network, (layers, batches) in NETWORKS.items():
        for layer in dict.fromkeys(layers):
            for N in batches:
                users.setdefault((layer, N), []).append(network)
    made = []
    for (layer, N), networks in users.items():
        stride = f"/{layer.stride}" if layer.stride > 1 else ""
        name = f"conv {layer.K}x{layer.K}{stride}, {' + '.join(networks)}"
        made += rows(name, conv2d, most=targets(layer), **layer.sizes(N))
    return made
