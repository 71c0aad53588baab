"""A tensor that is not there yet, and what torch's functions do with it.

A fused norm returns a `Deferred` instead of a tensor. ReLU and conv2d make further ones of it, the sum of one and a shortcut is computed by
a fused function, and everything else gets the tensor. It has a place in autograd's graph (`Gate`), so that code which torch functions don't
see, such as the apply of somebody's autograd Function, goes on from it rightly too.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from fused_preact.backends.layout import conv_out_shape, is_channels_last
from fused_preact.backends.records import Conv
from fused_preact.convert import events
from fused_preact.convert.moment import Moment
from fused_preact.convert.nodes import Activation, Convolution, Value
from fused_preact.convert.statistics import remember_parts
from fused_preact.convert.sums import Node, add_shortcut
from fused_preact.functional.context import autocast_dtype

_plain = torch._C.DisableTorchFunctionSubclass


class Deferred(torch.Tensor):
    """Stands for the result of `node`. gate: its own function in the graph, None without one."""

    node: Node
    gate: Any = None

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = HANDLERS.get(func)
        if handler is not None:
            with _plain():
                result = handler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        events.tell_written([t.node for t in (*args, *kwargs.values()) if type(t) is Deferred], func)
        _refuse_late(func, args, kwargs)
        changed = [t for t in (args[0] if args and _changes(func, kwargs) else None, kwargs.get("out")) if type(t) is Deferred]
        reals = [real(t) for t in changed]
        args, kwargs = tree_map_only(Deferred, real, (args, kwargs))
        result = func(*args, **kwargs)
        for t, tensor in zip(changed, reals, strict=True):
            replace(t, Value(tensor), tensor)
            result = t if result is tensor else result
        return result

    @classmethod
    def __torch_dispatch__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Deferred, lambda t: t.node.data(), (args, kwargs or {}))
        return func(*args, **kwargs)


@functools.cache
def hide_from_compiler() -> None:
    """Let compiled code that is given a Deferred leave its graph, rather than look inside.

    Not when the package is imported: this imports torch's compiler, which takes a second.
    """
    Deferred.__torch_function__ = classmethod(torch.compiler.disable(Deferred.__torch_function__.__func__))


class Gate(torch.autograd.Function):
    """The place of a Deferred in the graph. Its backward runs only where the Deferred itself went into a graph.

    target: the Deferred, if it was there before and is changed in place.
    """

    @staticmethod
    def forward(ctx: Any, node: Node, make: Callable[[], Deferred] | None, target: Deferred | None, *inputs: Tensor | None) -> Deferred:
        ctx.node = node
        if target is None:
            target = make()
        else:
            ctx.mark_dirty(target)
        # What grad_fn will be; asking for that is slow.
        target.gate = ctx if any(ctx.needs_input_grad) else None
        return target

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, None, *ctx.node.vjp(grad, ctx.needs_input_grad[3:])


class _Taken(torch.autograd.Function):
    """The tensor of a Deferred that has a history of its own, such as the result of somebody's autograd Function."""

    @staticmethod
    def forward(ctx: Any, deferred: Deferred) -> Tensor:
        return deferred.node.data()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def defer(node: Node, shape: Any, dtype: torch.dtype, channels_last: bool, device: torch.device, *inputs: Tensor | None) -> Deferred:
    """A tensor that stands for `node`, computed from `inputs`."""

    def make() -> Deferred:
        _, c, h, w = shape
        strides = (c * h * w, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1)
        return torch.Tensor._make_wrapper_subclass(Deferred, shape, dtype=dtype, device=device, strides=strides)

    deferred = Gate.apply(node, make, None, *inputs) if torch.is_grad_enabled() else make()
    deferred.node = node
    return deferred


def replace(deferred: Deferred, node: Node, *inputs: Tensor | None) -> Deferred:
    """Let it stand for another node, computed from `inputs`: it was changed in place."""
    if torch.is_grad_enabled():
        Gate.apply(node, None, deferred, *inputs)
    deferred.node = node
    return deferred


