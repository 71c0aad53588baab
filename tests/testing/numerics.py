"""The accuracy rule as an assertion."""

from torch import Tensor

from fused_preact.bench.accuracy import drawn, objection

__all__ = ["assert_as_accurate", "drawn"]


def assert_as_accurate(name: str, got: Tensor | None, eager: Tensor | None, truth: Tensor | None) -> None:
    """`got` obeys the rule beside `eager` of the same dtype and the float64 `truth`; absent where they are."""
    reason = objection(name, got, eager, truth)
    assert reason is None, reason
