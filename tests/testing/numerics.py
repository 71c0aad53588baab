"""The accuracy rule as an assertion."""

from collections.abc import Sequence

from torch import Tensor

from fused_preact.bench.accuracy import KINDS, drawn, objection

__all__ = ["assert_as_accurate", "drawn"]


def assert_as_accurate(name: str, got: Tensor | None, eager: Tensor | None, truth: Tensor | None, kinds: Sequence[str] = KINDS) -> None:
    """`got` obeys the rule beside `eager` of the same dtype and the float64 `truth`; absent where they are. kinds: see `objection`."""
    reason = objection(name, got, eager, truth, kinds=kinds)
    assert reason is None, reason