def node_of(t: Tensor) -> Node:
    """The node of a tensor, deferred or not."""
    if type(t) is not Deferred:
        return Value(t)
    with _plain():
        own = t.grad_fn is t.gate
    return t.node if own else Value(_Taken.apply(t))


def real(deferred: Deferred) -> Tensor:
    """The tensor, with its history."""
    return node_of(deferred).real()


def _refuse_late(func: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Refuse to watch the gradient of what a fused function has read already: it is not computed by itself."""
    watched = args[:1] if getattr(func, "__name__", "") in HOOKS else ()
    if func is torch.autograd.grad:
        watched = (args[1] if len(args) > 1 else kwargs.get("inputs"),)
    if any(type(t) is Deferred and t.node.fused for t in tree_leaves(watched)):
        raise RuntimeError(
            "fused_preact: the gradient of a tensor that went into a fused function already is not computed: ask for it (retain_grad, "
            "register_hook) before, or call fused_preact.unfuse on this part of the network"
        )


def _changes(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Whether func changes its first argument, watches it, or gives its memory away."""
    name = getattr(func, "__name__", "")
    in_place = (
        (name.endswith("_") and not name.endswith("__"))
        or (name.startswith("__i") and name != "__invert__")
        or kwargs.get("inplace", False)
    )
    return bool(in_place) or name in WATCHERS or func in SETTERS


def activation(node: Activation) -> Deferred:
    """bn(x) or relu(bn(x)), not written yet."""
    norm = node.norm
    return defer(node, norm.x.shape, norm.x.dtype, is_channels_last(norm.x), norm.x.device, norm.origin, norm.gamma, norm.beta)


def _relu(input: Tensor, inplace: bool = False) -> Any:
    node = node_of(input)
    if not isinstance(node, Activation) or node.changed():
        return NotImplemented
    norm = node.norm if torch.is_grad_enabled() else node.norm.constant()
    made = Activation(norm, True)
    if not inplace:
        node.fused = True
        return activation(made)
    if node.relu:
        return input
    # A view of it sees the change; without gradients, its history does not.
    if node.tensor is not None or (input.requires_grad and not torch.is_grad_enabled()):
        return NotImplemented
    return replace(input, made, norm.origin, norm.gamma, norm.beta)


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    if type(input) is not Deferred or isinstance(padding, str):
        return NotImplemented
    node = node_of(input)
    if not isinstance(node, Activation) or node.changed():
        return NotImplemented
    conv = Conv(_pair(stride), _pair(padding), _pair(dilation), groups)
    norm, dtype = node.norm, autocast_dtype(node.norm.x)
    if not _fits(norm.x, weight, bias, conv.groups, dtype):
        return NotImplemented
    shape = conv_out_shape(norm.x.shape, weight.shape, *conv[:3])
    if min(shape[2:]) < 1:
        return NotImplemented
    made = Convolution(norm, node.relu, weight, bias, conv, dtype)
    events.tell_fused(made)
    node.fused = True
    recorded = made.moment.grad and (input.requires_grad or weight.requires_grad)
    if not recorded or made.moment.watched or _weights_come_and_go():
        # Without gradients, its input may be changed in place once it was called; who looks at what is saved for backward, such as
        # activation checkpointing, should see it saved here.
        return made.real()
    like = is_channels_last(norm.x) or is_channels_last(weight)
    return defer(made, shape, dtype or weight.dtype, like, weight.device, input, weight, bias)


def _fits(x: Tensor, weight: Any, bias: Any, groups: int, dtype: torch.dtype | None) -> bool:
    """Whether the convolution is one that the fused function takes: a parameter as it is stored, not one computed from others."""
    if type(weight) is not nn.Parameter or weight.dim() != 4 or weight.device != x.device or not x.numel():
        return False
    if bias is not None and (type(bias) is not nn.Parameter or (dtype is None and bias.dtype != x.dtype)):
        return False
    fitting = weight.size(1) * groups == x.size(1) and weight.size(0) % groups == 0
    return fitting and (weight.dtype == x.dtype if dtype is None else weight.is_floating_point())


def _pair(value: Any) -> tuple[int, int]:
    both = (value, value) if isinstance(value, int) else tuple(value)
    return both if len(both) == 2 else both * 2


def _add(input: Any, other: Any, *, alpha: Any = 1, out: Tensor | None = None) -> Any:
    sides = _sides(input, other) if out is None and alpha == 1 else None
    return add_shortcut(*sides) if sides else NotImplemented


def _add_in_place(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    sides = _sides(input, other) if type(input) is Deferred and alpha == 1 else None
    if not sides:
        return NotImplemented
    y = add_shortcut(*sides)
    return replace(input, Value(y), y)


def _sides(input: Any, other: Any) -> tuple[Convolution, Node] | None:
    """A convolution and a shortcut, if that is what they are; of two convolutions, the one to which fewer layers lead is the shortcut."""
    if not all(type(t) in (Tensor, nn.Parameter, Deferred) for t in (input, other)):
        return None
    a, b = _told(input), _told(other)
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return None
    conv, shortcut = sorted((node_of(input), node_of(other)), key=_depth, reverse=True)
    return (conv, shortcut) if _depth(conv) and conv.moment == Moment.now() else None


def _cat(tensors: Any, dim: int = 0, *, out: Tensor | None = None) -> Any:
    """Concatenated channels have the statistics of their parts: a dense network need not take those of its first features again."""
    nodes = [node_of(t) for t in tensors]
    fresh = [node for node in nodes if isinstance(node, Convolution) and node.layer.batch]
    if out is not None or dim not in (1, -3) or not fresh:
        return NotImplemented
    stats = [node.computed(True)[1] if isinstance(node, Convolution) else None for node in nodes]
    parts = [node.real() for node in nodes]
    result = torch.cat(parts, dim)
    if result.dim() == 4 and len({(t.dtype, t.device) for t in parts}) == 1:
        with torch.no_grad():
            remember_parts(result, parts, stats)
    return result


def _depth(node: Node) -> int:
    """How many layers in a row lead to a convolution that has not been computed; 0 if it is none."""
    return node.depth if isinstance(node, Convolution) and node.tensor is None else 0


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return NotImplemented if training and p else input


def _weights_come_and_go() -> bool:
    """Whether modules of this process are sharded (fully_shard): their weights are there only while they are called."""
    states = sys.modules.get("torch.distributed._composable_state")
    return states is not None and len(states._module_state_mapping) > 0


def _told(t: Tensor) -> Tensor:
    """Who tells the shape of t: where its tensor is there, that one, which may have been given another shape in place."""
    return t.node.tensor if type(t) is Deferred and isinstance(t.node, Value) else t


def _tells(func: Callable[..., Any]) -> Callable[..., Any]:
    """func, which needs no data."""
    return lambda t, *args, **kwargs: func(_told(t), *args, **kwargs)


_T = torch.Tensor
METADATA = frozenset(
    [getattr(_T, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_cuda", "is_meta", "is_leaf")]
    + [_T.size, _T.dim, _T.ndimension, _T.numel, _T.nelement, _T.is_floating_point, _T.is_complex, _T.stride, _T.is_contiguous, _T.__len__]
    + [_T.get_device, _T.element_size, _T.dim_order, torch.is_floating_point, torch.numel, _T.is_inference]
)
HANDLERS: dict[Any, Callable[..., Any]] = {
    # What a Deferred tells of itself.
    **{func: _tells(func) for func in METADATA},
    **dict.fromkeys((F.relu, torch.relu, _T.relu), _relu),
    **dict.fromkeys((F.relu_, torch.relu_, _T.relu_), lambda input: _relu(input, True)),
    torch.conv2d: _conv2d,
    **dict.fromkeys((torch.add, _T.add), _add),
    _T.add_: _add_in_place,
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _cat),
    F.dropout: _dropout,
}
# What is asked of a tensor to be told of its gradient, or to change it later.
HOOKS = frozenset(("register_hook", "retain_grad", "register_post_accumulate_grad_hook"))
WATCHERS = HOOKS | {"__setitem__", "numpy", "data_ptr", "__dlpack__"}
SETTERS = frozenset((_T.data.__get__, _T.data.__set__, _T.requires_grad.__set__))
