"""The fused convolution: what `ops/conv.py` describes, as launches."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from fused_preact.backends import eager, library
from fused_preact.backends.layout import conv_out_shape, empty_wide, stored, tiles
from fused_preact.backends.memory import Output, nhwc, rows, vector
from fused_preact.backends.records import Pair, allows_tf32
from fused_preact.backends.triton import bn as norm
from fused_preact.backends.triton import environment, tuning
from fused_preact.backends.triton.bn import TYPES, bn_bwd
from fused_preact.backends.triton.kernels.bn_relu_conv2d_bwd import bn_relu_conv2d_bwd_kernel
from fused_preact.backends.triton.kernels.bn_relu_conv2d_dgrad import bn_relu_conv2d_dgrad_kernel
from fused_preact.backends.triton.kernels.bn_relu_conv2d_fwd import bn_relu_conv2d_fwd_kernel
from fused_preact.backends.triton.kernels.bn_relu_conv2d_wgrad import bn_relu_conv2d_wgrad_kernel, wgrad_sum_kernel
from fused_preact.backends.triton.kernels.common import Geometry
from fused_preact.backends.triton.launch import Plan
from fused_preact.backends.triton.tiles import Problem

FLAT = Geometry(*[1] * 10, 0, 0, 1, 1, 1)


@functools.lru_cache(maxsize=65536)
def problem(x: tuple, weight: tuple, conv: tuple, dtype: torch.dtype, precision: str, capability: int) -> Problem:
    """x (N, C, H, W) and weight (K, C/groups, R, S) by `conv`. A 1x1 convolution of stride 1 is a GEMM, whatever its image size."""
    n, c, h, w = x
    k, _, r, s = weight
    stride, padding, dilation, groups = conv
    y = conv_out_shape(x, weight, stride, padding, dilation)
    geo = Geometry(c, k, h, w, *y[2:], r, s, *stride, *padding, *dilation, groups)
    if (r, s, stride, padding) == (1, 1, (1, 1), (0, 0)):
        geo = FLAT._replace(C=c, K=k, groups=groups)
    return Problem(geo, n * h * w, n * y[2] * y[3], tiles(x), tiles(y), dtype, precision, capability)


def _problem(x: Tensor, weight: Tensor, *conv: object) -> Problem:
    precision = "tf32" if allows_tf32(weight.dtype) else "ieee"
    stride, padding, dilation, groups = conv
    conv = (tuple(stride), tuple(padding), tuple(dilation), groups)
    capability = environment.capability(x.device.index)
    return tuning.note(problem(tuple(x.shape), tuple(weight.shape), conv, weight.dtype, precision, capability))


@tuning.cached
def fwd_plan(p: Problem, relu: bool) -> Plan | None:
    """None: through torch's library."""
    if tuning.materialises("fwd", p):
        return None
    tile = tuning.tile("fwd", p)
    grid = (p.geo.groups * -(-p.channels[1] // tile.BN), p.out_tiles, 1)
    constants = (p.geo, relu, tile.BM, tile.BN, tile.BK, p.precision)
    return Plan(bn_relu_conv2d_fwd_kernel, grid, constants, tile.num_warps, tile.num_stages)


class Backward(NamedTuple):
    """One kernel for dgrad and wgrad, or one for each; splits: of dweight."""

    both: Plan | None
    dgrad: Plan | None
    wgrad: Plan | None
    splits: int


@tuning.cached
def bwd_plans(p: Problem, relu: bool, raw: bool) -> Backward | None:
    """None: through torch's library. raw: out is dz itself."""
    if tuning.materialises("bwd", p):
        return None
    tile = tuning.tile("narrow", p)
    if tile is not None:
        constants = (p.geo, relu, raw, tile.BM, tile.BN, tile.BK, p.precision)
        grid = (-(-p.geo.C // tile.BN), tile.splits, 1)
        return Backward(Plan(bn_relu_conv2d_bwd_kernel, grid, constants, tile.num_warps, tile.num_stages), None, None, tile.splits)
    tile = tuning.tile("dgrad", p)
    grid = (p.geo.groups * -(-p.channels[0] // tile.BN), p.in_tiles, 1)
    constants = (p.geo, relu, raw, tile.BM, tile.BN, tile.BK, p.precision)
    dgrad = Plan(bn_relu_conv2d_dgrad_kernel, grid, constants, tile.num_warps, tile.num_stages)
    tile = tuning.tile("wgrad", p)
    grid = (p.geo.groups * -(-p.channels[1] // tile.BM) * -(-p.channels[0] // tile.BN), p.taps // tile.taps, tile.splits)
    constants = (p.geo, relu, TYPES[p.dtype], tile.BM, tile.BN, tile.BK, tile.taps, p.precision)
    return Backward(None, dgrad, Plan(bn_relu_conv2d_wgrad_kernel, grid, constants, tile.num_warps, tile.num_stages), tile.splits)


@functools.cache
def wgrad_sum_plan(elements: int, splits: int) -> Plan:
    bs = min(64, 1 << (splits - 1).bit_length())
    return Plan(wgrad_sum_kernel, (-(-elements // 64), 1, 1), (bs, 64), 4)


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
    if residual is not None and residual.dtype not in TYPES:
        # A float64 residual promotes the sum to float64, which kernels don't add in.
        y, _ = bn_relu_conv2d_fwd(x, bn, weight, bias, None, stride, padding, dilation, groups, relu, False, None)
        y = stored(y + residual, torch.promote_types(y.dtype, residual.dtype), x, weight)
        return y, eager.bn_stats(y) if want_stats else None
    p = _problem(x, weight, stride, padding, dilation, groups)
    plan = fwd_plan(p, relu)
    if plan is None:
        return library.fwd(norm, x, bn, weight, bias, residual, (stride, padding, dilation, groups), relu, want_stats)
    dtype = weight.dtype if residual is None else torch.promote_types(weight.dtype, residual.dtype)
    y = Output.empty(conv_out_shape(x.shape, weight.shape, stride, padding, dilation), dtype, x, weight)
    stats = empty_wide((p.out_tiles, 3, weight.size(0)), x) if want_stats else None
    plan(nhwc(x), *rows(bn), nhwc(weight), vector(bias), nhwc(residual), y.memory, stats, p.out_pixels, p.out_tiles)
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
    p = _problem(x, weight, stride, padding, dilation, groups)
    dy_out = dbias = None
    plans = bwd_plans(p, relu, emit == "dz")
    if want_dy or (dy_coeffs is not None and (want_dbias or plans is None)):
        # Written once, it is read as it is: dgrad and wgrad need not make it again for every tap.
        written = Output.empty(dy.shape, dy.dtype, x, weight)
        dy_out = bn_bwd(dy, dy_x, dy_coeffs, dy_add, written) if dy_coeffs is not None else written.tensor.copy_(dy)
        dy, dy_x, dy_coeffs, dy_add = dy_out, None, None, None
    if want_dbias:
        dbias = dy.sum((0, 2, 3), dtype=torch.float32)
    if plans is None:
        conv = (stride, padding, dilation, groups)
        results = library.bwd(norm, dy, x, bn, weight, conv, relu, add_dz, emit, coeffs, residual_grad, want_dw)
        return *results, dbias, dy_out if want_dy else None
    out = Output.empty(x.shape, x.dtype, x, weight) if emit in ("dz", "g", "dx", "dx_sums") else None
    sums = empty_wide((p.in_tiles, 2, x.size(1)), x) if emit in ("g", "sums", "dx_sums") else None
    dweight = Output(torch.empty_like(weight)) if want_dw else None
    incoming = (nhwc(dy), nhwc(dy_x), vector(dy_coeffs), nhwc(dy_add))
    normed = (nhwc(x), *rows(bn))
    arriving = (nhwc(weight), *normed, nhwc(add_dz))
    leaving = (vector(coeffs), nhwc(residual_grad)) if emit in ("dx", "dx_sums") else (None, None)
    leaving = (*leaving, out and out.memory, sums)
    partial = _partial(dweight, plans.splits)
    if plans.both:
        plans.both(*incoming, *arriving, *leaving, partial, p.in_pixels, p.in_tiles, plans.splits)
    else:
        if emit != "none":
            plans.dgrad(*incoming, *arriving, *leaving, p.in_pixels, p.in_tiles)
        if want_dw:
            plans.wgrad(*incoming, *normed, partial, p.out_pixels, plans.splits)
    if want_dw and plans.splits > 1:
        elements = dweight.memory.numel()
        wgrad_sum_plan(elements, plans.splits)(partial, dweight.memory, plans.splits, elements)
    return out and out.get(), sums, dweight and dweight.get(), dbias, dy_out if want_dy else None


def _partial(dweight: Output | None, splits: int) -> Tensor | None:
    if dweight is None or splits == 1:
        return dweight and dweight.memory
    return dweight.memory.new_empty((splits, dweight.memory.numel()), dtype=torch.float32)
