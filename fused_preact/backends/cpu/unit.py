"""Whole residual units in one native call each way; arguments and results as in ops/unit.py."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_preact import _cpu
from fused_preact.backends.cpu.conv import geometry
from fused_preact.backends.cpu.launch import DTYPES, Output, address, nhwc, vector, with_workspace
from fused_preact.backends.layout import empty, empty_wide, is_channels_last, memory_format, tiles, wide
from fused_preact.backends.records import Unit

Shape = tuple[int, ...]


class Plan:
    """The native record of a unit on tensors of given shapes, and the shapes and formats of what its layers give."""

    def __init__(
        self, unit: Unit, dtype: torch.dtype, x: Shape, weights: tuple[tuple, ...], projection: tuple | None, channels_last: bool
    ) -> None:
        h, layers, self.shapes, self.formats = x, [], [], []
        # Tensors without memory: the input and the weight of a layer decide the format of its output.
        like = torch.empty(x, device="meta", memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        for layer, weight in zip(unit.layers, weights, strict=True):
            conv, h = geometry(h, *weight, *layer.conv)
            momentum = -1.0 if layer.momentum is None else layer.momentum
            layers.append((conv, layer.relu, layer.norm, layer.batch, layer.update, momentum, layer.eps))
            self.shapes.append(h)
            own = torch.empty_strided(*weight, device="meta")
            self.formats.append(memory_format(like, own))
            like = empty(h, dtype, like, own)
        projected = None if projection is None else geometry(x, *projection, *unit.projection)[0]
        self.native = _cpu.Unit(DTYPES[dtype], layers, unit.shared, projected, tiles(x), tiles(h))
        self.channels = [shape[0][1] for shape in weights]
        self.stats_shape = (tiles(h), 3, h[1])
        self.bns_width = sum(c for c, layer in zip(self.channels, unit.layers, strict=True) if layer.norm)


plan = functools.lru_cache(maxsize=4096)(Plan)


def _plan(unit: Unit, x: Tensor, weights: Sequence[Tensor], projection: Tensor | None) -> Plan:
    key = tuple([(w.shape, w.stride()) for w in weights])
    return plan(unit, x.dtype, x.shape, key, None if projection is None else (projection.shape, projection.stride()), is_channels_last(x))


def unit_fwd(
    unit: Unit,
    x: Tensor,
    stats: Tensor | None,
    projection: Tensor | None,
    params: Sequence[Tensor | None],
    buffers: Sequence[Tensor],
    keep: bool,
    want_stats: bool,
) -> tuple[Tensor, Tensor | None, Tensor, tuple[Tensor, ...]]:
    made, dense, last = _plan(unit, x, params[2::3], projection), nhwc(x), len(unit.layers) - 1
    outputs = [Output(s, x.dtype, made.formats[i]) if keep or i == last else None for i, s in enumerate(made.shapes)]
    y, inner = outputs[-1], outputs[:-1]
    y_stats = empty_wide(made.stats_shape, x) if want_stats else None
    bns, stats = empty_wide((5, made.bns_width), x), None if stats is None else stats.contiguous()
    with _Layers(unit, params, buffers, wide(x.dtype)) as layers:
        with_workspace(
            made.native.fwd, False, dense.data_ptr(), address(stats), address(projection), layers, [o.address() if o else 0 for o in inner],
            bns.data_ptr(), y.address(), address(y_stats),
        )  # fmt: skip
    return y.result(), y_stats, bns, tuple(o.result() for o in inner) if keep else ()


def unit_recompute(unit: Unit, x: Tensor, bns: Tensor, projection: Tensor | None, params: Sequence[Tensor | None]) -> Tensor:
    weights = params[2::3]
    made, dense, bns = _plan(unit, x, weights, projection), nhwc(x), bns.contiguous()
    y = Output(made.shapes[-1], x.dtype, made.formats[-1])
    layers = [pointer for w in weights for pointer in (0, 0, w.data_ptr(), 0, 0, 0)]
    inner = [0] * (len(weights) - 1)
    with_workspace(
        made.native.fwd, True, dense.data_ptr(), 0, address(projection), layers, inner, bns.data_ptr(), y.address(), 0
    )  # fmt: skip
    return y.result()


def unit_bwd(
    unit: Unit,
    dy: Tensor,
    x: Tensor,
    bns: Tensor,
    inner: Sequence[Tensor],
    projection: Tensor | None,
    params: Sequence[Tensor | None],
    needs: Any,
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    weights = [_own_strides(w) for w in params[2::3]]
    projection = None if projection is None else _own_strides(projection)
    made = _plan(unit, x, weights, projection)
    dense, dy, bns, inner = nhwc(x), nhwc(dy, x.dtype), bns.contiguous(), [nhwc(t) for t in inner]
    dx = Output(x.shape, x.dtype, memory_format(x, weights[0])) if needs.x else None
    dprojection = torch.empty_like(projection) if needs.projection else None
    dgamma, dbeta = (
        [bns.new_empty(c) if wanted else None for c, wanted in zip(made.channels, needs.affine, strict=True)] for _ in range(2)
    )
    dweight = [torch.empty_like(w) if wanted else None for w, wanted in zip(weights, needs.weight, strict=True)]
    with_workspace(
        made.native.bwd, dy.data_ptr(), dense.data_ptr(), bns.data_ptr(), address(projection), [t.data_ptr() for t in inner],
        [w.data_ptr() for w in weights], 0 if dx is None else dx.address(), address(dprojection),
        [address(t) for t in dgamma], [address(t) for t in dbeta], [address(t) for t in dweight],
    )  # fmt: skip
    grads = [t for layer in zip(dgamma, dbeta, dweight, strict=True) for t in layer if t is not None]
    return dx and dx.result(), dprojection, grads


def _own_strides(weight: Tensor) -> Tensor:
    """A weight with the strides that its gradient, `empty_like`, will have."""
    if weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last):
        return weight
    fresh = torch.empty_like(weight)
    return weight if fresh.stride() == weight.stride() else fresh.copy_(weight)


class _Layers:
    """The addresses of all layers' parameters and buffers; buffers of another dtype are moved as a copy, and written back."""

    def __init__(self, unit: Unit, params: Sequence[Tensor | None], buffers: Sequence[Tensor], dtype: torch.dtype) -> None:
        self.addresses, self.kept, self.moved, taken = [], [], [], 0
        for i, layer in enumerate(unit.layers):
            gamma, beta, weight = params[3 * i : 3 * i + 3]
            mean = var = tracked = None
            if layer.norm and (layer.update or not layer.batch):
                mean, var, tracked = buffers[taken : taken + 3]
                mean, var, tracked = self._usable(mean, dtype), self._usable(var, dtype), self._usable(tracked, torch.int64)
                taken += 3
            vectors = vector(gamma, dtype), vector(beta, dtype)
            self.kept += [*vectors, mean, var, tracked]
            self.addresses += map(address, (*vectors, weight, mean, var, tracked))

    def _usable(self, buffer: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if buffer is None or (buffer.dtype == dtype and buffer.is_contiguous()):
            return buffer
        copy = buffer.to(dtype).contiguous()
        self.moved.append((buffer, copy))
        return copy

    def __enter__(self) -> list[int]:
        return self.addresses

    def __exit__(self, *error: object) -> None:
        for buffer, copy in self.moved:
            buffer.copy_(copy)
