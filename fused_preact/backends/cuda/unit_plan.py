"""What a whole unit on tensors of given shapes is made of: the native record, and the shapes and formats of what its layers give."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from fused_preact import _cuda
from fused_preact.backends.cuda import environment
from fused_preact.backends.cuda.conv import HALVES, NO_DGRAD, NO_WGRAD, Shape, bwd_plan, fwd_plan, has_taps_last, problem, weight_gradient
from fused_preact.backends.cuda.launch import DTYPES
from fused_preact.backends.cuda.tiles import bn_grid
from fused_preact.backends.layout import conv_out_shape, empty, memory_format, tiles
from fused_preact.backends.records import Case, Conv, Unit

MOST_LAYERS = 3
# What is wanted of a convolution's backward, as `bwd_plan` takes it: both gradients, and each alone.
BWD = (("g", True), ("g", False), ("none", True))


class UnitConv(NamedTuple):
    """A convolution of a unit; x and weight are shapes."""

    name: str
    x: Shape
    weight: Shape
    conv: Conv

    @property
    def y(self) -> Shape:
        return conv_out_shape(self.x, self.weight, *self.conv[:3])


def convolutions(unit: Unit, x: Shape, weights: Sequence[Shape]) -> Iterator[UnitConv]:
    """Of the layers in order, then of the projection; weights too."""
    h = x
    for i, layer in enumerate(unit.layers):
        own = UnitConv(f"layer {i + 1}", h, weights[i], layer.conv)
        h = own.y
        yield own
    if unit.shortcut == "projection":
        yield UnitConv("the projection", x, weights[-1], unit.projection)


def refusal(unit: Unit, case: Case) -> str | None:
    """Why a unit, which the backend takes layer by layer, is composed of them."""
    if unit.shortcut == "pad":
        return "the cuda backend composes units that pad their shortcut"
    if case.weight_dtype != case.dtype or not (case.dtype in HALVES or case.tf32):
        return "the cuda backend composes units whose input and weights are not of one dtype of 16 bits, or float32 where torch allows tf32"
    if len(unit.layers) > MOST_LAYERS or not all(layer.norm for layer in unit.layers[1:]):
        return f"the cuda backend composes units of more than {MOST_LAYERS} layers, or with a norm missing between two"
    if not any(layer.norm for layer in unit.layers):
        return "the cuda backend composes units without a norm"
    if any(conv.groups > 1 for conv in (*(layer.conv for layer in unit.layers), unit.projection or Conv())):
        return "the cuda backend composes units with grouped convolutions"
    own = list(convolutions(unit, case.x, case.weights))
    if min(size for conv in own for size in (*conv.x, *conv.y)) < 1:
        return "the cuda backend composes units of empty activations"
    if (own[-1].y if unit.shortcut == "projection" else case.x) != own[len(unit.layers) - 1].y:
        return "the cuda backend composes units whose shortcut has another shape than their result"
    for conv in own:
        if not all(_has_kernels(conv, case.dtype, device) for device in environment.devices()):
            return f"the cuda backend composes units with a convolution that it has no kernel for, such as {conv.name}"
    return None


def _has_kernels(own: UnitConv, dtype: torch.dtype, device: int | None) -> bool:
    shapes = own.x, own.weight, own.conv[:3]
    both, dgrad, wgrad = (bwd_plan(*shapes, *want, dtype, device) for want in BWD)
    return bool(fwd_plan(*shapes, dtype, device) and both.dgrad and both.wgrad and dgrad.dgrad and wgrad.wgrad)


class Plan:
    """Of a unit. weights and projection: (shape, strides).

    native: `_cuda.Unit`.  shapes, formats: of the outputs of its layers; dx has the format of the first.  fwd_pieces[keep],
    bwd_pieces[kept]: what a workspace holds.
    """

    def __init__(
        self,
        unit: Unit,
        dtype: torch.dtype,
        x: Shape,
        weights: tuple[tuple, ...],
        projection: tuple | None,
        channels_last: bool,
        device: int | None,
    ) -> None:
        weights = [*weights, *([] if projection is None else [projection])]
        # Tensors without memory: the input and the weight of a layer decide the format of its output.
        own = [torch.empty_strided(*weight, device="meta") for weight in weights]
        like = torch.empty(x, device="meta", memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        self.formats, self.shapes, tiled = [], [], []
        for weight, conv in zip(own, convolutions(unit, x, [w.shape for w in own]), strict=True):
            tiled.append(_tiled(conv, dtype, has_taps_last(weight_gradient(weight)), device))
            self.shapes.append(conv.y)
        for i, weight in enumerate(own[: len(unit.layers)]):
            self.formats.append(memory_format(like, weight))
            like = empty(self.shapes[i], dtype, like, weight)
        self.channels = [w.size(1) for w in own[: len(unit.layers)]]
        self.shapes = self.shapes[: len(unit.layers)]
        self.bns_width = sum(c for c, layer in zip(self.channels, unit.layers, strict=True) if layer.norm)
        self.stats_shape = (tiles(self.shapes[-1]), 3, self.shapes[-1][1])
        layers = [
            (
                conv,
                tiles(shape),
                layer.relu,
                layer.norm,
                layer.batch,
                layer.update,
                layer.momentum is None,
                layer.momentum or 0.0,
                layer.eps,
            )
            for conv, shape, layer in zip(tiled, (x, *self.shapes), unit.layers, strict=False)
        ]
        pixels, on = x[0] * x[2] * x[3], environment.device(device)
        grids = (_cuda.Grid(*bn_grid(x[1], pixels, dtype, count, on)) for count in (tiles(x), 0))
        projected = None if projection is None else tiled[-1]
        self.native = _cuda.Unit(
            DTYPES[dtype], layers, unit.shared, projected, tiles(self.shapes[-1]), *grids, two_dgrads(unit, x, own[0].shape, dtype)
        )
        self.fwd_pieces, self.bwd_pieces = (
            [made(kept) for kept in (False, True)] for made in (self.native.fwd_workspace, self.native.bwd_workspace)
        )


plan = functools.lru_cache(maxsize=4096)(Plan)


def two_dgrads(unit: Unit, x: Shape, weight: Shape, dtype: torch.dtype) -> bool:
    """Whether the gradient of x comes from a second dgrad, rather than from g in memory and bn_bwd.

    g is written and read: 2C elements a pixel. A second dgrad reads dy, and what it is deferred by, again: 2K. What else it reads, bn_bwd
    does too. It multiplies once more, which 1x1 convolutions have the time for.
    """
    k, c = weight[:2]
    return k < c and problem(x, weight, *unit.layers[0].conv[:3], dtype).pointwise


def _tiled(own: UnitConv, dtype: torch.dtype, taps_last: bool, device: int | None) -> _cuda.TiledConv:
    shapes = own.x, own.weight, own.conv[:3]
    plans = [bwd_plan(*shapes, *want, dtype, device) for want in BWD]
    both, dgrad, wgrad = ((p.dgrad or NO_DGRAD, p.wgrad or NO_WGRAD) for p in plans)
    return _cuda.TiledConv(*fwd_plan(*shapes, dtype, device), *both, dgrad[0], wgrad[1], taps_last)
