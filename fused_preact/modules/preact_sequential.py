"""Residual units in a row, which hand their statistics on and run several at a time."""

import math
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from fused_preact.functional import Group, UnitTensors, preact_unit
from fused_preact.modules.children import any_global_hook, has_hooks, own_forward
from fused_preact.modules.preact_unit import PreActResidual

# Gradients of a chain's parameters arrive together: long enough to save time, short enough to overlap with their exchange (DDP).
CHAIN_UNITS = 8


class PreActSequential(nn.Sequential):
    """An nn.Sequential of pre-activation units. Each unit's output statistics come from its last convolution and go to the next unit.

    Several units run as one differentiable function, which saves the time between them. Units with memory="segment" are run in segments
    of `segment` units (None: about the square root of their number, which balances what a segment saves and what it recomputes). A unit
    that somebody watches (hooks), or that has a forward of its own, runs by itself, through __call__; so does any other module among
    them, without statistics.
    """

    def __init__(self, *units: Any, segment: int | None = None) -> None:
        super().__init__(*units)
        if segment is not None and (not isinstance(segment, int) or segment < 1):
            raise ValueError(f"segment must be a whole number of at least 1, got {segment!r}")
        self.segment = segment

    def __getitem__(self, index: slice | int) -> Self | nn.Module:
        found = super().__getitem__(index)
        if isinstance(index, slice):
            found.segment = self.segment
        return found

    def forward(self, x: Tensor, stats: Tensor | None = None, return_stats: bool = False) -> Tensor | tuple[Tensor, Tensor | None]:
        """(N, C, H, W) through all units; stats and return_stats as in a single unit."""
        units, begin = list(self), 0
        while begin < len(units):
            # Not before the units in front of it have run: they might be code that changes it.
            chain = self._chain_from(units, begin)
            end = begin + max(1, len(chain.parts))
            wanted = takes_statistics(units[end]) if end < len(units) else return_stats
            x, stats = _run(units[begin], chain, x, stats, wanted)
            begin = end
        return (x, stats) if return_stats else x

    def _chain_from(self, units: list[nn.Module], begin: int) -> "_Chain":
        """The units from `begin` on that run as one: of one memory mode, with norms that share statistics with the same processes."""
        chain, length = _Chain([], set()), self._longest(units[begin])
        for unit in units[begin : begin + length]:
            if not isinstance(unit, PreActResidual) or unit.memory != units[begin].memory or not unit.joins_chains():
                break
            reading = unit.read()
            if reading is None or len(chain.groups | reading.groups) > 1:
                break
            chain.parts.append(reading.tensors)
            chain.groups.update(reading.groups)
        return chain

    def _longest(self, unit: nn.Module) -> int:
        """How many units a chain may have that begins with `unit`."""
        if getattr(unit, "memory", None) != "segment":
            return CHAIN_UNITS
        return self.segment or max(1, math.isqrt(sum(getattr(other, "memory", None) == "segment" for other in self)))


class _Chain(NamedTuple):
    """Units, read already, that run as one Function; none if the first can't. groups: as in `Reading`."""

    parts: list[UnitTensors]
    groups: set[Group | None]


def _run(first: nn.Module, chain: _Chain, x: Tensor, stats: Tensor | None, want_stats: bool) -> tuple[Tensor, Tensor | None]:
    """The chain that begins with `first`, or `first` alone, on x: the result, and its statistics if wanted."""
    if not chain.parts:
        return hand_on(first, x, stats, want_stats)
    group = next(iter(chain.groups), None)
    y = preact_unit(x, *chain.parts, stats=stats, return_stats=want_stats, memory=first.memory, process_group=group)
    return y if want_stats else (y, None)


def takes_statistics(module: nn.Module) -> bool:
    """Whether `hand_on` would give `module` the statistics of its input, and it uses them."""
    if isinstance(module, PreActSequential):
        return _is_plain(module) and len(module) > 0 and takes_statistics(module[0])
    return isinstance(module, PreActResidual) and module.takes_statistics()


def hand_on(module: nn.Module, x: Tensor, stats: Tensor | None, want_stats: bool) -> tuple[Tensor, Tensor | None]:
    """module(x) and the statistics of the result if wanted, and if nobody could have changed what they belong to.

    A pre-hook may replace x, a forward hook the result, and either should see plain tensors; so should a forward that somebody wrote.
    """
    if not _is_plain(module):
        return module(x), None
    return module(x, stats, True) if want_stats else (module(x, stats), None)


def _is_plain(module: nn.Module) -> bool:
    """Whether `module` is a unit or a chain of them that nobody watches or put another forward into."""
    if isinstance(module, PreActSequential):
        return not (own_forward(module, PreActSequential) or has_hooks(module) or any_global_hook())
    return isinstance(module, PreActResidual) and module.is_plain()
