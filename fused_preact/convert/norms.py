"""Norms that hand their input on: a class for each class of norm, which the modules of a fused network are made to be of."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fused_preact.backends import insisted
from fused_preact.backends.records import Layer
from fused_preact.convert.deferred import Deferred, activation, hide_from_compiler, node_of
from fused_preact.convert.moment import transformed
from fused_preact.convert.nodes import Activation, Convolution, Norm, as_it_is, version_of
from fused_preact.convert.statistics import statistics_of
from fused_preact.functional import Group, checks
from fused_preact.functional.context import gather
from fused_preact.modules.children import any_global_hook, has_hooks, norm_arguments
from fused_preact.ops import backend_for
from fused_preact.ops.unit import layer_bn

# Layers that may yet turn out to be a residual unit. Longer chains are recorded as they come, so that no recursion runs through a network.
LONGEST_UNIT = 4
EXACT = (nn.BatchNorm2d, nn.SyncBatchNorm)


class FusedNorm:
    """Takes the statistics of x when it is called, and normalises where the result is used: inside a convolution if it goes there.

    Mixed into a norm's own class, which runs wherever somebody watches or x is not an ordinary batch of images.
    """

    original: type[nn.Module]

    def forward(self, x: Any) -> Any:
        if not _can_defer(self, x):
            return super().forward(x)
        if self.original in EXACT:
            return normed(self, x, **norm_arguments(self))
        with _BatchNormCall(self, x):
            return super().forward(x)

    def __reduce_ex__(self, protocol: Any) -> Any:
        made, args, *state = super().__reduce_ex__(protocol)
        return _revived, (made, self.original, *args[1:]), *state


def _revived(make: Any, original: type[nn.Module], *args: Any) -> nn.Module:
    """A fused norm out of its pickle: its class is made, not imported."""
    return make(fused_class(original), *args)


@functools.cache
def fused_class(original: type[nn.Module]) -> type[nn.Module]:
    """`original` with FusedNorm in front. Of the same module, by which torch.fx knows whose forward not to trace."""
    hide_from_compiler()
    own = {"original": original, "__module__": original.__module__, "__doc__": FusedNorm.__doc__}
    return type(f"Fused{original.__name__}", (FusedNorm, original), own)


def _can_defer(norm: nn.Module, x: Any) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or transformed():
        return False
    if torch._C._len_torch_dispatch_stack() > 0 or has_hooks(norm) or any_global_hook():
        return False
    if type(x) is Deferred:
        return True
    ordinary = type(x) in (Tensor, nn.Parameter) and x.dim() == 4 and x.dtype in checks.FLOATING
    return ordinary and x.layout is torch.strided and not x.is_meta and 0 not in x.shape


class _BatchNormCall(TorchFunctionMode):
    """Inside the forward of a norm of somebody's own class: its F.batch_norm is deferred, and all else runs as it is."""

    def __init__(self, norm: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.norm, self.x = norm, x

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and args and args[0] is self.x:
            return _deferred_call(self.norm, *args, **kwargs)
        return func(*args, **kwargs)


def _deferred_call(
    norm: nn.Module,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Deferred:
    """The arguments are those of F.batch_norm."""
    buffers = {"running_mean": running_mean, "running_var": running_var, "num_batches_tracked": None}
    return normed(norm, x, weight, bias, **buffers, training=training, momentum=momentum, eps=eps, process_group=None)


def normed(
    norm: nn.Module,
    x: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    process_group: Group | None,
) -> Deferred:
    """bn(x), not written yet: the statistics are taken, and the running ones moved, now."""
    origin, data, source, stats = _input(x, training or running_mean is None)
    buffers = (running_mean, running_var, num_batches_tracked)
    batch, update = checks.norm(data, bn_weight, bn_bias, *buffers, None, training, momentum, eps, process_group is not None)
    layer = Layer(relu=False, batch=batch, update=update, momentum=momentum, eps=eps)
    with torch.no_grad():
        run = backend_for(data, None, None, insisted())
        if batch and stats is None:
            stats = statistics_of(data)
        bn = layer_bn(run, layer, data, stats, bn_weight, bn_bias, buffers, gather(process_group))
    affine = as_it_is(bn_weight), as_it_is(bn_bias)
    found = Norm(norm, origin, data, source, version_of(data), bn, *affine, layer, process_group, insisted())
    return activation(Activation(found if torch.is_grad_enabled() else found.constant(), False))


def _input(x: Tensor, want_stats: bool) -> tuple[Tensor, Tensor, Convolution | None, Tensor | None]:
    """Of a norm's argument: itself, its data, the convolution that computed them if it has not recorded it, and their statistics."""
    if type(x) is not Deferred:
        return x, x, None, None
    node = node_of(x)
    node.fused = True
    if isinstance(node, Convolution):
        data, stats = node.computed(want_stats)
        if not node.recorded and node.depth < LONGEST_UNIT:
            return x, data, node, stats
        return data, node.real(), None, stats
    data = node.real()
    return data, data, None, None
