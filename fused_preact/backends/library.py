"""The convolution of a GPU's backend by torch's library, for which z is written once: where a kernel of its own is slower or is not there.

`norm` is the backend's module of one BatchNorm, with `bn_stats` and

    activated(x, bn, relu, z)                                                       relu(bn(x)) into z
    masked(dz, add_dz, x, bn, coeffs, residual_grad, out, sums, dtype of z, relu)   backward of BN and ReLU into out and sums
"""

from typing import Any

import torch
from torch import Tensor

from fused_preact.backends.eager import convolution
from fused_preact.backends.layout import empty_wide, stored, tiles
from fused_preact.backends.memory import Output, nhwc


def fwd(
    norm: Any,
    x: Tensor,
    bn: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    conv: tuple,
    relu: bool,
    want_stats: bool,
) -> tuple[Tensor, Tensor | None]:
    """`bn_relu_conv2d_fwd` in three passes: z, the convolution (and residual), the statistics."""
    y = convolution(_z(norm, x, bn, weight.dtype, relu), nhwc(weight), bias, *conv)
    if residual is not None:
        y = y.add_(residual) if residual.dtype == y.dtype else y + residual
    y = stored(y, y.dtype, x, weight)
    return y, norm.bn_stats(y) if want_stats else None


def bwd(
    norm: Any,
    dy: Tensor,
    x: Tensor,
    bn: Tensor | None,
    weight: Tensor,
    conv: tuple,
    relu: bool,
    add_dz: Tensor | None,
    emit: str,
    coeffs: Tensor | None,
    residual_grad: Tensor | None,
    want_dw: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """out, sums and dweight of `bn_relu_conv2d_bwd`, from a dy that is not deferred."""
    stride, padding, dilation, groups = conv
    z, wanted = _z(norm, x, bn, weight.dtype, relu), [emit != "none", want_dw, False]
    dz, dw, _ = torch.ops.aten.convolution_backward(
        dy.to(weight.dtype), z, nhwc(weight), None, stride, padding, dilation, False, [0, 0], groups, wanted
    )
    if want_dw and dw.stride() != weight.stride():
        dw = torch.empty_like(weight).copy_(dw)
    if emit == "none":
        return None, None, dw
    if emit == "dz":
        return stored(dz if add_dz is None else dz + add_dz, x.dtype, x, weight), None, dw
    if emit not in ("dx", "dx_sums"):
        coeffs = residual_grad = None
    out = None if emit == "sums" else Output.empty(x.shape, x.dtype, x, weight)
    sums = None if emit == "dx" else empty_wide((tiles(x.shape), 2, x.size(1)), x)
    norm.masked(dz, add_dz, nhwc(x), bn, coeffs, residual_grad, out and out.memory, sums, weight.dtype, relu)
    return out and out.get(), sums, dw


def _z(norm: Any, x: Tensor, bn: Tensor | None, dtype: torch.dtype, relu: bool) -> Tensor:
    if bn is None:
        return nhwc(x).to(dtype)
    z = torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)
    norm.activated(nhwc(x), bn, relu, z)
    return z
