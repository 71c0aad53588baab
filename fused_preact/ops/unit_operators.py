"""Whole units as custom operators, for whoever traces: one opaque node each way, recomputation inside.

The functions have the signatures of those in `unit`; they translate to what a schema can hold. A Unit enters as numbers. A mutating
operator may return plain tensors only, so what is absent is an empty tensor.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_preact.backends.layout import conv_out_shape, empty, empty_wide, tiles
from fused_preact.backends.records import Unit, decode_unit
from fused_preact.ops import unit as composed
from fused_preact.ops.library import define
from fused_preact.ops.unit import Needs

MAX_INNER = 2

_FWD = (
    "(Tensor x, Tensor? stats, Tensor? projection, Tensor?[] params, {buffers}, int[] unit, float[] settings, bool keep, "
    "bool want_stats, str insisted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _fwd_body(x, stats, projection, params, buffers, unit, settings, keep, want_stats, insisted):
    y, out, bns, inner = composed.unit_fwd(decode_unit(unit, settings), x, stats, projection, params, buffers, keep, want_stats, insisted)
    absent = [x.new_empty(0) for _ in range(MAX_INNER - len(inner))]
    return y, empty_wide((0, 3, y.size(1)), y) if out is None else out, bns, *inner, *absent


def _fwd_fake(x, stats, projection, params, buffers, unit, settings, keep, want_stats, insisted):
    decoded = decode_unit(unit, settings)
    h, inner, width = x, [], 0
    for i, layer in enumerate(decoded.layers):
        weight = params[3 * i + 2]
        width += weight.size(1) * layer.conv.groups if layer.norm else 0
        h = empty(conv_out_shape(h.shape, weight.shape, *layer.conv[:3]), weight.dtype, h, weight)
        inner.append(h)
    y = inner.pop()
    residual_dtype = projection.dtype if decoded.shortcut == "projection" else x.dtype
    y = torch.empty_like(y, dtype=torch.promote_types(y.dtype, residual_dtype))
    inner = inner if keep else []
    absent = [x.new_empty(0) for _ in range(MAX_INNER - len(inner))]
    return y, empty_wide((tiles(y.shape) if want_stats else 0, 3, y.size(1)), y), empty_wide((5, width), x), *inner, *absent


_fwd_op = define("unit_fwd" + _FWD.format(buffers="Tensor[] buffers"), _fwd_body, _fwd_fake)
_fwd_update_op = define("unit_fwd_update" + _FWD.format(buffers="Tensor(a!)[] buffers"), _fwd_body, _fwd_fake)


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
) -> tuple[Tensor, Tensor | None, Tensor, tuple[Tensor, ...]]:
    op = _fwd_update_op if any(layer.update for layer in unit.layers) else _fwd_op
    y, out, bns, *inner = op(x, stats, projection, list(params), list(buffers), *unit.encode(), keep, want_stats, insisted)
    return y, out if want_stats else None, bns, tuple(inner[: len(unit.layers) - 1]) if keep else ()


def _recompute_body(x, bns, projection, params, unit, settings, after, insisted):
    return composed.unit_recompute(decode_unit(unit, settings), x, bns, projection, params, after, insisted)


def _recompute_fake(x, bns, projection, params, unit, settings, after, insisted):
    return _fwd_fake(x, None, projection, params, [], unit, settings, False, False, insisted)[0]


_recompute_op = define(
    "unit_recompute(Tensor x, Tensor bns, Tensor? projection, Tensor?[] params, int[] unit, float[] settings, Tensor? after, "
    "str insisted) -> Tensor",
    _recompute_body,
    _recompute_fake,
)


def unit_recompute(
    unit: Unit,
    x: Tensor,
    bns: Tensor,
    projection: Tensor | None,
    params: Sequence[Tensor | None],
    after: Tensor | None,
    insisted: str,
) -> Tensor:
    return _recompute_op(x, bns, projection, list(params), *unit.encode(), after, insisted)


def _bwd_body(dy, x, bns, inner, projection, params, unit, settings, needs, insisted):
    return composed.unit_bwd(decode_unit(unit, settings), dy, x, bns, inner, projection, params, Needs.of(needs), insisted)


def _bwd_fake(dy, x, bns, inner, projection, params, unit, settings, needs, insisted):
    wanted, layers, grads = Needs.of(needs), decode_unit(unit, settings).layers, []
    for i in range(len(wanted.weight)):
        weight = params[3 * i + 2]
        if wanted.affine[i]:
            channels = weight.size(1) * layers[i].conv.groups
            grads += [bns.new_empty(channels), bns.new_empty(channels)]
        if wanted.weight[i]:
            grads.append(torch.empty_like(weight))
    return (
        empty(x.shape, x.dtype, x, params[2]) if wanted.x else None,
        torch.empty_like(projection) if wanted.projection else None,
        grads,
    )


_bwd_op = define(
    "unit_bwd(Tensor dy, Tensor x, Tensor bns, Tensor[] inner, Tensor? projection, Tensor?[] params, int[] unit, float[] settings, "
    "bool[] needs, str insisted) -> (Tensor?, Tensor?, Tensor[])",
    _bwd_body,
    _bwd_fake,
)


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
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    return _bwd_op(dy, x, bns, list(inner), projection, list(params), *unit.encode(), needs.flat(), insisted)
