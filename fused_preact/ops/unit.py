"""Whole residual units: one call each way where a backend has it, composed of the primitives otherwise.

A unit's tensors: params is gamma, beta, weight of each layer in order (backward and recomputation find gamma and beta in bns: there
they are None); buffers is running_mean, running_var, num_batches_tracked of
each layer that has them. bns [5, sum of C] holds the bn vectors of all layers side by side; inner are the outputs of all layers but
the last, the only activations besides x that backward reads (and recomputes if they were not kept).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_preact.backends import choose_unit
from fused_preact.backends.layout import empty
from fused_preact.backends.records import Case, Layer, Unit, allows_tf32
from fused_preact.ops.bn import frozen_stats
from fused_preact.ops.library import backend_for

Exchange = Callable[[Tensor], Tensor]


class Needs(NamedTuple):
    """Which gradients of a unit are wanted: of x, of the projection, and per layer of gamma or beta and of the weight."""

    x: bool
    projection: bool
    affine: tuple[bool, ...]
    weight: tuple[bool, ...]

    def flat(self) -> list[bool]:
        return [self.x, self.projection, *self.affine, *self.weight]

    @classmethod
    def of(cls, flat: Sequence[bool]) -> "Needs":
        half = (len(flat) - 2) // 2 + 2
        return cls(flat[0], flat[1], tuple(flat[2:half]), tuple(flat[half:]))


def _native(unit: Unit, x: Tensor, params: Sequence[Tensor | None], projection: Tensor | None, insisted: str) -> Any:
    weight = params[2]
    shapes = tuple([w.shape for w in params[2::3]] + ([] if projection is None else [projection.shape]))
    case = Case(x.device.type, x.dtype, x.shape, weight.shape, weight.dtype, unit.layers[0].conv, shapes, allows_tf32(weight.dtype))
    return choose_unit(unit, case, insisted)


def layer_bn(
    run: Any,
    layer: Layer,
    x: Tensor,
    stats: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    buffers: Sequence[Tensor | None],
    gather: Exchange | None,
) -> Tensor:
    """The bn vectors of one layer from the statistics of its input x (computed here if `stats` is None); moves its buffers.

    run: the backend.  gather: exchanges the merged statistics between processes before they are used.
    """
    if not layer.batch:
        return run.bn_finalize(frozen_stats(buffers[0], buffers[1], x), gamma, beta, layer.eps, True)
    if stats is None:
        stats = run.bn_stats(x)
    if gather is not None:
        stats = gather(run.bn_merge(stats))
    if layer.update:
        return run.bn_finalize_update(stats, gamma, beta, *buffers, layer.momentum, layer.eps)
    return run.bn_finalize(stats, gamma, beta, layer.eps, False)


def unit_fwd(
    unit: Unit,
    x: Tensor,
    stats: Tensor | None,
    projection: Tensor | None,
    params: Sequence[Tensor | None],
    buffers: Sequence[Tensor],
    keep: bool,
    want_stats: bool,
    insisted: str,
    gather: Exchange | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, tuple[Tensor, ...]]:
    """y = x + F(x), the statistics of y if wanted, bns, and inner if `keep`."""
    native = None if gather else _native(unit, x, params, projection, insisted)
    if native is not None:
        return native.unit_fwd(unit, x, stats, projection, params, buffers, keep, want_stats)
    h, residual, bns, inner = x, None, [], []
    taken, depth = 0, len(unit.layers)
    for i, layer in enumerate(unit.layers):
        gamma, beta, weight = params[3 * i : 3 * i + 3]
        run, bn = backend_for(h, weight, layer.conv, insisted), None
        if layer.norm:
            has_buffers = layer.update or not layer.batch
            own = buffers[taken : taken + 3] if has_buffers else ()
            taken += 3 * has_buffers
            bn = layer_bn(run, layer, h, stats, gamma, beta, own, gather)
            bns.append(bn)
        if i == 0:
            residual = _shortcut_fwd(unit, x, bn, projection, params[-1].size(0), None, insisted)
        last = i == depth - 1
        wanted = want_stats if last else unit.layers[i + 1].norm and unit.layers[i + 1].batch
        h, stats = run.bn_relu_conv2d_fwd(h, bn, weight, None, residual if last else None, *layer.conv, layer.relu, wanted, None)
        if keep and not last:
            inner.append(h)
    return h, stats, torch.cat(bns, 1), tuple(inner)


def unit_recompute(
    unit: Unit,
    x: Tensor,
    bns: Tensor,
    projection: Tensor | None,
    params: Sequence[Tensor | None],
    after: Tensor | None,
    insisted: str,
) -> Tensor:
    """y of a unit again, from x and the bn vectors of its forward: nothing else moves."""
    native = _native(unit, x, params, projection, insisted)
    if native is not None:
        return native.unit_recompute(unit, x, bns, projection, params)
    vectors = _split(unit, bns, params)
    residual = _shortcut_fwd(unit, x, vectors[0], projection, params[-1].size(0), after, insisted)
    *_, h = _recomputed(unit, x, vectors, params, after, insisted)
    layer = unit.layers[-1]
    run = backend_for(h, params[-1], layer.conv, insisted)
    return run.bn_relu_conv2d_fwd(h, vectors[-1], params[-1], None, residual, *layer.conv, layer.relu, False, after)[0]


def unit_bwd(
    unit: Unit,
    dy: Tensor,
    x: Tensor,
    bns: Tensor,
    inner: Sequence[Tensor],
    projection: Tensor | None,
    params: Sequence[Tensor | None],
    needs: Needs,
    insisted: str,
    reduce: Exchange | None = None,
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """dx, the projection's gradient, and dgamma, dbeta, dweight of each layer: those that are needed, in this order."""
    native = None if reduce else _native(unit, x, params, projection, insisted)
    if native is not None:
        return native.unit_bwd(unit, dy, x, bns, inner, projection, params, needs)
    vectors = _split(unit, bns, params)
    if len(unit.layers) > 1 and not inner:
        inner = _recomputed(unit, x, vectors, params, dy, insisted)[1:]
    inputs = (x, *inner)
    residual_grad, add_dz, dprojection = _shortcut_bwd(unit, dy, x, vectors[0], projection, needs, insisted)
    dx, grads = None, []
    pending = (dy, None, None, None)
    for i in reversed(range(len(unit.layers))):
        layer, h, bn, weight = unit.layers[i], inputs[i], vectors[i], params[3 * i + 2]
        below = needs.x or any(needs.affine[:i]) or any(needs.weight[:i])
        if not (below or needs.affine[i] or needs.weight[i]):
            break
        run = backend_for(h, weight, layer.conv, insisted)
        conv = (h, bn, weight, *layer.conv, layer.relu, add_dz if i == 0 else None)
        dgamma = dbeta = None
        if i == 0 and needs.x:
            dx, dgamma, dbeta, dw, _ = input_grad(run, layer, pending, conv, residual_grad, needs.weight[0], False, reduce)
        else:
            emit = "none" if not (below or needs.affine[i]) else "g" if below else "sums"
            g, sums, dw, _, _ = run.bn_relu_conv2d_bwd(*pending, *conv, emit, None, None, False, needs.weight[i], False)
            if sums is not None:
                coeffs, dgamma, dbeta = reduced_coeffs(run, layer, sums, bn, reduce)
                pending = (g, h, coeffs, None)
        grads = [*([dgamma, dbeta] if needs.affine[i] else []), *([dw] if needs.weight[i] else []), *grads]
    return dx, dprojection, grads


