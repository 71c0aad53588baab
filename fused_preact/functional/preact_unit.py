"""Whole residual units, differentiable: one Function for one unit, or for the units of a segment."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_preact.backends import insisted
from fused_preact.backends.records import Unit
from fused_preact.functional import checks
from fused_preact.functional.bn_relu_conv2d import cast
from fused_preact.functional.context import Group, autocast_dtype, gather, reduce, refuse_vmap
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


class UnitDone(NamedTuple):
    """What was computed of a unit before its Function is called: y, and what backward reads besides x.

    weights: of the projection and of each layer, as they were used.  bns, inner: as in `ops.unit`.
    """

    y: Tensor
    weights: Sequence[Tensor | None]
    bns: Tensor
    inner: Sequence[Tensor]


class Chain(NamedTuple):
    """What the Function needs besides tensors. It saves the inputs of all units or of the first alone; with `keep_inner`, of all layers.

    done: of a chain of one unit, that it has been computed, and only backward is missing.
    """

    units: tuple[Unit, ...]
    keep_inputs: bool
    keep_inner: bool
    want_stats: bool
    dtype: torch.dtype | None
    group: Group | None
    insisted: str
    done: UnitDone | None = None


class PreActUnits(torch.autograd.Function):
    """x_{l+1} = x_l + F(x_l) for one or several units (equation 3); saves x, every unit's bn vectors, and what `Chain` says.

    What is not saved is recomputed in backward from the same bits.
    """

    @staticmethod
    def forward(ctx: Any, chain: Chain, buffers: Sequence[Sequence[Tensor]], x, stats, *tensors):
        ctx.chain, ctx.dtypes = chain._replace(done=None), [None if t is None else t.dtype for t in tensors]
        ctx.set_materialize_grads(False)
        if chain.done is not None:
            y, (projection, *weights), bns, inner = chain.done
            ctx.save_for_backward(x, projection, *(t for weight in weights for t in (None, None, weight)), bns, *inner)
            return y, None
        if chain.dtype is not None:
            tensors = [t.to(chain.dtype) if t is not None and t.dim() == 4 else t for t in tensors]
        exchange = {} if chain.group is None else {"gather": gather(chain.group)}
        run = unit_operators if traced(x) and not exchange else composed
        h, saved, last = x, [], len(chain.units) - 1
        for i, (unit, (projection, *params)) in enumerate(zip(chain.units, _parts(chain, tensors), strict=True)):
            wanted = chain.want_stats if i == last else chain.units[i + 1].layers[0].batch
            if i and chain.keep_inputs:
                saved.append(h)
            h, stats, bns, inner = run.unit_fwd(
                unit, h, stats, projection, params, buffers[i], chain.keep_inner, wanted, chain.insisted, **exchange
            )
            saved += [bns, *inner]
        # gamma and beta live on in bns.
        ctx.save_for_backward(x, *(t if t is not None and t.dim() == 4 else None for t in tensors), *saved)
        if stats is not None:
            ctx.mark_non_differentiable(stats)
        return h, stats

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None):
        chain, need = ctx.chain, ctx.needs_input_grad
        if dy is None:
            return (None,) * len(need)
        refuse_vmap(dy)
        x, *rest = ctx.saved_tensors
        tensors, saved = rest[: len(ctx.dtypes)], rest[len(ctx.dtypes) :]
        exchange = {} if chain.group is None else {"reduce": reduce(chain.group)}
        run = unit_operators if traced(x) and not exchange else composed
        parts, wants = _parts(chain, tensors), _parts(chain, need[4:])
        inputs, vectors, inners = _saved(chain, x, saved)
        for i in range(len(inputs) - 1, len(chain.units) - 1):
            projection, *params = parts[i]
            inputs.append(run.unit_recompute(chain.units[i], inputs[i], vectors[i], projection, params, dy, chain.insisted))
        grads: list[Tensor | None] = []
        for i in reversed(range(len(chain.units))):
            below = need[2] or any(any(want) for want in wants[:i])
            needs = _needs(below, wants[i])
            projection, *params = parts[i]
            if any(needs.flat()):
                dy, dprojection, given = run.unit_bwd(
                    chain.units[i], dy, inputs.pop(), vectors[i], inners[i], projection, params, needs, chain.insisted, **exchange
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


def _saved(chain: Chain, x: Tensor, saved: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Sequence[Tensor]]]:
    """Inputs (of the first unit alone if the others' are not kept), bn vectors and inner outputs of the units, from what was saved."""
    inputs, vectors, inners, at = [x], [], [], 0
    for i, unit in enumerate(chain.units):
        if i and chain.keep_inputs:
            inputs.append(saved[at])
            at += 1
        end = at + (len(unit.layers) if chain.keep_inner else 1)
        vectors.append(saved[at])
        inners.append(saved[at + 1 : end])
        at = end
    return inputs, vectors, inners


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
        memory: "layer" saves every layer's input, "unit" every unit's, "segment" only x; backward recomputes the rest.
        process_group: processes to share batch statistics with (SyncBatchNorm).

    Raises: ValueError or TypeError for what doesn't fit; `BackendRefusal`.
    """
    checks.activation("x", x)
    checks.one_of("memory", memory, MEMORIES)
    if not parts:
        raise ValueError("parts must hold at least one unit, got none")
    dtype = autocast_dtype(x)
    checks.unit_tensors(x, parts, dtype)
    checks.statistics(stats, x)
    if x.size(0) < 2 and process_group is None:
        checks.unit_statistics(x.shape, parts)
    # Without gradients there is no backward to keep anything for.
    keep = torch.is_grad_enabled()
    units, keep_inputs, keep_inner = tuple(p.unit for p in parts), keep and memory != "segment", keep and memory == "layer"
    chain = Chain(units, keep_inputs, keep_inner, return_stats, dtype, process_group, insisted())
    tensors = [t for p in parts for t in (p.projection, *p.params)]
    y, out = PreActUnits.apply(chain, [p.buffers for p in parts], x, stats, *tensors)
    return (y, out) if return_stats else y
