"""The truth: every primitive of the contract in plain torch, on every device, for every case.

    z = relu(bn(x)),  bn(x) = (x - mean)*scale + beta,  scale = gamma*invstd,  y = conv(z, weight) + bias (+ residual)

The formulas are those of docs/design.md; the other backends are tested against this one and fall back to it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_preact.backends.layout import stored, tiles, wide
from fused_preact.backends.records import Case, Pair

TWO_DGRADS = False


def unavailable() -> None:
    """Always usable."""


def why_not(case: Case) -> None:
    """Takes every case."""


def per_channel(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


def centre(x: Tensor, mean: Tensor) -> Tensor:
    """x - mean in the dtype of the statistics, as a new tensor."""
    return x.to(mean.dtype) - per_channel(mean)


def activate(x: Tensor, bn: Tensor | None, relu: bool, dtype: torch.dtype) -> Tensor:
    """z in `dtype`, recomputed wherever it is needed and never saved; without `bn`, x itself."""
    if bn is None:
        return x.to(dtype)
    mean, _, scale, beta, _ = bn
    v = centre(x, mean)
    torch.addcmul(per_channel(beta), v, per_channel(scale), out=v)
    return (v.relu_() if relu else v).to(dtype)


def deferred(g: Tensor, x: Tensor, coeffs: Tensor, add: Tensor | None) -> Tensor:
    """a*g + b*(x - mean) + c (+ add), in g's dtype."""
    a, b, mean, c = coeffs
    d = centre(x, mean)
    torch.addcmul(per_channel(c), d, per_channel(b), out=d)
    torch.addcmul(d, g.to(d.dtype), per_channel(a), out=d)
    return (d if add is None else d.add_(add)).to(g.dtype)


def masked(dz: Tensor, z: Tensor) -> Tensor:
    """g = z <= 0 ? 0 : dz. A NaN keeps its gradient, as in torch's relu."""
    return torch.ops.aten.threshold_backward(dz, z, 0)


def channel_sums(g: Tensor, x: Tensor, bn: Tensor) -> Tensor:
    """[T, 2, C]: sum g and sum g*xhat, with xhat = (x - mean)*invstd; all in the first tile."""
    sums = bn.new_zeros((tiles(x.shape), 2, bn.size(1)))
    if g.numel():
        # torch's own reduction of a BN backward: its dbeta and dgamma are the two sums.
        _, sums[0, 1], sums[0, 0] = torch.ops.aten.native_batch_norm_backward(
            g.to(bn.dtype), x.to(bn.dtype), None, None, None, bn[0], bn[1], True, 0.0, [False, True, True]
        )
    return sums


def convolution(z: Tensor, weight: Tensor, bias: Tensor | None, *conv: Any) -> Tensor:
    """conv2d in the dtype of its arguments: who calls backward inside autocast must not change what is recomputed there."""
    kind = z.device.type
    if not torch.is_autocast_enabled(kind):
        return F.conv2d(z, weight, bias, *conv)
    with torch.autocast(kind, enabled=False):
        return F.conv2d(z, weight, bias, *conv)


def bn_stats(x: Tensor) -> Tensor:
    stats = torch.zeros((tiles(x.shape), 3, x.size(1)), dtype=wide(x.dtype), device=x.device)
    count = x.numel() // x.size(1)
    if count:
        # One pass fills the first tile; the others keep a count of 0, which is neutral.
        mean, var = torch.batch_norm_update_stats(x.to(stats.dtype), None, None, 0.0)
        stats[0, 0] = count
        stats[0, 1] = mean
        torch.mul(var, count, out=stats[0, 2])
    return stats


def bn_merge(stats: Tensor) -> Tensor:
    # Chan: mean = sum n_t*mean_t / n,  m2 = sum m2_t + n_t*(mean_t - mean)^2
    n, mean, m2 = stats.unbind(1)
    total = n.sum(0)
    merged = (n * mean).sum(0) / total.clamp(min=1)
    return torch.stack((total, merged, (m2 + n * (mean - merged) ** 2).sum(0)))[None]


def bn_finalize(stats: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, frozen: bool) -> Tensor:
    return _vectors(bn_merge(stats)[0], gamma, beta, eps, frozen)


