"""The primitives of one BatchNorm. Shapes of the small tensors: stats [T, 3, C], bn [5, C], sums [T, 2, C], coeffs [4, C].

stats: count, mean, m2 of T tiles (m2: sum of squared deviations).  bn: mean, invstd, scale, beta, 1/M (0 when frozen).
sums: partial sum g and sum g*xhat.  coeffs: a, b, mean, c of dx = a*g + b*(x - mean) + c.
All are float32, float64 for a float64 activation. `insisted` names the backend insisted on, "" to choose.
"""

import torch
from torch import Tensor

from fused_preact.backends.layout import empty, empty_wide, tiles, wide
from fused_preact.ops.library import chosen, primitive


@primitive(
    "bn_stats(Tensor x, str insisted) -> Tensor",
    fake=lambda x, insisted: empty_wide((tiles(x.shape), 3, x.size(1)), x),
)
def bn_stats(x: Tensor, insisted: str) -> Tensor:
    """Statistics of x (N, C, H, W) over N, H, W in T tiles; those of an empty batch are zeros."""
    return chosen(x, None, None, insisted).bn_stats(x)


@primitive(
    "bn_merge(Tensor stats, str insisted) -> Tensor",
    fake=lambda stats, insisted: stats.new_empty((1, 3, stats.size(2))),
)
def bn_merge(stats: Tensor, insisted: str) -> Tensor:
    """T tiles merged into one by Chan's formula."""
    return chosen(stats, None, None, insisted).bn_merge(stats)


@primitive(
    "bn_finalize(Tensor stats, Tensor? gamma, Tensor? beta, float eps, bool frozen, str insisted) -> Tensor",
    fake=lambda stats, *_: stats.new_empty((5, stats.size(2))),
)
def bn_finalize(stats: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, frozen: bool, insisted: str) -> Tensor:
    """The bn vectors of merged stats. frozen: stats is one tile (1, running_mean, running_var), a constant for backward."""
    return chosen(stats, None, None, insisted).bn_finalize(stats, gamma, beta, eps, frozen)


# Two operators rather than optional buffers: Inductor miscompiles a mutating schema whose mutable arguments are all None.
@primitive(
    "bn_finalize_update(Tensor stats, Tensor? gamma, Tensor? beta, Tensor(a!) running_mean, Tensor(b!) running_var, "
    "Tensor(c!)? num_batches_tracked, float? momentum, float eps, str insisted) -> Tensor",
    fake=lambda stats, *_: stats.new_empty((5, stats.size(2))),
)
def bn_finalize_update(
    stats: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
    insisted: str,
) -> Tensor:
    """bn_finalize, and the running statistics moved once: by `momentum`, or by 1/num_batches_tracked when it is None."""
    return chosen(stats, None, None, insisted).bn_finalize_update(
        stats, gamma, beta, running_mean, running_var, num_batches_tracked, momentum, eps
    )


@primitive(
    "bn_coeffs(Tensor sums, Tensor bn, str insisted) -> (Tensor, Tensor, Tensor)",
    fake=lambda sums, bn, insisted: (bn.new_empty((4, bn.size(1))), bn.new_empty(bn.size(1)), bn.new_empty(bn.size(1))),
)
def bn_coeffs(sums: Tensor, bn: Tensor, insisted: str) -> tuple[Tensor, Tensor, Tensor]:
    """coeffs, dgamma, dbeta. Of no tiles at all (T = 0) with frozen statistics: the coeffs of dx = scale*g."""
    return chosen(bn, None, None, insisted).bn_coeffs(sums, bn)


@primitive(
    "bn_relu(Tensor x, Tensor bn, bool relu, str insisted) -> Tensor",
    fake=lambda x, bn, relu, insisted: empty(x.shape, x.dtype, x),
)
def bn_relu(x: Tensor, bn: Tensor, relu: bool, insisted: str) -> Tensor:
    """z = relu(bn(x)), for consumers that need it in memory."""
    return chosen(x, None, None, insisted).bn_relu(x, bn, relu)


@primitive(
    "bn_relu_bwd(Tensor dz, Tensor x, Tensor bn, bool relu, str insisted) -> (Tensor, Tensor)",
    fake=lambda dz, x, bn, relu, insisted: (empty(x.shape, x.dtype, x), empty_wide((tiles(x.shape), 2, x.size(1)), x)),
)
def bn_relu_bwd(dz: Tensor, x: Tensor, bn: Tensor, relu: bool, insisted: str) -> tuple[Tensor, Tensor]:
    """g (dz where bn(x) > 0) and sums."""
    return chosen(x, None, None, insisted).bn_relu_bwd(dz, x, bn, relu)


@primitive(
    "bn_bwd(Tensor g, Tensor? x, Tensor coeffs, Tensor? residual_grad, str insisted) -> Tensor",
    fake=lambda g, x, coeffs, residual_grad, insisted: empty(g.shape, g.dtype, g),
)
def bn_bwd(g: Tensor, x: Tensor | None, coeffs: Tensor, residual_grad: Tensor | None, insisted: str) -> Tensor:
    """dx = a*g + b*(x - mean) + c (+ residual_grad). x may be absent where b is zero."""
    return chosen(g, None, None, insisted).bn_bwd(g, x, coeffs, residual_grad)


def frozen_stats(running_mean: Tensor, running_var: Tensor, x: Tensor) -> Tensor:
    """The pseudo-tile of running statistics that `bn_finalize(..., frozen=True)` takes."""
    return torch.stack((torch.ones_like(running_mean), running_mean, running_var))[None].to(wide(x.dtype))
