"""`relu(bn(x))` written to memory, for consumers other than a convolution: stem, tail, pooling."""

from typing import Any

import torch
from torch import Tensor

from fused_preact.backends import insisted
from fused_preact.backends.records import Layer
from fused_preact.functional import checks
from fused_preact.functional.bn_relu_conv2d import Call, cast
from fused_preact.functional.context import Group, gather, reduce, refuse_vmap
from fused_preact.ops import backend_for
from fused_preact.ops.unit import layer_bn, reduced_coeffs


class BNReLU(torch.autograd.Function):
    """Saves x and the bn vectors."""

    @staticmethod
    def forward(ctx: Any, call: Call, x, stats, gamma, beta, running_mean, running_var, num_batches_tracked):
        buffers = (running_mean, running_var, num_batches_tracked)
        run = backend_for(x, None, None, call.insisted)
        bn = layer_bn(run, call.layer, x, stats, gamma, beta, buffers, gather(call.group)) if call.done is None else call.done.bn
        ctx.call, ctx.dtypes = call._replace(done=None), [None if v is None else v.dtype for v in (gamma, beta)]
        ctx.save_for_backward(x, bn)
        return run.bn_relu(x, bn, call.layer.relu)

    @staticmethod
    def backward(ctx: Any, dz: Tensor):
        refuse_vmap(dz)
        need = ctx.needs_input_grad
        dx, dgamma, dbeta = bn_relu_grads(ctx.call, dz, *ctx.saved_tensors, need[1])
        affine = [cast(grad, dtype) if need[i] else None for i, grad, dtype in zip((3, 4), (dgamma, dbeta), ctx.dtypes, strict=True)]
        return None, dx, None, *affine, None, None, None


def bn_relu_grads(call: Call, dz: Tensor, x: Tensor, bn: Tensor, need_x: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """dx (None if it is not needed), dgamma, dbeta of z = relu(bn(x))."""
    run = backend_for(x, None, None, call.insisted)
    g, sums = run.bn_relu_bwd(dz, x, bn, call.layer.relu)
    coeffs, dgamma, dbeta = reduced_coeffs(run, call.layer, sums, bn, reduce(call.group) if need_x else None)
    return run.bn_bwd(g, x, coeffs, None) if need_x else None, dgamma, dbeta


def bn_relu(
    x: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    num_batches_tracked: Tensor | None = None,
    stats: Tensor | None = None,
    process_group: Group | None = None,
) -> Tensor:
    """Equivalent to `F.relu(F.batch_norm(x, ...))`, saving x once; the arguments are those of `bn_relu_conv2d`."""
    batch, update = checks.norm(
        x, bn_weight, bn_bias, running_mean, running_var, num_batches_tracked, stats, training, momentum, eps, process_group is not None
    )
    layer = Layer(relu=relu, batch=batch, update=update, momentum=momentum, eps=eps)
    call = Call(layer, False, None, process_group, insisted())
    return BNReLU.apply(call, x, stats, bn_weight, bn_bias, running_mean, running_var, num_batches_tracked)
