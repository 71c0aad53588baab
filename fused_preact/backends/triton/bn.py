"""The primitives of one BatchNorm: what `ops/bn.py` describes, as launches."""

import functools

import torch
from torch import Tensor

from fused_preact.backends.layout import empty_wide, tiles
from fused_preact.backends.memory import Output, nhwc, rows, vector
from fused_preact.backends.triton.kernels import bn as kernels
from fused_preact.backends.triton.kernels.common import tl
from fused_preact.backends.triton.launch import Plan
from fused_preact.backends.triton.tiles import bn_tile, channel_tile

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def pixels(x: Tensor) -> int:
    return x.size(0) * x.size(2) * x.size(3)


@functools.cache
def _per_channel(kernel: str, channels: int, tiles: int, *flags: bool) -> Plan:
    tile = channel_tile(tiles)
    constants = (*flags, channels, tile.BT, tile.BN)
    return Plan(getattr(kernels, kernel), (-(-channels // tile.BN), 1, 1), constants, tile.num_warps)


@functools.cache
def _reducing(kernel: str, channels: int, pixels: int, tiles: int, *constants: object) -> Plan:
    tile = bn_tile(channels, -(-pixels // tiles))
    return Plan(getattr(kernels, kernel), (-(-channels // tile.BN), tiles, 1), (channels, *constants, tile.BM, tile.BN), tile.num_warps)


@functools.cache
def _elementwise(kernel: str, channels: int, pixels: int, *constants: object) -> Plan:
    tile = bn_tile(channels, pixels)
    grid = (-(-pixels // tile.BM), -(-channels // tile.BN), 1)
    return Plan(getattr(kernels, kernel), grid, (channels, *constants, tile.BM, tile.BN), tile.num_warps)


def bn_stats(x: Tensor) -> Tensor:
    stats = empty_wide((tiles(x.shape), 3, x.size(1)), x)
    _reducing("bn_stats_kernel", x.size(1), pixels(x), stats.size(0))(nhwc(x), stats, pixels(x), stats.size(0))
    return stats


def bn_merge(stats: Tensor) -> Tensor:
    merged = stats.new_empty((1, 3, stats.size(2)))
    _per_channel("bn_merge_kernel", stats.size(2), stats.size(0))(stats.contiguous(), merged, stats.size(0))
    return merged


def bn_finalize(stats: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, frozen: bool) -> Tensor:
    return _finalize(stats, gamma, beta, None, None, None, 0.0, eps, frozen)


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
    if momentum is None:
        # Every program reads it, so none may write it.
        num_batches_tracked.add_(1)
    mean, var = vector(running_mean), vector(running_var)
    bn = _finalize(stats, gamma, beta, mean, var, num_batches_tracked, momentum, eps, False)
    for buffer, moved in ((running_mean, mean), (running_var, var)):
        if buffer is not moved:
            buffer.copy_(moved)
    return bn


def _finalize(
    stats: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
    frozen: bool,
) -> Tensor:
    count, _, channels = stats.shape
    bn = stats.new_empty((5, channels))
    plan = _per_channel("bn_finalize_kernel", channels, count, frozen, momentum is None)
    small = (stats.contiguous(), vector(gamma), vector(beta), running_mean, running_var, num_batches_tracked)
    plan(*small, bn, count, 0.0 if momentum is None else float(momentum), float(eps))
    return bn


def bn_coeffs(sums: Tensor, bn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count, channels = sums.size(0), bn.size(1)
    # dgamma and dbeta become gradients: memory of their own, not rows of something larger.
    coeffs, dgamma, dbeta = bn.new_empty((4, channels)), bn.new_empty(channels), bn.new_empty(channels)
    _per_channel("bn_coeffs_kernel", channels, count)(sums.contiguous(), *rows(bn), coeffs, dgamma, dbeta, count)
    return coeffs, dgamma, dbeta


def bn_relu(x: Tensor, bn: Tensor, relu: bool) -> Tensor:
    z = Output.empty(x.shape, x.dtype, x)
    activated(nhwc(x), bn, relu, z.memory)
    return z.get()


def activated(x: Tensor, bn: Tensor, relu: bool, z: Tensor) -> None:
    """relu(bn(x)) into z (both dense NHWC), in the dtype of z."""
    if x.numel():
        _elementwise("bn_relu_kernel", x.size(1), pixels(x), relu)(x, *rows(bn), z, pixels(x))


def bn_relu_bwd(dz: Tensor, x: Tensor, bn: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    g = Output.empty(x.shape, x.dtype, x)
    sums = empty_wide((tiles(x.shape), 2, x.size(1)), x)
    masked(dz, None, nhwc(x), bn, None, None, g.memory, sums, x.dtype, relu)
    return g.get(), sums


def masked(
    dz: Tensor,
    add_dz: Tensor | None,
    x: Tensor,
    bn: Tensor,
    coeffs: Tensor | None,
    residual_grad: Tensor | None,
    out: Tensor | None,
    sums: Tensor | None,
    z: torch.dtype,
    relu: bool,
) -> None:
    """Backward of BN and ReLU from a dz in memory into `out` (g, or dx with coeffs) and `sums`; z: its dtype in forward."""
    count = tiles(x.shape)
    plan = _reducing("bn_relu_bwd_kernel", x.size(1), pixels(x), count, TYPES[z], relu)
    plan(nhwc(dz), nhwc(add_dz), x, *rows(bn), vector(coeffs), nhwc(residual_grad), out, sums, pixels(x), count)


def bn_bwd(g: Tensor, x: Tensor | None, coeffs: Tensor, residual_grad: Tensor | None, dx: Output | None = None) -> Tensor:
    dx = dx or Output.empty(g.shape, g.dtype, g)
    if g.numel():
        plan = _elementwise("bn_bwd_kernel", g.size(1), pixels(g))
        plan(nhwc(g), nhwc(x), vector(coeffs), nhwc(residual_grad), dx.memory, pixels(g))
    return dx.get()
