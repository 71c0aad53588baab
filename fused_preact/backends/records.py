"""The plain records that travel between the layers of the code: hashable, made of numbers, shared by all backends."""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

Pair = tuple[int, int]
SHORTCUTS = ("identity", "projection", "pad")


class Conv(NamedTuple):
    """Geometry of a 2-D convolution."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


class Layer(NamedTuple):
    """One `BatchNorm -> ReLU -> conv`, without its tensors.

    norm: False for a bare convolution.  batch: normalise with batch statistics (False: with the running ones, as constants).
    update: move the running statistics.  momentum None: cumulative average.
    """

    conv: Conv = Conv()
    relu: bool = True
    norm: bool = True
    batch: bool = True
    update: bool = True
    momentum: float | None = 0.1
    eps: float = 1e-5


class Unit(NamedTuple):
    """A residual unit, without its tensors: its layers in order and the shortcut around them.

    shortcut: "identity", "projection" (a convolution of geometry `projection`) or "pad" (every stride-th pixel, zero channels
    appended: option A).  shared: the shortcut starts at the first activation instead of at x.
    """

    layers: tuple[Layer, ...]
    shortcut: str = "identity"
    shared: bool = False
    projection: Conv | None = None

    @property
    def pad_stride(self) -> Pair:
        """The stride of a "pad" shortcut: that of all layers together."""
        return (_product(layer.conv.stride[0] for layer in self.layers), _product(layer.conv.stride[1] for layer in self.layers))

    def encode(self) -> tuple[list[int], list[float]]:
        """The unit as numbers: the form in which it enters an operator's schema, and that a tracer can follow."""
        numbers, settings = [SHORTCUTS.index(self.shortcut), int(self.shared), len(self.layers)], []
        for layer in self.layers:
            cumulative = layer.momentum is None
            numbers += [*_flat(layer.conv), int(layer.relu), int(layer.norm), int(layer.batch), int(layer.update), int(cumulative)]
            settings += [0.0 if cumulative else layer.momentum, layer.eps]
        return numbers if self.projection is None else numbers + _flat(self.projection), settings


def decode_unit(numbers: Sequence[int], settings: Sequence[float]) -> Unit:
    """The inverse of `Unit.encode`."""
    return _decode(tuple(numbers), tuple(settings))


@functools.lru_cache(maxsize=4096)
def _decode(numbers: tuple[int, ...], settings: tuple[float, ...]) -> Unit:
    shortcut, shared, depth, *rest = numbers
    layers = []
    for i in range(depth):
        own = rest[12 * i : 12 * (i + 1)]
        relu, norm, batch, update, cumulative = map(bool, own[7:])
        momentum, eps = settings[2 * i : 2 * i + 2]
        layers.append(Layer(_conv(own[:7]), relu, norm, batch, update, None if cumulative else momentum, eps))
    projection = rest[12 * depth :]
    return Unit(tuple(layers), SHORTCUTS[shortcut], bool(shared), _conv(projection) if projection else None)


class Case(NamedTuple):
    """What a backend is asked to run: a layer on x (N, C, H, W), forward and backward; without weight, a norm alone.

    weight_dtype differs from dtype under autocast.  weights, of a whole unit: the shapes of its layers' and of its projection's.
    tf32: whether convolutions may multiply in tf32, as `allows_tf32` said when the layer was asked for.
    """

    device: str
    dtype: torch.dtype
    x: tuple[int, ...]
    weight: tuple[int, ...] | None = None
    weight_dtype: torch.dtype | None = None
    conv: Conv | None = None
    weights: tuple[tuple[int, ...], ...] = ()
    tf32: bool = False


def allows_tf32(dtype: torch.dtype) -> bool:
    """Whether convolutions of `dtype` may multiply in tf32: those of float32, where torch's own would."""
    return dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"


def _flat(conv: Conv) -> list[int]:
    return [*conv.stride, *conv.padding, *conv.dilation, conv.groups]


def _conv(flat: Sequence[int]) -> Conv:
    return Conv(tuple(flat[0:2]), tuple(flat[2:4]), tuple(flat[4:6]), flat[6])


def _product(factors: Iterable[int]) -> int:
    result = 1
    for factor in factors:
        result *= factor
    return result
