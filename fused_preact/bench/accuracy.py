"""The accuracy rule: against float64, the fused error is at most twice that of eager torch in the same dtype, plus a floor."""

from collections.abc import Sequence

import torch
from torch import Tensor

# A few units in the last place of the largest element, for results that eager happens to hit exactly.
FLOOR_ULPS = 4
# The truth has float64's own rounding: at mean/std = 1000 another order of the same sums differs by so much.
FLOOR_FLOAT64 = 1e-12
KINDS = ("largest", "RMS")


def error(got: Tensor, truth: Tensor) -> tuple[float, float]:
    """Largest and root-mean-square difference, relative to the largest element of the truth."""
    scale = truth.abs().max().clamp(min=1e-30)
    difference = (got.double() - truth) / scale
    return difference.abs().max().item(), difference.square().mean().sqrt().item()


def objection(
    name: str, got: Tensor | None, eager: Tensor | None, truth: Tensor | None, eps: float | None = None, kinds: Sequence[str] = KINDS
) -> str | None:
    """Why `got` breaks the rule beside `eager` of the same dtype and the float64 `truth` (absent where they are), or None.

    eps: the arithmetic's unit in the last place, where it is coarser than that of eager's dtype (tf32).
    kinds: which errors count; "RMS" alone where the largest is one element whose ReLU went the other way.
    """
    if not (got is None) == (truth is None) == (eager is None):
        return f"{name} is {'missing' if got is None else 'not expected'}"
    if got is None:
        return None
    if got.shape != truth.shape:
        return f"{name} has shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    if not got.isfinite().all():
        return f"{name} has elements that were not written"
    if not truth.numel():
        return None
    floor = FLOOR_FLOAT64 if eager.dtype == torch.float64 else FLOOR_ULPS * (eps or torch.finfo(eager.dtype).eps)
    for kind, mine, theirs in zip(KINDS, error(got, truth), error(eager, truth), strict=True):
        if kind in kinds and not mine <= 2 * theirs + floor:
            return f"{name}: {kind} error {mine:.2e}, eager has {theirs:.2e} and the floor is {floor:.1e}"
    return None


def away_from_zero(x: Tensor, mean: Tensor, std: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """x (float64) moved so that no pre-activation lies within 1e-4*(1 + |mean|/std) of zero.

    A flipped ReLU mask is not an error of arithmetic; without this a correct implementation fails about one case in a hundred.
    """

    def view(v: Tensor) -> Tensor:
        return v.double().view(1, -1, 1, 1)

    margin = 1e-4 * (1 + view(mean).abs() / view(std))
    v = (x - view(mean)) / view(std) * view(gamma) + view(beta)
    pushed = torch.where(v < 0, -2 * margin, 2 * margin)
    moved = view(mean) + (pushed - view(beta)) / view(gamma) * view(std)
    return torch.where(v.abs() < margin, moved, x)


def drawn(shape: tuple[int, ...], gamma: Tensor, beta: Tensor, offset: float, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Gaussian x of `dtype` (returned exactly representable), `offset` standard deviations off, clear of the ReLU's edge."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, dtype=torch.float64, generator=generator) + offset
    for _ in range(20):
        x = x.to(dtype).double()
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        clear = away_from_zero(x, mean, (var + 1e-5).sqrt(), gamma, beta)
        if torch.equal(clear, x):
            break
        x = clear
    return x.to(dtype)
