"""Whole residual units in one native call each way; arguments and results as in ops/unit.py."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_preact.backends.cuda.bn import float_vector
from fused_preact.backends.cuda.conv import as_its_weight, weight_gradient
from fused_preact.backends.cuda.launch import Tensors, address, launch_at
from fused_preact.backends.cuda.unit_plan import Plan, plan
from fused_preact.backends.layout import empty_wide, is_channels_last
from fused_preact.backends.memory import Output, nhwc
from fused_preact.backends.records import Unit

LAYER_TENSORS = ("gamma", "beta", "weight", "running_mean", "running_var", "num_batches_tracked")
Pieces = list[tuple[str, int, int]]


def _plan(unit: Unit, x: Tensor, weights: Sequence[Tensor], projection: Tensor | None) -> Plan:
    key = tuple([(w.shape, w.stride()) for w in weights])
    projected = None if projection is None else (projection.shape, projection.stride())
    return plan(unit, x.dtype, x.shape, key, projected, is_channels_last(x), x.device.index)


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
    made = _plan(unit, x, params[2::3], projection)
    x, projection, stats = nhwc(x), nhwc(projection), float_vector(stats)
    *inner, y = _outputs(made, x, keep)
    y_stats = empty_wide(made.stats_shape, x) if want_stats else None
    bns = empty_wide((5, made.bns_width), x)
    layers = _LayerTensors(unit, params, buffers)
    _launch_fwd(made, False, x, stats, projection, layers.tensors, inner, bns, y, y_stats)
    layers.put_back()
    return y.get(), y_stats, bns, tuple([t.get() for t in inner])


def unit_recompute(unit: Unit, x: Tensor, bns: Tensor, projection: Tensor | None, params: Sequence[Tensor | None]) -> Tensor:
    made = _plan(unit, x, params[2::3], projection)
    tensors = [t for w in params[2::3] for t in (None, None, nhwc(w), None, None, None)]
    x, (y,) = nhwc(x), _outputs(made, x, False)
    _launch_fwd(made, True, x, None, nhwc(projection), tensors, [], float_vector(bns), y, None)
    return y.get()


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
    own = params[2::3]
    made = _plan(unit, x, own, projection)
    x, dy, bns, inner = nhwc(x), nhwc(dy.to(x.dtype)), float_vector(bns), [nhwc(t) for t in inner]
    weights, projected = [nhwc(w) for w in own], nhwc(projection)
    dx = _output(made, x, x.shape, 0) if needs.x else None
    dgamma, dbeta = (
        [bns.new_empty(c) if wanted else None for c, wanted in zip(made.channels, needs.affine, strict=True)] for _ in range(2)
    )
    wanted = [*needs.weight, needs.projection]
    dweight = [weight_gradient(w) if want else None for w, want in zip((*own, projection), wanted, strict=True)]
    *dweight, dprojection = dweight
    pieces = made.bwd_pieces[bool(inner)]
    workspace = _workspace(pieces, x)
    launch_at(
        made.native.bwd, x, dy.data_ptr(), x.data_ptr(), bns.data_ptr(), address(projected), [t.data_ptr() for t in inner],
        [w.data_ptr() for w in weights], 0 if dx is None else dx.memory.data_ptr(), address(dprojection),
        [address(t) for t in dgamma], [address(t) for t in dbeta], [address(t) for t in dweight], workspace.data_ptr(),
        memory=lambda: (
            {"dy": dy, "x": x, "bns": bns, "projection": projected} | _numbered(inner=inner, weight=weights),
            {"dx": dx and dx.memory, "dprojection": dprojection}
            | _numbered(dgamma=dgamma, dbeta=dbeta, dweight=dweight) | _cut(workspace, pieces),
        ),
    )  # fmt: skip
    dweight = [as_its_weight(t, w) for t, w in zip(dweight, own, strict=True)]
    grads = [t for layer in zip(dgamma, dbeta, dweight, strict=True) for t in layer if t is not None]
    return dx and dx.get(), as_its_weight(dprojection, projection), grads


def _launch_fwd(
    made: Plan,
    again: bool,
    x: Tensor,
    stats: Tensor | None,
    projection: Tensor | None,
    tensors: list[Tensor | None],
    inner: list[Output],
    bns: Tensor,
    y: Output,
    y_stats: Tensor | None,
) -> None:
    """tensors: LAYER_TENSORS of each layer; again: from bns, and nothing else moves."""
    pieces = made.fwd_pieces[bool(inner)]
    workspace = _workspace(pieces, x)

    def memory() -> tuple[Tensors, Tensors]:
        own = {f"{name}{i // len(LAYER_TENSORS)}": t for i, t in enumerate(tensors) for name in (LAYER_TENSORS[i % len(LAYER_TENSORS)],)}
        moved = {name for name in own if name.startswith(("running", "num_batches"))}
        reads = {"x": x, "stats": stats, "projection": projection} | {name: own[name] for name in own if name not in moved}
        writes = {"bns": bns, "y": y.memory, "y_stats": y_stats} | {name: own[name] for name in moved}
        return reads, writes | _numbered(inner=[t.memory for t in inner]) | _cut(workspace, pieces)

    launch_at(
        made.native.fwd, x, again, 0 if stats is None else stats.size(0), x.data_ptr(), address(stats), address(projection),
        [address(t) for t in tensors], [t.memory.data_ptr() for t in inner], bns.data_ptr(), y.memory.data_ptr(), address(y_stats),
        workspace.data_ptr(), memory=memory,
    )  # fmt: skip


class _LayerTensors:
    """LAYER_TENSORS of all layers, as kernels take them; a buffer that is not so is moved as a copy, and put back."""

    def __init__(self, unit: Unit, params: Sequence[Tensor | None], buffers: Sequence[Tensor]) -> None:
        self.tensors, self.copies, taken = [], [], 0
        for i, layer in enumerate(unit.layers):
            gamma, beta, weight = params[3 * i : 3 * i + 3]
            mean = var = tracked = None
            if layer.norm and (layer.update or not layer.batch):
                mean, var = (self._usable(t, float_vector(t)) for t in buffers[taken : taken + 2])
                tracked = buffers[taken + 2] if layer.update else None
                if tracked is not None:
                    if tracked.dtype != torch.int64 or tracked.device != mean.device:
                        tracked = self._usable(tracked, tracked.to(mean.device, torch.int64))
                    if layer.momentum is None:
                        # Every block of the kernel reads it, so none may write it.
                        tracked.add_(1)
                taken += 3
            self.tensors += [float_vector(gamma), float_vector(beta), nhwc(weight), mean, var, tracked]

    def _usable(self, buffer: Tensor, copy: Tensor) -> Tensor:
        if copy is not buffer:
            self.copies.append((buffer, copy))
        return copy

    def put_back(self) -> None:
        for buffer, copy in self.copies:
            buffer.copy_(copy)


def _outputs(made: Plan, x: Tensor, keep: bool) -> list[Output]:
    """Of all layers, or of the last alone."""
    last = len(made.shapes) - 1
    return [_output(made, x, made.shapes[i], i) for i in range(0 if keep else last, last + 1)]


def _output(made: Plan, x: Tensor, shape: Sequence[int], layer: int) -> Output:
    return Output(torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=made.formats[layer]))


def _workspace(pieces: Pieces, like: Tensor) -> Tensor:
    _, offset, size = pieces[-1]
    return torch.empty(offset + size, dtype=torch.uint8, device=like.device)


def _cut(workspace: Tensor, pieces: Pieces) -> Tensors:
    return {name: workspace.narrow(0, offset, size) for name, offset, size in pieces if size}


def _numbered(**tensors: Sequence[Tensor | None]) -> Tensors:
    return {f"{name}{i}": t for name, own in tensors.items() for i, t in enumerate(own)}
