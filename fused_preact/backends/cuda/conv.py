"""The fused convolution: what `ops/conv.py` describes.

By kernels of ours where there is one, otherwise by torch's library between kernels of norms.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from fused_preact import _cuda
from fused_preact.backends import eager, library
from fused_preact.backends.cuda import bn as norm
from fused_preact.backends.cuda import environment, tiles, wgrad_tiles
from fused_preact.backends.cuda.launch import DTYPES, launch
from fused_preact.backends.layout import conv_out_shape, empty_wide
from fused_preact.backends.layout import tiles as count_tiles
from fused_preact.backends.memory import Output, nhwc
from fused_preact.backends.records import Pair, allows_tf32

Shape = tuple[int, ...]
HALVES = (torch.bfloat16, torch.float16)
EMITS = {name: getattr(_cuda.Emit, name) for name in ("none", "dz", "g", "sums", "dx", "dx_sums")}
NO_DGRAD, NO_WGRAD = _cuda.ConvTile(0, 0, 0, 0, 0), _cuda.WgradTile(0, 0, 0, 0, 0)


@functools.lru_cache(maxsize=65536)
def problem(x: Shape, weight: Shape, stride: Pair, padding: Pair, dilation: Pair, dtype: torch.dtype) -> tiles.Problem:
    out = conv_out_shape(x, weight, stride, padding, dilation)
    y, x_axis = (tiles.Axis(x[i + 2], out[i + 2], weight[i + 2], stride[i], padding[i], dilation[i]) for i in (0, 1))
    return tiles.Problem(x[0], x[1], weight[0], y, x_axis, dtype.itemsize)


def library_only(p: tiles.Problem) -> bool:
    chunk = tiles.CHUNK_BYTES // p.itemsize
    return bool(p.c % chunk or p.k % chunk) or tiles.materialises(p)


@functools.lru_cache(maxsize=65536)
def fwd_plan(
    x: Shape, weight: Shape, conv: tuple[Pair, Pair, Pair], dtype: torch.dtype, device: int | None
) -> tuple[_cuda.Conv, _cuda.ConvTile] | None:
    """How the kernels of ours compute the convolution; None if there is none for it."""
    p = problem(x, weight, *conv, dtype)
    tile = None if library_only(p) else tiles.fwd_tile(p, count_tiles(conv_out_shape(x, weight, *conv)), environment.device(device))
    return tile and (_cuda.Conv(p.n, p.c, p.k, p.y, p.x), _cuda.ConvTile(*tile))


class BwdPlan(NamedTuple):
    """How kernels of ours compute a backward; None where there is none for it, or nothing to compute."""

    conv: _cuda.Conv | None
    dgrad: _cuda.ConvTile | None
    wgrad: _cuda.WgradTile | None
    parts: int = 0


@functools.lru_cache(maxsize=65536)
def bwd_plan(
    x: Shape, weight: Shape, conv: tuple[Pair, Pair, Pair], emit: str, want_dw: bool, dtype: torch.dtype, device: int | None
) -> BwdPlan:
    p, on = problem(x, weight, *conv, dtype), environment.device(device)
    if library_only(p):
        return BwdPlan(None, None, None)
    both = want_dw and tiles.shares_wgrad(p, emit, on)
    dgrad = tiles.dgrad_tile(p, count_tiles(x), on, both) if emit != "none" else None
    wgrad = wgrad_tiles.shared(dgrad.blocks) if both else wgrad_tiles.wgrad_tile(p, on) if want_dw else None
    native = dgrad and _cuda.ConvTile(*dgrad), wgrad and _cuda.WgradTile(*wgrad)
    return BwdPlan(_cuda.Conv(p.n, p.c, p.k, p.y, p.x), *native, wgrad.parts if wgrad else 0)


def native(x: Tensor, weight: Tensor, groups: int, *others: Tensor | None) -> bool:
    """Whether the dtypes are those of the kernels of ours, which multiply float32 as tf32."""
    return groups == 1 and all(t is None or t.dtype == x.dtype for t in (weight, *others)) and (x.dtype in HALVES or allows_tf32(x.dtype))


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
    plan = None
    if native(x, weight, groups, residual):
        plan = fwd_plan(x.shape, weight.shape, (stride, padding, dilation), x.dtype, x.device.index)
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
    plan = BwdPlan(None, None, None)
    if native(x, weight, groups, dy, dy_x, add_dz, residual_grad):
        plan = bwd_plan(x.shape, weight.shape, conv[:3], emit, want_dw, x.dtype, x.device.index)
    by_library = (emit != "none" and plan.dgrad is None) or (want_dw and plan.wgrad is None)
    # A deferred dy that is wanted in memory anyway is written first.
    if dy_coeffs is not None and (by_library or want_dy or want_dbias or dy_add is not None):
        dy, dy_x, dy_coeffs = norm.bn_bwd(dy, dy_x, dy_coeffs, dy_add, Output.empty(dy.shape, dy.dtype, x, weight)), None, None
    elif want_dy:
        dy = Output.empty(dy.shape, dy.dtype, x, weight).tensor.copy_(dy)
    out = sums = dweight = None
    if plan.dgrad or plan.wgrad:
        deferred = (dy, dy_x, dy_coeffs)
        out, sums, dweight = _native_bwd(
            plan, *deferred, x, bn, weight, relu, add_dz, emit if plan.dgrad else "none", coeffs, residual_grad
        )
    if by_library:
        missing = emit if plan.dgrad is None else "none"
        want = want_dw and plan.wgrad is None
        found = library.bwd(norm, dy, x, bn, weight, conv, relu, add_dz, missing, coeffs, residual_grad, want)
        out, sums, dweight = (own if own is not None else other for own, other in zip((out, sums, dweight), found, strict=True))
    dbias = dy.sum((0, 2, 3), dtype=torch.float32) if want_dbias else None
    return out, sums, dweight, dbias, dy if want_dy else None


def _native_bwd(
    plan: BwdPlan,
    dy: Tensor,
    dy_x: Tensor | None,
    dy_coeffs: Tensor | None,
    x: Tensor,
    bn: Tensor | None,
    weight: Tensor,
    relu: bool,
    add_dz: Tensor | None,
    emit: str,
    coeffs: Tensor | None,
    residual_grad: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """out, sums and dweight, those that the plan has a tile for, by kernels of ours."""
    count = count_tiles(x.shape)
    out = None if emit in ("none", "sums") else Output.empty(x.shape, x.dtype, x, weight)
    sums = empty_wide((count, 2, x.size(1)), x) if emit in ("g", "sums", "dx_sums") else None
    dweight = parts = None
    if plan.wgrad:
        dweight = weight_gradient(weight)
        parts = torch.empty((plan.parts, weight.numel()), dtype=torch.float32, device=x.device)
    if emit not in ("dx", "dx_sums"):
        coeffs = residual_grad = None
    bn, pitch = norm.norm_vectors(bn)
    taps_last = dweight is not None and has_taps_last(dweight)
    sizes = (DTYPES[x.dtype], plan.conv, plan.dgrad or NO_DGRAD, plan.wgrad or NO_WGRAD, pitch, relu, EMITS[emit], count, taps_last)
    reads = {"dy": nhwc(dy), "dy_x": nhwc(dy_x), "dy_coeffs": norm.float_vector(dy_coeffs), "x": nhwc(x), "bn": bn, "weight": nhwc(weight)}
    reads |= {"add_dz": nhwc(add_dz), "coeffs": norm.float_vector(coeffs), "residual_grad": nhwc(residual_grad)}
    writes = {"out": out and out.memory, "sums": sums, "parts": parts, "dweight": dweight}
    launch(_cuda.bn_relu_conv2d_bwd, x, *sizes, reads=reads, writes=writes)
    return out and out.get(), sums, as_its_weight(dweight, weight)


def weight_gradient(weight: Tensor) -> Tensor:
    """Where kernels write the gradient of a weight: like the weight, if they write its strides."""
    gradient = torch.empty_like(weight)
    dense = gradient.is_contiguous() or not has_taps_last(gradient)
    return gradient if dense else torch.empty_like(weight, memory_format=torch.contiguous_format)


def has_taps_last(gradient: Tensor) -> bool:
    return not gradient.is_contiguous(memory_format=torch.channels_last)


def as_its_weight(gradient: Tensor | None, weight: Tensor | None) -> Tensor | None:
    """The gradient with the strides of `empty_like(weight)`."""
    if gradient is None or gradient.stride() == weight.stride():
        return gradient
    like = torch.empty_like(weight)
    return gradient if gradient.stride() == like.stride() else like.copy_(gradient)
