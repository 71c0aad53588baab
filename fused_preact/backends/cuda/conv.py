"""The fused convolution: what `ops/conv.py` describes. 1x1 forward has a kernel; the rest is torch's library between kernels of norms."""

import functools

import torch
from torch import Tensor

from fused_preact import _cuda
from fused_preact.backends import eager, library
from fused_preact.backends.cuda import bn as norm
from fused_preact.backends.cuda import environment
from fused_preact.backends.cuda.launch import DTYPES, launch
from fused_preact.backends.cuda.tiles import conv_tile
from fused_preact.backends.layout import conv_out_shape, empty_wide, tiles
from fused_preact.backends.memory import Output, nhwc
from fused_preact.backends.records import Pair

HALVES = (torch.bfloat16, torch.float16)


@functools.lru_cache(maxsize=65536)
def _tile(pixels: int, c: int, k: int, tiles: int, device: int | None) -> _cuda.ConvTile | None:
    tile = conv_tile(pixels, c, k, tiles, environment.device(device))
    return tile and _cuda.ConvTile(*tile)


def fwd_tile(x: Tensor, weight: Tensor, residual: Tensor | None, stride: Pair, padding: Pair, groups: int) -> _cuda.ConvTile | None:
    """How the kernel of ours computes the convolution; None if there is none for it."""
    n, c, h, w = x.shape
    k, _, r, s = weight.shape
    pointwise = (r, s, *stride, *padding, groups) == (1, 1, 1, 1, 0, 0, 1)
    dtypes = {t.dtype for t in (x, weight, residual) if t is not None}
    if not pointwise or len(dtypes) > 1 or x.dtype not in HALVES or c % 8 or k % 8:
        return None
    return _tile(n * h * w, c, k, tiles((n, k, h, w)), x.device.index)


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
    if not x.numel():
        return eager.bn_relu_conv2d_fwd(x, bn, weight, bias, residual, stride, padding, dilation, groups, relu, want_stats, after)
    tile = fwd_tile(x, weight, residual, stride, padding, groups)
    if tile is None:
        return library.fwd(norm, x, bn, weight, bias, residual, (stride, padding, dilation, groups), relu, want_stats)
    shape = conv_out_shape(x.shape, weight.shape, stride, padding, dilation)
    y = Output.empty(shape, weight.dtype, x, weight)
    count = tiles(shape)
    stats = empty_wide((count, 3, shape[1]), x) if want_stats else None
    bn, pitch = norm.norm_vectors(bn)
    sizes = (DTYPES[x.dtype], x.numel() // x.size(1), x.size(1), shape[1], tile, pitch, relu, count)
    reads = {"x": nhwc(x), "bn": bn, "weight": nhwc(weight), "bias": norm.float_vector(bias), "residual": nhwc(residual)}
    launch(_cuda.bn_relu_conv2d_fwd, x, *sizes, reads=reads, writes={"y": y.memory, "stats": stats})
    return y.get(), stats


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
    conv = (stride, padding, dilation, groups)
    if not x.numel():
        deferred, wanted = (dy, dy_x, dy_coeffs, dy_add), (want_dy, want_dw, want_dbias)
        return eager.bn_relu_conv2d_bwd(*deferred, x, bn, weight, *conv, relu, add_dz, emit, coeffs, residual_grad, *wanted)
    if dy_coeffs is not None:
        dy = norm.bn_bwd(dy, dy_x, dy_coeffs, dy_add, Output.empty(dy.shape, dy.dtype, x, weight))
    elif want_dy:
        dy = Output.empty(dy.shape, dy.dtype, x, weight).tensor.copy_(dy)
    out, sums, dweight = library.bwd(norm, dy, x, bn, weight, conv, relu, add_dz, emit, coeffs, residual_grad, want_dw)
    dbias = dy.sum((0, 2, 3), dtype=torch.float32) if want_dbias else None
    return out, sums, dweight, dbias, dy if want_dy else None
