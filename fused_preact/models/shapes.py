"""Every distinct BN -> ReLU -> conv layer of ResNet-164, 1001 and 200: the one table that benchmarks and tests draw shapes from."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from fused_preact.models.architectures import ARCHITECTURES, Architecture, UnitPlan

NETWORKS = ("preact_resnet164", "preact_resnet1001", "preact_resnet200")


class Layer(NamedTuple):
    """A convolution behind a BN and a ReLU, on `size` x `size` pixels, padded by `kernel // 2`."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    size: int

    @property
    def padding(self) -> int:
        return self.kernel // 2


class LayerShape(NamedTuple):
    """A layer, and how often each network has it; networks without it are left out."""

    layer: Layer
    networks: dict[str, int]

    @property
    def id(self) -> str:
        """Such as "64x256-1x1-s1-32px": channels in x out, kernel, stride, pixels."""
        in_channels, out_channels, kernel, stride, size = self.layer
        return f"{in_channels}x{out_channels}-{kernel}x{kernel}-s{stride}-{size}px"


def layers(architecture: Architecture) -> Iterator[Layer]:
    """All BN -> ReLU -> conv layers of a network at its own image size, in the order of its forward pass.

    A projection counts if it reads the shared activation. The stem's convolution and one without activation in front do not.
    """
    size = architecture.image_size if architecture.cifar else architecture.image_size // 4
    for plans in architecture.stages():
        for plan in plans:
            yield from _unit(plan, architecture, size)
            size //= plan.stride


def layer_shapes(networks: tuple[str, ...] = NETWORKS) -> tuple[LayerShape, ...]:
    """The table, sorted by pixels (most first), then by channels, kernel and stride."""
    counts = {name: Counter(layers(ARCHITECTURES[name])) for name in networks}
    distinct = sorted(set().union(*counts.values()), key=lambda layer: (-layer.size, layer))
    return tuple(LayerShape(layer, {name: count[layer] for name, count in counts.items() if layer in count}) for layer in distinct)


def _unit(plan: UnitPlan, architecture: Architecture, size: int) -> Iterator[Layer]:
    c, out = plan.channels, plan.channels * architecture.expansion
    if plan.shortcut == "projection" and plan.preact == "shared":
        yield Layer(plan.in_channels, out, 1, plan.stride, size)
    if not architecture.bottleneck:
        shapes = ((plan.in_channels, c, 3, plan.stride), (c, c, 3, 1))
    elif architecture.stride_at == "1x1":
        shapes = ((plan.in_channels, c, 1, plan.stride), (c, c, 3, 1), (c, out, 1, 1))
    else:
        shapes = ((plan.in_channels, c, 1, 1), (c, c, 3, plan.stride), (c, out, 1, 1))
    for index, (in_channels, out_channels, kernel, stride) in enumerate(shapes):
        if index > 0 or plan.preact != "none":
            yield Layer(in_channels, out_channels, kernel, stride, size)
        size //= stride


LAYER_SHAPES = layer_shapes()
