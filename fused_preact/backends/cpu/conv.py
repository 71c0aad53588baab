"""The fused convolution by native kernels; arguments and results as in ops/conv.py. What is empty is the eager backend's."""

import functools

import torch
from torch import Tensor

from fused_preact import _cpu
from fused_preact.backends import eager
from fused_preact.backends.cpu.bn import bn_stats
from fused_preact.backends.cpu.launch import Output, address, launch, nhwc
from fused_preact.backends.layout import conv_out_shape, empty_wide, memory_format, stored, tiles, wide
from fused_preact.backends.records import Pair

EMITS = {name: getattr(_cpu.Emit, name) for name in ("none", "dz", "g", "sums", "dx", "dx_sums")}


@functools.lru_cache(maxsize=4096)
def geometry(
    x: tuple[int, ...], weight: tuple[int, ...], weight_strides: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[_cpu.Conv, tuple[int, int, int, int]]:
    """The native record of a convolution, and the shape of y."""
    shape = conv_out_shape(x, weight, stride, padding, dilation)
    axes = [(x[i + 2], weight[i + 2], stride[i], padding[i], dilation[i], shape[i + 2]) for i in (0, 1)]
    return _cpu.Conv(x[0], x[1], weight[0], groups, *axes, weight_strides), shape


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
    promotes = residual is not None and residual.dtype != weight.dtype
    if x.dtype != weight.dtype or promotes:
        return _mixed_fwd(x, bn, weight, bias, residual, (stride, padding, dilation, groups), relu, want_stats)
    if not x.numel():
        return eager.bn_relu_conv2d_fwd(x, bn, weight, bias, residual, stride, padding, dilation, groups, relu, want_stats, after)
    conv, shape = geometry(tuple(x.shape), tuple(weight.shape), weight.stride(), stride, padding, dilation, groups)
    dense, residual = nhwc(x), nhwc(residual)
    bn = None if bn is None else bn.contiguous()
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    y = Output(shape, weight.dtype, memory_format(x, weight))
    stats = empty_wide((tiles(shape), 3, shape[1]), x) if want_stats else None
    pointers = (dense.data_ptr(), address(bn), weight.data_ptr(), address(bias), address(residual), y.address(), address(stats))
    launch(_cpu.bn_relu_conv2d_fwd, x, conv, relu, *pointers, stats.size(0) if want_stats else 0)
    return y.result(), stats


def _mixed_fwd(x, bn, weight, bias, residual, conv, relu, want_stats):
    """bfloat16 beside float32, as autocast gives them, computed in float32; float64 in float64. A residual promotes the weight's dtype."""
    to = wide(weight.dtype)
    y, _ = bn_relu_conv2d_fwd(x.to(to), bn, weight.to(to), bias, None if residual is None else residual.to(to), *conv, relu, False, None)
    dtype = weight.dtype if residual is None else torch.promote_types(weight.dtype, residual.dtype)
    y = stored(y, dtype, x, weight)
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
    options = (relu, add_dz, emit, coeffs, residual_grad, want_dy, want_dw, want_dbias)
    if not x.numel():
        return eager.bn_relu_conv2d_bwd(dy, dy_x, dy_coeffs, dy_add, x, bn, weight, stride, padding, dilation, groups, *options)
    if not x.dtype == weight.dtype == dy.dtype:
        wide = (None if t is None else t.float() for t in (dy, dy_x, dy_coeffs, dy_add, x, bn, weight))
        out, sums, dweight, dbias, dy_out = bn_relu_conv2d_bwd(*wide, stride, padding, dilation, groups, *options)
        return (
            None if out is None else stored(out, x.dtype, x, weight),
            sums,
            None if dweight is None else torch.empty_like(weight).copy_(dweight),
            dbias,
            None if dy_out is None else stored(dy_out, dy.dtype, x, weight),
        )
    conv, shape = geometry(tuple(x.shape), tuple(weight.shape), weight.stride(), stride, padding, dilation, groups)
    # A copy is dense whatever the strides that are ambiguous, as dy_out must be.
    dense = nhwc(dy)
    dy_x, dy_add, add_dz, residual_grad = (nhwc(t, x.dtype) for t in (dy_x, dy_add, add_dz, residual_grad))
    bn, dy_coeffs, coeffs = (None if t is None else t.contiguous() for t in (bn, dy_coeffs, coeffs))
    dense_x = nhwc(x)
    dy_out = Output(shape, dy.dtype, memory_format(x, weight)) if want_dy else None
    out = Output(tuple(x.shape), x.dtype, memory_format(x, weight)) if emit in ("dz", "g", "dx", "dx_sums") else None
    sums = empty_wide((tiles(x.shape), 2, x.size(1)), x) if emit in ("g", "sums", "dx_sums") else None
    dweight = torch.empty_like(weight) if want_dw else None
    if want_dw and dweight.stride() != weight.stride():
        conv, shape = geometry(tuple(x.shape), tuple(weight.shape), dweight.stride(), stride, padding, dilation, groups)
        weight = torch.empty_strided(weight.shape, dweight.stride(), dtype=weight.dtype).copy_(weight)
    dbias = empty_wide((weight.size(0),), x) if want_dbias else None
    pointers = (
        dense.data_ptr(), address(dy_x), address(dy_coeffs), address(dy_add), dy_out.address() if want_dy else 0,
        dense_x.data_ptr(), address(bn), weight.data_ptr(), address(add_dz), address(coeffs), address(residual_grad),
        0 if out is None else out.address(), address(sums),
    )  # fmt: skip
    launch(
        _cpu.bn_relu_conv2d_bwd,
        x,
        conv,
        relu,
        EMITS[emit],
        *pointers,
        0 if sums is None else sums.size(0),
        address(dweight),
        address(dbias),
    )
    return out and out.result(), sums, dweight, dbias, dy_out and dy_out.result()
