"""The fused convolution, forward and backward: one schema each for every backend."""

import torch
from torch import Tensor

from fused_preact.backends.layout import conv_out_shape, empty, empty_wide, tiles
from fused_preact.backends.records import Conv, Pair
from fused_preact.ops.library import chosen, primitive

CONV = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"


def _fwd_fake(x, bn, weight, bias, residual, stride, padding, dilation, groups, relu, want_stats, after, insisted):
    dtype = weight.dtype if residual is None else torch.promote_types(weight.dtype, residual.dtype)
    y = empty(conv_out_shape(x.shape, weight.shape, stride, padding, dilation), dtype, x, weight)
    return y, empty_wide((tiles(y.shape), 3, y.size(1)), y) if want_stats else None


@primitive(
    f"bn_relu_conv2d_fwd(Tensor x, Tensor? bn, Tensor weight, Tensor? bias, Tensor? residual, {CONV}, bool relu, bool want_stats, "
    "Tensor? after, str insisted) -> (Tensor, Tensor?)",
    fake=_fwd_fake,
)
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
    insisted: str,
) -> tuple[Tensor, Tensor | None]:
    """y = conv(relu(bn(x)), weight) + bias + residual (N, K, P, Q) and, if wanted, the statistics of y as stored.

    Without bn the convolution reads x itself. `after` is not read: a recomputation in backward passes dy there, because the compiler
    would otherwise merge it with forward's call and save its result.
    """
    conv = Conv(tuple(stride), tuple(padding), tuple(dilation), groups)
    return chosen(x, weight, conv, insisted).bn_relu_conv2d_fwd(x, bn, weight, bias, residual, *conv, relu, want_stats, after)


def _bwd_fake(
    dy, dy_x, dy_coeffs, dy_add, x, bn, weight, stride, padding, dilation, groups, relu, add_dz, emit, coeffs, residual_grad,
    want_dy, want_dw, want_dbias, insisted,
):  # fmt: skip
    return (
        empty(x.shape, x.dtype, x, weight) if emit in ("dz", "g", "dx", "dx_sums") else None,
        empty_wide((tiles(x.shape), 2, x.size(1)), x) if emit in ("g", "sums", "dx_sums") else None,
        torch.empty_like(weight) if want_dw else None,
        empty_wide((weight.size(0),), x) if want_dbias else None,
        empty(dy.shape, dy.dtype, x, weight) if want_dy else None,
    )


@primitive(
    "bn_relu_conv2d_bwd(Tensor dy, Tensor? dy_x, Tensor? dy_coeffs, Tensor? dy_add, Tensor x, Tensor? bn, Tensor weight, "
    f"{CONV}, bool relu, Tensor? add_dz, str emit, Tensor? coeffs, Tensor? residual_grad, bool want_dy, bool want_dw, "
    "bool want_dbias, str insisted) -> (Tensor?, Tensor?, Tensor?, Tensor?, Tensor?)",
    fake=_bwd_fake,
)
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
    insisted: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """out, sums, dweight, dbias, dy_out: dgrad and wgrad of one fused convolution; what is not asked for is None.

    With dy_coeffs, dy means a*dy + b*(dy_x - mean) + c (+ dy_add): the BN backward of the next layer, deferred to here.
    want_dy writes that out as dy_out. add_dz is added to dz before the mask. emit chooses out and sums:
    "none"; "dz" raw dz; "g" masked dz, and sums; "sums" only; "dx" a*g + b*(x - mean) + c + residual_grad of given coeffs;
    "dx_sums" both, for frozen statistics, whose coeffs need no sums.
    """
    conv = Conv(tuple(stride), tuple(padding), tuple(dilation), groups)
    return chosen(x, weight, conv, insisted).bn_relu_conv2d_bwd(
        dy, dy_x, dy_coeffs, dy_add, x, bn, weight, *conv, relu, add_dz, emit, coeffs, residual_grad, want_dy, want_dw, want_dbias
    )
