"""The primitives of one BatchNorm: what `ops/bn.py` describes, as launches. What is empty is the eager backend's."""

import functools

import torch
from torch import Tensor

from fused_preact import _cuda
from fused_preact.backends import eager
from fused_preact.backends.cuda import environment
from fused_preact.backends.cuda.launch import DTYPES, launch
from fused_preact.backends.cuda.tiles import CHUNK_BYTES, bn_grid
from fused_preact.backends.layout import empty_wide, tiles
from fused_preact.backends.memory import Output, nhwc, vector


@functools.lru_cache(maxsize=65536)
def _grid(channels: int, pixels: int, dtype: torch.dtype, tiles: int, device: int | None) -> _cuda.Grid:
    return _cuda.Grid(*bn_grid(channels, pixels, dtype, tiles, environment.device(device)))


def _sizes(x: Tensor, tiles: int = 0) -> tuple:
    """dtype, pixels, channels and grid."""
    channels = x.size(1)
    pixels = x.numel() // channels
    return DTYPES[x.dtype], pixels, channels, _grid(channels, pixels, x.dtype, tiles, x.device.index)


def float_vector(t: Tensor | None) -> Tensor | None:
    """Per-channel values as kernels read them."""
    if t is None or (t.dtype == torch.float32 and t.is_contiguous() and t.data_ptr() % CHUNK_BYTES == 0):
        return t
    return _aligned(vector(t.float()))


def norm_vectors(bn: Tensor | None) -> tuple[Tensor | None, int]:
    """bn as kernels read it, and the distance of its vectors."""
    if bn is None:
        return None, 0
    # Vectors of chunks start at chunks.
    whole = bn.size(1) % 4 or (bn.data_ptr() % CHUNK_BYTES == 0 and bn.stride(0) % 4 == 0)
    if bn.stride(1) != 1 or not whole:
        bn = torch.empty(bn.shape, dtype=bn.dtype, device=bn.device).copy_(bn)
    return bn, bn.stride(0)


def _aligned(t: Tensor | None) -> Tensor | None:
    return t if t is None or t.data_ptr() % CHUNK_BYTES == 0 else t.clone()


def bn_stats(x: Tensor) -> Tensor:
    # A sum with a float64 residual is float64.
    if not x.numel() or x.dtype not in DTYPES:
        return eager.bn_stats(x)
    stats = empty_wide((tiles(x.shape), 3, x.size(1)), x)
    launch(_cuda.bn_stats, x, *_sizes(x, stats.size(0)), stats.size(0), reads={"x": nhwc(x)}, writes={"stats": stats})
    return stats


def bn_merge(stats: Tensor) -> Tensor:
    merged = stats.new_empty((1, 3, stats.size(2)))
    launch(_cuda.bn_merge, stats, stats.size(0), stats.size(2), reads={"stats": stats.contiguous()}, writes={"merged": merged})
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
    mean, var, tracked = float_vector(running_mean), float_vector(running_var), num_batches_tracked
    if tracked is not None:
        tracked = tracked.to(stats.device, torch.int64)
    if momentum is None:
        # Every block reads it, so none may write it.
        tracked.add_(1)
    bn = _finalize(stats, gamma, beta, mean, var, tracked, momentum, eps, False)
    for buffer, moved in ((running_mean, mean), (running_var, var), (num_batches_tracked, tracked)):
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
    cumulative = momentum is None
    launch(
        _cuda.bn_finalize,
        stats,
        *(count, channels, frozen, cumulative, 0.0 if cumulative else momentum, eps),
        reads={"stats": stats.contiguous(), "gamma": float_vector(gamma), "beta": float_vector(beta)},
        writes={"running_mean": running_mean, "running_var": running_var, "num_batches_tracked": num_batches_tracked, "bn": bn},
    )
    return bn


def bn_coeffs(sums: Tensor, bn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count, channels = sums.size(0), bn.size(1)
    # dgamma and dbeta become gradients: memory of their own, not rows of something larger.
    coeffs, dgamma, dbeta = bn.new_empty((4, channels)), bn.new_empty(channels), bn.new_empty(channels)
    bn, pitch = norm_vectors(bn)
    reads = {"sums": sums.contiguous(), "bn": bn}
    launch(_cuda.bn_coeffs, bn, count, channels, pitch, reads=reads, writes={"coeffs": coeffs, "dgamma": dgamma, "dbeta": dbeta})
    return coeffs, dgamma, dbeta


def bn_relu(x: Tensor, bn: Tensor, relu: bool) -> Tensor:
    z = Output.empty(x.shape, x.dtype, x)
    activated(nhwc(x), bn, relu, z.memory)
    return z.get()


def activated(x: Tensor, bn: Tensor, relu: bool, z: Tensor) -> None:
    """relu(bn(x)) into z (both dense NHWC), in the dtype of z."""
    if not x.numel():
        return
    # Between two dtypes it is computed, and rounded, in float32.
    x = x if x.dtype == z.dtype else x.float()
    own = z if z.dtype == x.dtype else torch.empty_like(x)
    bn, pitch = norm_vectors(bn)
    launch(_cuda.bn_relu, x, *_sizes(x), pitch, relu, reads={"x": x, "bn": bn}, writes={"z": own})
    if own is not z:
        z.copy_(own)


def bn_relu_bwd(dz: Tensor, x: Tensor, bn: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    if not x.numel():
        return eager.bn_relu_bwd(dz, x, bn, relu)
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
    """Backward of BN and ReLU from a dz in memory into `out` (g, or dx with coeffs) and `sums`. The mask is of float32, whatever z is."""
    dz = nhwc((dz if add_dz is None else dz + add_dz).to(x.dtype))
    sums = empty_wide((tiles(x.shape), 2, x.size(1)), x) if sums is None else sums
    bn, pitch = norm_vectors(bn)
    reads = {"dz": dz, "x": x, "bn": bn}
    launch(_cuda.bn_relu_bwd, x, *_sizes(x, sums.size(0)), pitch, relu, sums.size(0), reads=reads, writes={"g": out, "sums": sums})
    if coeffs is not None:
        _deferred(out, x, coeffs, residual_grad, out)


def bn_bwd(g: Tensor, x: Tensor | None, coeffs: Tensor, residual_grad: Tensor | None, dx: Output | None = None) -> Tensor:
    dx = dx or Output.empty(g.shape, g.dtype, g)
    if g.numel():
        dense = nhwc(g)
        _deferred(dense, dense if x is None else nhwc(x.to(g.dtype)), coeffs, residual_grad, dx.memory)
    return dx.get()


def _deferred(g: Tensor, x: Tensor, coeffs: Tensor, add: Tensor | None, dx: Tensor) -> None:
    """a*g + b*(x - mean) + c (+ add) into dx, which may be g."""
    reads = {"g": g, "x": x, "coeffs": float_vector(coeffs), "add": None if add is None else nhwc(add.to(g.dtype))}
    launch(_cuda.bn_bwd, g, *_sizes(g), reads=reads, writes={"dx": dx})
