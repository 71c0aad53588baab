"""One layer, `conv(relu(bn(x)), weight)`, differentiable: forward and backward on the primitives."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_preact.backends import insisted
from fused_preact.backends.layout import conv_out_shape
from fused_preact.backends.records import Conv, Layer
from fused_preact.functional import checks
from fused_preact.functional.context import Group, autocast_dtype, gather, reduce, refuse_vmap
from fused_preact.ops import backend_for
from fused_preact.ops.unit import input_grad, layer_bn, reduced_coeffs


class Done(NamedTuple):
    """What was computed before a Function is called: bn vectors, and of a convolution its weight as it was used, y and y's statistics."""

    bn: Tensor
    weight: Tensor | None = None
    y: Tensor | None = None
    stats: Tensor | None = None


class Call(NamedTuple):
    """What a layer's Function needs besides tensors. done: it has been computed, and only backward is missing."""

    layer: Layer
    want_stats: bool
    dtype: torch.dtype | None
    group: Group | None
    insisted: str
    done: Done | None = None


class BNReLUConv2d(torch.autograd.Function):
    """Saves x, the bn vectors and the parameters; z = relu(bn(x)) is never saved."""

    @staticmethod
    def forward(ctx: Any, call: Call, x, stats, gamma, beta, running_mean, running_var, num_batches_tracked, weight, bias, residual):
        layer = call.layer
        ctx.call, ctx.dtypes = call._replace(done=None), [None if t is None else t.dtype for t in (gamma, beta, weight, bias, residual)]
        if call.done is not None:
            bn, weight, y, out_stats = call.done
        else:
            if call.dtype is not None:
                weight = weight.to(call.dtype)
                bias = None if bias is None else bias.to(call.dtype)
            buffers = (running_mean, running_var, num_batches_tracked)
            run = backend_for(x, weight, layer.conv, call.insisted)
            bn = layer_bn(run, layer, x, stats, gamma, beta, buffers, gather(call.group))
            y, out_stats = run.bn_relu_conv2d_fwd(x, bn, weight, bias, residual, *layer.conv, layer.relu, call.want_stats, None)
        ctx.save_for_backward(x, bn, weight)
        ctx.set_materialize_grads(False)
        if out_stats is not None:
            ctx.mark_non_differentiable(out_stats)
        return y, out_stats

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None):
        if dy is None:
            return (None,) * 11
        refuse_vmap(dy)
        x, bn, weight = ctx.saved_tensors
        layer, exchange = ctx.call.layer, reduce(ctx.call.group)
        run = backend_for(x, weight, layer.conv, ctx.call.insisted)
        need = ctx.needs_input_grad
        need_x, need_affine, need_weight, need_bias = need[1], need[3] or need[4], need[8], need[9]
        pending, conv = (dy, None, None, None), (x, bn, weight, *layer.conv, layer.relu, None)
        dx = dgamma = dbeta = None
        if need_x:
            dx, dgamma, dbeta, dw, db = input_grad(run, layer, pending, conv, None, need_weight, need_bias, exchange)
        else:
            emit = "sums" if need_affine else "none"
            _, sums, dw, db, _ = run.bn_relu_conv2d_bwd(*pending, *conv, emit, None, None, False, need_weight, need_bias)
            if need_affine:
                _, dgamma, dbeta = reduced_coeffs(run, layer, sums, bn, None)
        given = (dgamma, dbeta, dw, db, dy)
        grads = [cast(g, dtype) if need[i] else None for g, dtype, i in zip(given, ctx.dtypes, (3, 4, 8, 9, 10), strict=True)]
        return None, dx, None, *grads[:2], None, None, None, *grads[2:]


def cast(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient in the dtype of its parameter."""
    return grad if grad.dtype == dtype else grad.to(dtype)


def bn_relu_conv2d(
    x: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    training: bool,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    relu: bool = True,
    num_batches_tracked: Tensor | None = None,
    stats: Tensor | None = None,
    return_stats: bool = False,
    process_group: Group | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Equivalent to `F.conv2d(F.relu(F.batch_norm(x, ...)), conv_weight, conv_bias, ...) + residual`, saving only x for backward.

    The composite function of a pre-activation unit (He et al. 2016, section 4.2): BN, ReLU, then the weight layer.

    Args:
        x: (N, C, H, W), float32, bfloat16, float16 or float64.
        bn_weight, bn_bias: (C,) in any floating dtype, or None.
        running_mean, running_var: (C,), moved in place when training; None: always use batch statistics.
        conv_weight: (K, C/groups, R, S) in x's dtype, or any floating dtype under autocast.  conv_bias: (K,) or None.
        residual: (N, K, P, Q), added to the result.
        training: normalise with batch statistics and move the running ones; otherwise normalise with the running ones.
        momentum: of the running statistics; None: cumulative average, which needs num_batches_tracked.
        relu: False leaves the ReLU out (PyramidNet).
        num_batches_tracked: an integer scalar, counted up when training.
        stats: statistics of x as an earlier call returned them, instead of reading x once more.
        return_stats: return (y, statistics of y).
        process_group: processes to share batch statistics with (SyncBatchNorm).

    Returns: (N, K, P, Q) in conv_weight's dtype; channels_last if x or conv_weight is.

    Raises: ValueError for shapes, values and devices, TypeError for dtypes, that don't fit; `BackendRefusal`.
    """
    conv = checks.conv_of(stride, padding, dilation, groups)
    batch, update = checks.norm(
        x, bn_weight, bn_bias, running_mean, running_var, num_batches_tracked, stats, training, momentum, eps, process_group is not None
    )
    dtype = autocast_dtype(x)
    _check_conv(x, conv_weight, conv_bias, residual, conv, dtype)
    call = Call(Layer(conv, relu, True, batch, update, momentum, eps), return_stats, dtype, process_group, insisted())
    y, out = BNReLUConv2d.apply(
        call, x, stats, bn_weight, bn_bias, running_mean, running_var, num_batches_tracked, conv_weight, conv_bias, residual
    )
    return (y, out) if return_stats else y


def _check_conv(
    x: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, residual: Tensor | None, conv: Conv, dtype: torch.dtype | None
) -> None:
    checks.conv_weight("conv_weight", conv_weight, x, conv, dtype)
    if conv_bias is not None:
        checks.same_shape("conv_bias", conv_bias, (conv_weight.size(0),), x)
        if dtype is None and conv_bias.dtype != x.dtype:
            raise TypeError(f"conv_bias must have the dtype of x, {x.dtype}, outside autocast, got {conv_bias.dtype}")
    if residual is not None:
        checks.same_shape("residual", residual, conv_out_shape(x.shape, conv_weight.shape, *conv[:3]), x)
        checks.activation("residual", residual)
