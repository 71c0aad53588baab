"""Residual units in a row, which hand their statistics on and share one segment's memory."""

import math
from typing import Any, Self

from torch import Tensor, nn

from fused_preact.functional import preact_unit
from fused_preact.functional.preact_unit import MEMORIES
from fused_preact.modules.children import any_global_hook, has_hooks, own_forward
from fused_preact.modules.preact_unit import PreActResidual, Reading

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
        pieces = self._pieces()
        for i, piece in enumerate(pieces):
            wanted = return_stats if i == len(pieces) - 1 else takes_statistics(pieces[i + 1].first)
            x, stats = piece(x, stats, wanted)
        return (x, stats) if return_stats else x

    def _pieces(self) -> list["_Piece"]:
        """The units in chains, of one memory mode and with norms that share statistics with the same processes, and single modules."""
        lengths = dict.fromkeys(MEMORIES, CHAIN_UNITS)
        lengths["segment"] = self.segment or max(1, math.isqrt(sum(getattr(unit, "memory", "") == "segment" for unit in self)))
        pieces: list[_Piece] = []
        for unit in self:
            joins = isinstance(unit, PreActResidual) and unit.joins_chains()
            reading = unit.read() if joins else None
            if reading is None:
                pieces.append(_Piece(unit))
            elif not (pieces and pieces[-1].takes(unit, reading, lengths)):
                pieces.append(_Piece(unit, reading))
        return pieces


class _Piece:
    """What runs as one: a chain of units, read already, or a module that is called."""

    def __init__(self, first: nn.Module, reading: Reading | None = None) -> None:
        self.first = first
        self.parts = [] if reading is None else [reading.tensors]
        self.groups = set() if reading is None else reading.groups

    def takes(self, unit: PreActResidual, reading: Reading, lengths: dict[str, int]) -> bool:
        """Append a unit to the chain if it fits."""
        groups = self.groups | reading.groups
        if not self.parts or unit.memory != self.first.memory or len(self.parts) >= lengths[unit.memory] or len(groups) > 1:
            return False
        self.parts.append(reading.tensors)
        self.groups = groups
        return True

    def __call__(self, x: Tensor, stats: Tensor | None, want_stats: bool) -> tuple[Tensor, Tensor | None]:
        if not self.parts:
            return hand_on(self.first, x, stats, want_stats)
        group = next(iter(self.groups), None)
        y = preact_unit(x, *self.parts, stats=stats, return_stats=want_stats, memory=self.first.memory, process_group=group)
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
