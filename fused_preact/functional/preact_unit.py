"""Whole residual units, differentiable: one Function for one unit, or for the units of a segment."""

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_preact.backends import insisted
from fused_preact.backends.layout import conv_out_shape
from fused_preact.backends.records import Unit
from fused_preact.functional import checks
from fused_preact.functional.bn_relu_conv2d import cast
from fused_preact.functional.context import Group, autocast_dtype, gather, reduce
from fused_preact.ops import traced, unit_operators
from fused_preact.ops import unit as composed
from fused_preact.ops.unit import Needs

MEMORIES = ("layer", "unit", "segment")


class UnitTensors(NamedTuple):
    """A unit and its tensors: params is gamma, beta, weight of each layer, buffers the running statistics of each layer that has them."""

    unit: Unit
    projection: Tensor | None
    params: Sequence[Tensor | None]
    buffers: Sequence[Tensor]


class Chain(NamedTuple):
    """What the Function needs besides tensors."""

    units: tuple[Unit, ...]
    keep: bool
    want_stats: bool
    dtype: torch.dtype | None
    group: Group | None
    insisted: str


class PreActUnits(torch.autograd.Function):
    """x_{l+1} = x_l + F(x_l) for one or several units (equation 3); saves the input of the first and every unit's bn vectors.

    With `keep` also the outputs of the inner layers. What is not saved is recomputed in backward from the same bits.
    """

    @staticmethod
    def forward(ctx: Any, chain: Chain, buffers: Sequence[Sequence[Tensor]], x, stats, *tensors):
        ctx.chain, ctx.dtypes = chain, [None if t is None else t.dtype for t in tensors]
        if chain.dtype is not None:
            tensors = [t.to(chain.dtype) if t is not None and t.dim() == 4 else t for t in tensors]
        exchange = {} if chain.group is None else {"gather": gather(chain.group)}
        run = unit_operators if traced(x) and not exchange else composed
        h, saved, last = x, [], len(chain.units) - 1
        for i, (unit, (projection, *params)) in enumerate(zip(chain.units, _parts(chain, tensors), strict=True)):
            wanted = chain.want_stats if i == last else chain.units[i + 1].layers[0].batch
            h, stats, bns, inner = run.unit_fwd(
                unit, h, stats, projection, params, buffers[i], chain.keep, wanted, chain.insisted, **exchange
            )
            saved += [bns, *inner]
        ctx.save_for_backward(x, *tensors, *saved)
        ctx.set_materialize_grads(False)
        if stats is not None:
            ctx.mark_non_differentiable(stats)
        return h, stats

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None):
        chain, need = ctx.chain, ctx.needs_input_grad
        if dy is None:
            return (None,) * len(need)
        x, *rest = ctx.saved_tensors
        tensors, saved = rest[: len(ctx.dtypes)], rest[len(ctx.dtypes) :]
        exchange = {} if chain.group is None else {"reduce": reduce(chain.group)}
        run = unit_operators if traced(x) and not exchange else composed
        parts, wants = _parts(chain, tensors), _parts(chain, need[4:])
        kept = [len(unit.layers) if chain.keep else 1 for unit in chain.units]
        saved = [saved[sum(kept[:i]) : sum(kept[: i + 1])] for i in range(len(kept))]
        inputs = [x]
        for i, unit in enumerate(chain.units[:-1]):
            projection, *params = parts[i]
            inputs.append(run.unit_recompute(unit, inputs[-1], saved[i][0], projection, params, dy, chain.insisted))
        grads: list[Tensor | None] = []
        for i in reversed(range(len(chain.units))):
            below = need[2] or any(any(want) for want in wants[:i])
            needs = _needs(below, wants[i])
            bns, *inner = saved[i]
            projection, *params = parts[i]
            if any(needs.flat()):
                dy, dprojection, given = run.unit_bwd(
                    chain.units[i], dy, inputs.pop(), bns, inner, projection, params, needs, chain.insisted, **exchange
                )
                grads = [dprojection, *_spread(given, needs, wants[i]), *grads]
            else:
                grads = [None] * len(parts[i]) + grads
        grads = [None if g is None else cast(g, dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)]
        return None, None, dy if need[2] else None, None, *grads


