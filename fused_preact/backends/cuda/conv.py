"""The fused convolution: what `ops/conv.py` describes. 1x1 forward has a kernel; the rest is torch's library between kernels of norms."""

import functools

import torch
from torch import Tensor

from fused_preact import _cuda
from fused_preact.backends import eager, library
from fused_preact.backends.cuda import bn as norm
from fused_preact.backends.cuda import environment, tiles
from fused_preact.backends.cuda.launch import DTYPES, launch
from fused_preact.backends.layout import conv_out_shape, empty_wide
from fused_preact.backends.layout import tiles as count_tiles
from fused_preact.backends.memory import Output, nhwc
from fused_preact.backends.records import Pair

Shape = tuple[int, ...]
HALVES = (torch.bfloat16, torch.float16)


@functools.lru_cache(maxsize=65536)
def _problem(x: Shape, weight: Shape, stride: Pair, padding: Pair, dilation: Pair) -> tiles.Problem:
    out = conv_out_shape(x, weight, stride, padding, dilation)
    y, x_axis = (tiles.Axis(x[i + 2], out[i + 2], weight[i + 2], stride[i], padding[i], dilation[i]) for i in (0, 1))
    return tiles.Problem(x[0], x[1], weight[0], y, x_axis)


@functools.lru_cache(maxsize=65536)
def _fwd_plan(x: Shape, weight: Shape, conv: tuple[Pair, Pair, Pair], device: int | None) -> tuple[_cuda.Conv, _cuda.ConvTile] | None:
    """How the kernels of ours compute the convolution; None if there is none for it."""
    p = _problem(x, weight, *conv)
    tile = None if p.c % 8 or p.k % 8 else tiles.fwd_tile(p, count_tiles(conv_out_shape(x, weight, *conv)), environment.device(device))
    return tile and (_cuda.Conv(p.n, p.c, p.k, p.y, p.x), _cuda.ConvTile(*tile))


def native(x: Tensor, weight: Tensor, groups: int, *others: Tensor | None) -> bool:
    """Whether the dtypes are those of the kernels of ours."""
    return groups == 1 and x.dtype in HALVES and all(t is None or t.dtype == x.dtype for t in (weight, *others))


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
    plan = _fwd_plan(x.shape, weight.shape, (stride, padding, dilation), x.device.index) if native(x, weight, groups, residual) else None
    if plan is None:
        return library.fwd(norm, x, bn, weight, bias, residual, (stride, padding, dilation, groups), relu, want_stats)
    shape = conv_out_shape(x.shape, weight.shape, stride, padding, dilation)
    y = Output.empty(shape, weight.dtype, x, weight)
    count = count_tiles(shape)
    stats = empty_wide((count, 3, shape[1]), x) if want_stats else None
    bn, pitch = norm.norm_vectors(bn)
    reads = {"x": nhwc(x), "bn": bn, "weight": nhwc(weight), "bias": norm.float_vector(bias), "residual": nhwc(residual)}
    launch(_cuda.bn_relu_conv2d_fwd, x, DTYPES[x.dtype], *plan, pitch, relu, count, reads=reads, writes={"y": y.memory, "stats": stats})
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