def bn_finalize_update(
    stats: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
) -> Tensor:
    n, mean, m2 = merged = bn_merge(stats)[0]
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    weight = momentum if momentum is not None else 1.0 / num_batches_tracked.to(running_mean.dtype)
    running_mean.lerp_(mean.to(running_mean.dtype), weight)
    running_var.lerp_((m2 / (n - 1).clamp(min=1)).to(running_var.dtype), weight)
    return _vectors(merged, gamma, beta, eps, False)


def _vectors(merged: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, frozen: bool) -> Tensor:
    n, mean, m2 = merged
    n = n.clamp(min=1)
    invstd = (m2 / n + eps).rsqrt()
    scale = invstd if gamma is None else invstd * gamma
    beta = torch.zeros_like(mean) if beta is None else beta.to(mean.dtype)
    return torch.stack((mean, invstd, scale.to(mean.dtype), beta, torch.zeros_like(n) if frozen else 1 / n))


def bn_coeffs(sums: Tensor, bn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # dx = scale*(g - dbeta/M - xhat*dgamma/M) = a*g + b*(x - mean) + c
    mean, invstd, scale, _, inverse_count = bn
    dbeta, dgamma = sums.sum(0)
    coeffs = torch.stack((scale, -scale * invstd * dgamma * inverse_count, mean, -scale * dbeta * inverse_count))
    return coeffs, dgamma.clone(), dbeta.clone()


def bn_relu(x: Tensor, bn: Tensor, relu: bool) -> Tensor:
    return stored(activate(x, bn, relu, x.dtype), x.dtype, x)


def bn_relu_bwd(dz: Tensor, x: Tensor, bn: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    g = masked(dz, activate(x, bn, relu, x.dtype)) if relu else dz.clone()
    g = stored(g, x.dtype, x)
    return g, channel_sums(g, x, bn)


def bn_bwd(g: Tensor, x: Tensor | None, coeffs: Tensor, residual_grad: Tensor | None) -> Tensor:
    return stored(deferred(g, g if x is None else x, coeffs, residual_grad), g.dtype, g)


def bn_relu_conv2d_fwd(
    x: Tensor,
    bn: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    relu: bool,
    want_stats: bool,
    after: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    y = convolution(activate(x, bn, relu, weight.dtype), weight, bias, stride, padding, dilation, groups)
    if residual is not None:
        y = y.add_(residual) if residual.dtype == y.dtype else y + residual
    y = stored(y, y.dtype, x, weight)
    return y, bn_stats(y) if want_stats else None


def bn_relu_conv2d_bwd(
    dy: Tensor,
    dy_x: Tensor | None,
    dy_coeffs: Tensor | None,
    dy_add: Tensor | None,
    x: Tensor,
    bn: Tensor | None,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    relu: bool,
    add_dz: Tensor | None,
    emit: str,
    coeffs: Tensor | None,
    residual_grad: Tensor | None,
    want_dy: bool,
    want_dw: bool,
    want_dbias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    given = dy
    if dy_coeffs is not None:
        dy = deferred(dy, dy_x, dy_coeffs, dy_add)
    dy_conv = dy.to(weight.dtype)
    z = activate(x, bn, relu, weight.dtype)
    dz, dweight, _ = torch.ops.aten.convolution_backward(
        dy_conv, z, weight, None, stride, padding, dilation, False, [0, 0], groups, [emit != "none", want_dw, False]
    )
    out = sums = None
    if emit != "none":
        if add_dz is not None:
            dz = dz + add_dz
        if emit == "dz":
            out = dz
        else:
            g = (masked(dz, z) if relu else dz).to(x.dtype)
            sums = None if emit == "dx" else channel_sums(g, x, bn)
            out = None if emit == "sums" else g if emit == "g" else deferred(g, x, coeffs, residual_grad)
    return (
        None if out is None else stored(out, x.dtype, x, weight),
        sums,
        torch.empty_like(weight).copy_(dweight) if want_dw and dweight.stride() != weight.stride() else dweight,
        dy.sum((0, 2, 3), dtype=wide(x.dtype)) if want_dbias else None,
        stored(dy.clone() if dy is given else dy, dy.dtype, x, weight) if want_dy else None,
    )
