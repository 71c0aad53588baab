"""Residual units in a row, which hand their statistics on and share one segment's memory."""

import math

from torch import Tensor, nn

from fused_preact.functional import preact_unit
from fused_preact.modules.children import any_global_hook, has_hooks
from fused_preact.modules.preact_unit import PreActResidual


class PreActSequential(nn.Sequential):
    """An nn.Sequential of pre-activation units. Each unit's output statistics come from its last convolution and go to the next unit.

    Units with memory="segment" are run in segments of `segment` units (None: about the square root of their number, which balances what
    a segment saves and what it recomputes). A unit that somebody watches (hooks) runs by itself, through __call__.
    """

    def __init__(self, *units: PreActResidual, segment: int | None = None) -> None:
        super().__init__(*units)
        for unit in units:
            if not isinstance(unit, PreActResidual):
                raise TypeError(f"units must be pre-activation residual units, got {type(unit).__name__}")
        if segment is not None and segment < 1:
            raise ValueError(f"segment must be a whole number of at least 1, got {segment}")
        self.segment = segment

    def forward(self, x: Tensor, stats: Tensor | None = None, return_stats: bool = False) -> Tensor | tuple[Tensor, Tensor | None]:
        """(N, C, H, W) through all units; stats and return_stats as in a single unit."""
        pieces = self._segments()
        for i, piece in enumerate(pieces):
            wanted = return_stats or i < len(pieces) - 1
            x, stats = _segment(piece, x, stats, wanted) if len(piece) > 1 else hand_on(piece[0], x, stats, wanted)
        return (x, stats) if return_stats else x

    def _segments(self) -> list[list[PreActResidual]]:
        length = self.segment or max(1, math.isqrt(sum(unit.memory == "segment" for unit in self)))
        pieces: list[list[PreActResidual]] = []
        open_piece = False
        for unit in self:
            joins = unit.memory == "segment" and not (has_hooks(unit) or any_global_hook() or unit.must_call_children())
            if joins and open_piece and len(pieces[-1]) < length:
                pieces[-1].append(unit)
            else:
                pieces.append([unit])
            open_piece = joins
        return pieces


def _segment(units: list[PreActResidual], x: Tensor, stats: Tensor | None, want_stats: bool) -> tuple[Tensor, Tensor | None]:
    parts = (unit.tensors() for unit in units)
    return preact_unit(x, *parts, stats=stats, return_stats=True, memory="segment", process_group=units[0].sync_group())


def hand_on(unit: nn.Module, x: Tensor, stats: Tensor | None, want_stats: bool) -> tuple[Tensor, Tensor | None]:
    """unit(x) and the statistics of the result, if nobody could have changed what they belong to.

    A pre-hook may replace x, a forward hook the result, and either should see plain tensors.
    """
    if has_hooks(unit) or any_global_hook():
        return unit(x), None
    return unit(x, stats, True) if want_stats else (unit(x, stats), None)
