"""The primitives of one BatchNorm, by native kernels; shapes and meaning as in ops/bn.py. What is empty is the eager backend's."""

import torch
from torch import Tensor

from fused_preact import _cpu
from fused_preact.backends import eager
from fused_preact.backends.cpu.launch import Output, address, launch, nhwc, vector
from fused_preact.backends.layout import empty_wide, memory_format, tiles, wide


def _sizes(x: Tensor) -> tuple[int, int]:
    """Pixels and channels."""
    return x.numel() // x.size(1), x.size(1)


def bn_stats(x: Tensor) -> Tensor:
    if not x.numel():
        return eager.bn_stats(x)
    stats, dense = empty_wide((tiles(x.shape), 3, x.size(1)), x), nhwc(x)
    launch(_cpu.bn_stats, x, *_sizes(x), dense.data_ptr(), stats.data_ptr(), stats.size(0))
    return stats


def bn_merge(stats: Tensor) -> Tensor:
    stats = stats.contiguous()
    merged = stats.new_empty((1, 3, stats.size(2)))
    _cpu.bn_merge(stats.dtype == torch.float64, stats.size(0), stats.size(2), stats.data_ptr(), merged.data_ptr())
    return merged


def bn_finalize(stats: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, frozen: bool) -> Tensor:
    return _finalize(stats, gamma, beta, None, None, 0.0, eps, frozen)


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
    if not all(t.dtype == stats.dtype and t.is_contiguous() for t in (running_mean, running_var)):
        return eager.bn_finalize_update(stats, gamma, beta, running_mean, running_var, num_batches_tracked, momentum, eps)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    weight = 1.0 / num_batches_tracked.item() if momentum is None else momentum
    return _finalize(stats, gamma, beta, running_mean, running_var, weight, eps, False)


def _finalize(stats, gamma, beta, running_mean, running_var, momentum, eps, frozen):
    stats, gamma, beta = stats.contiguous(), vector(gamma, stats.dtype), vector(beta, stats.dtype)
    bn = stats.new_empty((5, stats.size(2)))
    pointers = [address(t) for t in (stats, gamma, beta, running_mean, running_var)]
    _cpu.bn_finalize(stats.dtype == torch.float64, frozen, stats.size(0), stats.size(2), *pointers, momentum, eps, bn.data_ptr())
    return bn


def bn_coeffs(sums: Tensor, bn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sums, bn = sums.contiguous(), bn.contiguous()
    c = bn.size(1)
    coeffs, dgamma, dbeta = bn.new_empty((4, c)), bn.new_empty(c), bn.new_empty(c)
    _cpu.bn_coeffs(bn.dtype == torch.float64, sums.size(0), c, *(t.data_ptr() for t in (sums, bn, coeffs, dgamma, dbeta)))
    return coeffs, dgamma, dbeta


def bn_relu(x: Tensor, bn: Tensor, relu: bool) -> Tensor:
    if not x.numel():
        return eager.bn_relu(x, bn, relu)
    dense, bn, z = nhwc(x), bn.contiguous(), Output(x.shape, x.dtype, memory_format(x))
    launch(_cpu.bn_relu, x, *_sizes(x), relu, dense.data_ptr(), bn.data_ptr(), z.address())
    return z.result()


def bn_relu_bwd(dz: Tensor, x: Tensor, bn: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    if not x.numel():
        return eager.bn_relu_bwd(dz, x, bn, relu)
    dz, dense, bn, g = nhwc(dz, x.dtype), nhwc(x), bn.contiguous(), Output(x.shape, x.dtype, memory_format(x))
    sums = empty_wide((tiles(x.shape), 2, x.size(1)), x)
    pointers = (dz.data_ptr(), dense.data_ptr(), bn.data_ptr(), g.address(), sums.data_ptr())
    launch(_cpu.bn_relu_bwd, x, *_sizes(x), relu, *pointers, sums.size(0))
    return g.result(), sums


def bn_bwd(g: Tensor, x: Tensor | None, coeffs: Tensor, residual_grad: Tensor | None) -> Tensor:
    if not g.numel():
        return eager.bn_bwd(g, x, coeffs, residual_grad)
    dense = nhwc(g)
    x, coeffs, residual_grad = dense if x is None else nhwc(x, g.dtype), vector(coeffs, wide(g.dtype)), nhwc(residual_grad, g.dtype)
    dx = Output(g.shape, g.dtype, memory_format(g))
    launch(_cpu.bn_bwd, g, *_sizes(g), dense.data_ptr(), x.data_ptr(), coeffs.data_ptr(), address(residual_grad), dx.address())
    return dx.result()