def input_grad(
    run: Any,
    layer: Layer,
    dy: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    conv: tuple,
    residual_grad: Tensor | None,
    want_dw: bool,
    want_dbias: bool,
    reduce: Exchange | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dgamma, dbeta, dweight, dbias of the layer at which a chain of deferred gradients ends.

    dy: the first four arguments of bn_relu_conv2d_bwd; conv: those from x to add_dz.
    """
    x, bn = conv[:2]
    wants = (False, want_dw, want_dbias)
    if not layer.norm:
        dx, _, dw, db, _ = run.bn_relu_conv2d_bwd(*dy, *conv, "dz", None, None, *wants)
        return dx, None, None, dw, db
    if not layer.batch:
        coeffs, _, _ = run.bn_coeffs(bn.new_empty((0, 2, bn.size(1))), bn)
        dx, sums, dw, db, _ = run.bn_relu_conv2d_bwd(*dy, *conv, "dx_sums", coeffs, residual_grad, *wants)
        return dx, *run.bn_coeffs(sums, bn)[1:], dw, db
    emit = "sums" if run.TWO_DGRADS else "g"
    g, sums, dw, db, _ = run.bn_relu_conv2d_bwd(*dy, *conv, emit, None, None, *wants)
    coeffs, dgamma, dbeta = reduced_coeffs(run, layer, sums, bn, reduce)
    if run.TWO_DGRADS:
        dx = run.bn_relu_conv2d_bwd(*dy, *conv, "dx", coeffs, residual_grad, False, False, False)[0]
    else:
        dx = run.bn_bwd(g, x, coeffs, residual_grad)
    return dx, dgamma, dbeta, dw, db


def reduced_coeffs(run: Any, layer: Layer, sums: Tensor, bn: Tensor, reduce: Exchange | None) -> tuple[Tensor, Tensor, Tensor]:
    """bn_coeffs; with `reduce`, the coeffs are those of all processes together, and dgamma and dbeta stay this process's own."""
    if reduce is None or not layer.batch:
        return run.bn_coeffs(sums, bn)
    _, dgamma, dbeta = run.bn_coeffs(sums, bn)
    return run.bn_coeffs(reduce(sums), bn)[0], dgamma, dbeta


def _split(unit: Unit, bns: Tensor, params: Sequence[Tensor | None]) -> list[Tensor | None]:
    widths = [params[3 * i + 2].size(1) * layer.conv.groups if layer.norm else 0 for i, layer in enumerate(unit.layers)]
    return [bn if layer.norm else None for bn, layer in zip(bns.split(widths, 1), unit.layers, strict=True)]


def _recomputed(
    unit: Unit, x: Tensor, vectors: Sequence[Tensor | None], params: Sequence[Tensor | None], after: Tensor | None, insisted: str
) -> list[Tensor]:
    """x and the outputs of all layers but the last: the same calls on the same bits as forward's."""
    inputs = [x]
    for i, layer in enumerate(unit.layers[:-1]):
        weight = params[3 * i + 2]
        run = backend_for(inputs[-1], weight, layer.conv, insisted)
        y, _ = run.bn_relu_conv2d_fwd(inputs[-1], vectors[i], weight, None, None, *layer.conv, layer.relu, False, after)
        inputs.append(y)
    return inputs


def _shortcut_fwd(
    unit: Unit, x: Tensor, bn: Tensor | None, projection: Tensor | None, out_channels: int, after: Tensor | None, insisted: str
) -> Tensor:
    first = unit.layers[0]
    bn = bn if unit.shared else None
    if unit.shortcut == "projection":
        run = backend_for(x, projection, unit.projection, insisted)
        return run.bn_relu_conv2d_fwd(x, bn, projection, None, None, *unit.projection, first.relu, False, after)[0]
    if unit.shortcut == "pad":
        x = x[:, :, :: unit.pad_stride[0], :: unit.pad_stride[1]]
    if bn is not None:
        x = backend_for(x, None, None, insisted).bn_relu(x, bn, first.relu)
    if unit.shortcut == "pad":
        x = F.pad(x, (0, 0, 0, 0, 0, out_channels - x.size(1)))
    return x


def _shortcut_bwd(
    unit: Unit, dy: Tensor, x: Tensor, bn: Tensor | None, projection: Tensor | None, needs: Needs, insisted: str
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The shortcut's gradient, as residual_grad (of x) or as add_dz (of the first activation), and that of the projection."""
    into_dz = unit.shared or not unit.layers[0].norm
    wanted = needs.x or (into_dz and needs.affine[0])
    grad, dprojection = dy if wanted else None, None
    if unit.shortcut == "projection" and (wanted or needs.projection):
        bn = bn if unit.shared else None
        emit = "dz" if wanted else "none"
        conv = (x, bn, projection, *unit.projection, unit.layers[0].relu, None)
        run = backend_for(x, projection, unit.projection, insisted)
        grad, _, dprojection, _, _ = run.bn_relu_conv2d_bwd(dy, None, None, None, *conv, emit, None, None, False, needs.projection, False)
    elif unit.shortcut == "pad" and wanted:
        grad = empty(x.shape, dy.dtype, x).zero_()
        grad[:, :, :: unit.pad_stride[0], :: unit.pad_stride[1]] = dy[:, : x.size(1)]
    return (None, grad, dprojection) if into_dz else (grad, None, dprojection)
