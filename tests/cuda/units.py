"""Units for tests of the cuda backend: of every kind, with their tensors; and the composed primitives of the same backend."""

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from fused_preact.backends import register
from fused_preact.backends.records import Case, Conv, Layer, Unit, allows_tf32
from fused_preact.ops import unit as composed
from fused_preact.ops.unit import Needs

C, W = 32, 8
FLAT, WINDOW = Conv(), Conv(padding=(1, 1))
STRIDED_FLAT, STRIDED = Conv((2, 2)), Conv((2, 2), (1, 1))


class Kind(NamedTuple):
    """out: output channels of the layers, whose kernels are those of their padding."""

    unit: Unit
    out: tuple[int, ...]


def _kind(out: tuple[int, ...], convs: tuple[Conv, ...], bare: bool = False, **shortcut: object) -> Kind:
    return Kind(Unit(tuple(Layer(conv, norm=i > 0 or not bare, relu=i > 0 or not bare) for i, conv in enumerate(convs)), **shortcut), out)


THREE, TWO = (W, W, C), (C, C)
KINDS = {
    "bottleneck": _kind(THREE, (FLAT, WINDOW, FLAT)),
    "transition": _kind((16, 16, 64), (FLAT, STRIDED, FLAT), shortcut="projection", shared=True, projection=STRIDED_FLAT),
    "cifar-transition": _kind((16, 16, 64), (STRIDED_FLAT, WINDOW, FLAT), shortcut="projection", shared=True, projection=STRIDED_FLAT),
    "branch-projection": _kind((16, 16, 64), (FLAT, STRIDED, FLAT), shortcut="projection", projection=STRIDED_FLAT),
    "widening": _kind((C, C, 64), (FLAT, WINDOW, FLAT), shortcut="projection", shared=True, projection=FLAT),
    "bare-bottleneck": _kind((W, W, 64), (FLAT, WINDOW, FLAT), bare=True, shortcut="projection", projection=FLAT),
    "shared-bottleneck": _kind(THREE, (FLAT, WINDOW, FLAT), shared=True),
    "block": _kind(TWO, (WINDOW, WINDOW)),
    "block-shared": _kind(TWO, (WINDOW, WINDOW), shared=True),
    "block-bare": _kind(TWO, (WINDOW, WINDOW), bare=True),
    "block-transition": _kind((48, 48), (STRIDED, WINDOW), shortcut="projection", shared=True, projection=STRIDED_FLAT),
}


class Tensors(NamedTuple):
    x: Tensor
    dy: Tensor
    projection: Tensor | None
    params: list[Tensor | None]
    buffers: list[Tensor]


def tensors(kind: Kind, dtype: torch.dtype = torch.bfloat16, shape: tuple[int, int, int] = (2, 9, 7), c: int = C) -> Tensors:
    """shape: of x, without its channels."""
    n, height, width = shape
    x, params, buffers, entering = activation((n, c, height, width), dtype), [], [], c
    for layer, k in zip(kind.unit.layers, kind.out, strict=True):
        if layer.norm and (layer.update or not layer.batch):
            buffers += [torch.randn(entering), torch.rand(entering) + 0.5, torch.tensor(3)]
        affine = [torch.rand(entering) + 0.5, torch.randn(entering) / 2] if layer.norm else [None, None]
        params += [*affine, weight(k, entering, layer.conv, dtype)]
        height, width = (1 + (size - 1) // stride for size, stride in zip((height, width), layer.conv.stride, strict=True))
        entering = k
    projection = weight(entering, c, kind.unit.projection, dtype) if kind.unit.projection else None
    return Tensors(x, activation((n, entering, height, width), dtype), projection, params, buffers)


def activation(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def weight(k: int, c: int, conv: Conv, dtype: torch.dtype) -> Tensor:
    size = 1 + 2 * conv.padding[0]
    return (torch.randn(k, c, size, size) / (c * size * size) ** 0.5).to(dtype)


def case_of(kind: Kind, t: Tensors) -> Case:
    weights = tuple(w.shape for w in (*t.params[2::3], t.projection) if w is not None)
    first = t.params[2]
    return Case(t.x.device.type, t.x.dtype, t.x.shape, first.shape, first.dtype, kind.unit.layers[0].conv, weights, allows_tf32(t.x.dtype))


def register_composed(two_dgrads: bool) -> str:
    """The name of a backend with the primitives of the cuda backend, and no units."""
    from fused_preact.backends import cuda

    primitives = {name: function for name, function in vars(cuda).items() if name.startswith("bn_")}
    name = f"cuda, composed, {two_dgrads}"
    register(name, SimpleNamespace(**primitives, unavailable=cuda.unavailable, why_not=cuda.why_not, TWO_DGRADS=two_dgrads))
    return name


# In autograd's Functions nobody differentiates: primitives are called, and not their operators.
@torch.no_grad()
def fwd(backend: str, kind: Kind, t: Tensors, keep: bool = True, stats: Tensor | None = None, want_stats: bool = True) -> tuple:
    return composed.unit_fwd(kind.unit, t.x, stats, t.projection, t.params, t.buffers, keep, want_stats, backend)


@torch.no_grad()
def bwd(backend: str, kind: Kind, t: Tensors, bns: Tensor, inner: tuple[Tensor, ...], needs: Needs | None = None) -> tuple:
    # Backward finds gamma and beta in bns.
    params = [p if i % 3 == 2 else None for i, p in enumerate(t.params)]
    return composed.unit_bwd(kind.unit, t.dy, t.x, bns, inner, t.projection, params, needs or all_of(kind), backend)


def plan_of(kind: Kind, t: Tensors) -> object:
    from fused_preact.backends.cuda.unit_plan import plan

    weights = tuple((w.shape, w.stride()) for w in t.params[2::3])
    return plan(kind.unit, t.x.dtype, t.x.shape, weights, None, True, None)


def all_of(kind: Kind) -> Needs:
    layers = kind.unit.layers
    return Needs(True, kind.unit.projection is not None, tuple(layer.norm for layer in layers), (True,) * len(layers))


def copies(t: Tensors) -> Tensors:
    """With buffers of its own."""
    return t._replace(buffers=[b.clone() for b in t.buffers])
