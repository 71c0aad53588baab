"""What a fused module reads from its real nn.BatchNorm2d and nn.Conv2d children, and when it must call them instead."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from fused_preact.backends.records import Conv, Layer
from fused_preact.functional import Group

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def must_call(child: nn.Module | None) -> bool:
    """Whether reading the parameters of `child` would miss something: hooks, a parametrization, a subclass, an own forward."""
    if child is None:
        return False
    if has_hooks(child) or "forward" in child.__dict__:
        return True
    kind = type(child)
    if kind is nn.Conv2d:
        return child.padding_mode != "zeros" or isinstance(child.padding, str)
    return kind not in NORMS


def has_hooks(module: nn.Module) -> bool:
    """Whether anybody watches calls of `module` itself."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def own_forward(module: nn.Module, base: type[nn.Module]) -> bool:
    """Whether calling `module` runs something else than `base.forward`: a subclass's forward, one set on the instance."""
    return type(module).forward is not base.forward or "forward" in module.__dict__


def any_global_hook() -> bool:
    """Whether anybody watches calls of all modules."""
    return nn_module._has_any_global_hook()


def conv_of(conv: nn.Conv2d) -> Conv:
    return Conv(conv.stride, conv.padding, conv.dilation, conv.groups)


def layer_of(bn: nn.BatchNorm2d | None, conv: Conv) -> Layer:
    """The layer of a norm (None: bare convolution) and a convolution, with the semantics of nn.BatchNorm2d.forward."""
    if bn is None:
        return Layer(conv, relu=False, norm=False, batch=False, update=False)
    tracked = bn._buffers["running_mean"] is not None
    # A cumulative average without a counter never moves, as in torch.
    momentum = 0.0 if bn.momentum is None and bn._buffers["num_batches_tracked"] is None else bn.momentum
    return Layer(
        conv,
        batch=bn.training or not tracked,
        update=bn.training and bn.track_running_stats and tracked,
        momentum=momentum,
        eps=bn.eps,
    )


def uses_batch_statistics(bn: nn.Module | None) -> bool:
    """Whether a norm normalises with the statistics of the batch."""
    return type(bn) in NORMS and (bn.training or bn._buffers["running_mean"] is None)


def buffers_of(bn: nn.BatchNorm2d) -> tuple[Tensor | None, ...]:
    """running_mean, running_var, num_batches_tracked."""
    buffers = bn._buffers
    return buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]


def norm_arguments(bn: nn.BatchNorm2d) -> dict[str, Any]:
    """A norm as keyword arguments of `bn_relu` and `bn_relu_conv2d`."""
    layer = layer_of(bn, Conv())
    running_mean, running_var, tracked = buffers_of(bn) if layer.update or not layer.batch else (None, None, None)
    return {
        "bn_weight": bn.weight,
        "bn_bias": bn.bias,
        "running_mean": running_mean,
        "running_var": running_var,
        "num_batches_tracked": tracked,
        "training": bn.training,
        "momentum": layer.momentum,
        "eps": layer.eps,
        "process_group": sync_group(bn),
    }


def sync_group(bn: nn.Module | None) -> Group | None:
    """The processes that a SyncBatchNorm in training shares its batch statistics with; None for any other norm."""
    if not isinstance(bn, nn.SyncBatchNorm) or not bn.training:
        return None
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = bn.process_group or dist.group.WORLD
    size = dist.get_world_size(group)
    return Group(group.group_name, size) if size > 1 else None