def _parts(chain: Chain, flat: Sequence[Any]) -> list[Sequence[Any]]:
    """`flat` cut into one piece a unit: projection, then gamma, beta, weight of each layer."""
    parts, start = [], 0
    for unit in chain.units:
        end = start + 1 + 3 * len(unit.layers)
        parts.append(flat[start:end])
        start = end
    return parts


def _needs(below: bool, want: Sequence[bool]) -> Needs:
    affine = tuple(a or b for a, b in zip(want[1::3], want[2::3], strict=True))
    return Needs(below, want[0], affine, tuple(want[3::3]))


def _spread(given: Sequence[Tensor], needs: Needs, want: Sequence[bool]) -> list[Tensor | None]:
    """The gradients that came, each in the place of its parameter."""
    came, spread = iter(given), []
    for i in range(len(needs.weight)):
        dgamma, dbeta = (next(came), next(came)) if needs.affine[i] else (None, None)
        spread += [dgamma if want[3 * i + 1] else None, dbeta if want[3 * i + 2] else None, next(came) if needs.weight[i] else None]
    return spread


def preact_unit(
    x: Tensor,
    *parts: UnitTensors,
    stats: Tensor | None = None,
    return_stats: bool = False,
    memory: str = "layer",
    process_group: Group | None = None,
) -> Tensor | tuple[Tensor, Tensor | None]:
    """A pre-activation residual unit, x + F(x), as one differentiable function; several units in a row make a segment.

    Args:
        x: (N, C, H, W).
        parts: the units and their tensors, in order. conv weights in x's dtype, or any floating dtype under autocast.
        stats: statistics of x as the unit before returned them, instead of reading x once more.
        return_stats: return (y, statistics of y).
        memory: "layer" saves every layer's input; "unit" and "segment" only x (of the first unit), and recompute the rest in backward.
        process_group: processes to share batch statistics with (SyncBatchNorm).

    Raises: ValueError or TypeError for what doesn't fit; `BackendRefusal`.
    """
    checks.activation("x", x)
    checks.one_of("memory", memory, MEMORIES)
    dtype = autocast_dtype(x)
    first, weight = parts[0].unit.layers[0], parts[0].params[2]
    if weight.size(1) * first.conv.groups != x.size(1) or (weight.dtype != x.dtype and dtype is None) or weight.device != x.device:
        checks.conv_weight("weight", weight, x, first.conv, dtype)
    _check_channels(parts)
    if x.size(0) < 2 and process_group is None:
        _check_counts(x.shape, parts)
    chain = Chain(tuple(p.unit for p in parts), memory == "layer", return_stats, dtype, process_group, insisted())
    tensors = [t for p in parts for t in (p.projection, *p.params)]
    y, out = PreActUnits.apply(chain, [p.buffers for p in parts], x, stats, *tensors)
    return (y, out) if return_stats else y


def _check_channels(parts: Sequence[UnitTensors]) -> None:
    """Every vector has an element, and every weight an input, for each channel that reaches it: one element would broadcast in silence."""
    channels = parts[0].params[2].size(1) * parts[0].unit.layers[0].conv.groups
    for part in parts:
        buffers = iter(part.buffers)
        for i, layer in enumerate(part.unit.layers):
            gamma, beta, weight = part.params[3 * i : 3 * i + 3]
            mean, var, _ = islice(buffers, 3) if layer.norm and (layer.update or not layer.batch) else (None, None, None)
            for v in (gamma, beta, mean, var):
                if v is not None and v.numel() != channels:
                    raise ValueError(f"norm {i + 1} must have {channels} channels, as its input has, got {v.numel()}")
            if weight.size(1) * layer.conv.groups != channels:
                raise ValueError(f"weight {i + 1} must take the {channels} channels of its input, got shape {tuple(weight.shape)}")
            channels = weight.size(0)


def _check_counts(shape: Sequence[int], parts: Sequence[UnitTensors]) -> None:
    """Every layer that uses batch statistics sees more than one value per channel."""
    for part in parts:
        for i, layer in enumerate(part.unit.layers):
            if layer.norm and layer.batch:
                checks.batch_statistics(shape)
            shape = conv_out_shape(shape, part.params[3 * i + 2].shape, *layer.conv[:3])
