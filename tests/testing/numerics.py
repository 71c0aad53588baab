"""The accuracy rule as an assertion."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_preact.backends.records import allows_tf32
from fused_preact.bench.accuracy import KINDS, drawn, objection

__all__ = ["assert_as_accurate", "drawn", "fma", "tf32"]


TF32_EPS = 2.0**-10


def assert_as_accurate(name: str, got: Tensor | None, eager: Tensor | None, truth: Tensor | None, kinds: Sequence[str] = KINDS) -> None:
    """`got` obeys the rule beside `eager` of the same dtype and the float64 `truth`; absent where they are. kinds: see `objection`.

    Where torch allows tf32, eager on the CPU does not use it: the floor is that of tf32.
    """
    reason = objection(name, got, eager, truth, TF32_EPS if allows_tf32(torch.float32) else None, kinds)
    assert reason is None, reason


def tf32(t: Tensor) -> Tensor:
    """float32 values rounded to tf32, half away from zero: as kernels round what they give to tensor cores."""
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a*b + c of float32, rounded once."""
    return (a.double() * b.double() + c.double()).float()
