"""The one place that checks arguments: each refusal is one sentence with the argument, what was expected, and what came."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_preact.backends.layout import conv_out_shape, wide
from fused_preact.backends.records import Conv, Pair

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def pair(name: str, value: Any, low: int) -> Pair:
    """An int, or two, of at least `low`, as two."""
    both = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if len(both) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v >= low for v in both):
        raise ValueError(f"{name} must be a whole number of at least {low} or two of them, got {value!r}")
    return both


def conv_of(stride: Any, padding: Any, dilation: Any, groups: Any) -> Conv:
    """The geometry of a convolution from its arguments as torch takes them (except string paddings)."""
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise ValueError(f"groups must be a whole number of at least 1, got {groups!r}")
    return Conv(pair("stride", stride, 1), pair("padding", padding, 0), pair("dilation", dilation, 1), groups)


def activation(name: str, x: Any) -> None:
    """x is a dense 4-D floating tensor with channels and pixels."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"{name} must have 4 dimensions (N, C, H, W), got shape {tuple(x.shape)}")
    if x.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {x.layout}")
    if 0 in x.shape[1:]:
        raise ValueError(f"{name} must have at least one channel and one pixel, got shape {tuple(x.shape)}")


def statistics(stats: Any, x: Tensor) -> None:
    """stats is absent or what an earlier call returned for x: (tiles, 3, C)."""
    if stats is None:
        return
    if not isinstance(stats, Tensor) or stats.dim() != 3 or stats.size(1) != 3 or stats.size(2) != x.size(1):
        got = tuple(stats.shape) if isinstance(stats, Tensor) else type(stats).__name__
        raise ValueError(f"stats must have shape (tiles, 3, {x.size(1)}), as the call that made x returned them, got {got}")
    if stats.dtype != wide(x.dtype):
        raise TypeError(f"stats must have dtype {wide(x.dtype)}, as the call that made x returned them, got {stats.dtype}")
    beside("stats", stats, x)


def norm(
    x: Any,
    bn_weight: Any,
    bn_bias: Any,
    running_mean: Any,
    running_var: Any,
    num_batches_tracked: Any,
    stats: Any,
    training: bool,
    momentum: Any,
    eps: Any,
    shared: bool,
) -> tuple[bool, bool]:
    """All arguments of a BatchNorm on x fit; returns whether it uses batch statistics, and whether it moves the running ones.

    shared: other processes contribute to the statistics, so that x alone need not have any.
    """
    activation("x", x)
    vectors = {"bn_weight": bn_weight, "bn_bias": bn_bias, "running_mean": running_mean, "running_var": running_var}
    for name, v in vectors.items():
        channel_vector(name, v, x)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must be given together, got only one of them")
    batch, update = training or running_mean is None, training and running_mean is not None
    if not (momentum is None or isinstance(momentum, int | float)):
        raise TypeError(f"momentum must be a number or None, got {momentum!r}")
    if not isinstance(eps, int | float) or not eps > 0:
        raise ValueError(f"eps must be a positive number, got {eps!r}")
    if num_batches_tracked is not None and not isinstance(num_batches_tracked, Tensor):
        raise TypeError(f"num_batches_tracked must be a Tensor or None, got {type(num_batches_tracked).__name__}")
    if update and momentum is None and num_batches_tracked is None:
        raise ValueError("num_batches_tracked must be given when momentum is None (cumulative average), got None")
    statistics(stats, x)
    if batch and not shared:
        batch_statistics(x.shape)
    return batch, update


def beside(name: str, t: Tensor, x: Tensor) -> None:
    """t is on x's device."""
    if t.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {t.device}")


def channel_vector(name: str, v: Any, x: Tensor) -> None:
    """v is absent or a floating tensor of one element per channel of x, on x's device."""
    if v is not None:
        _vector(name, v, x.size(1), "x", x.device)


def _vector(name: str, v: Any, channels: int, whose: str, device: torch.device) -> None:
    if not isinstance(v, Tensor):
        raise TypeError(f"{name} must be a Tensor or None, got {type(v).__name__}")
    if tuple(v.shape) != (channels,):
        raise ValueError(f"{name} must have shape ({channels},), one element per channel of {whose}, got {tuple(v.shape)}")
    if not v.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating dtype, got {v.dtype}")
    if v.device != device:
        raise ValueError(f"{name} must be on the device of x, {device}, got {v.device}")


def conv_weight(name: str, weight: Any, x: Tensor, conv: Conv, autocast: torch.dtype | None) -> None:
    """weight (K, C/groups, R, S) fits x: channels, groups, dtype, device, and an output of at least one pixel."""
    _weight(name, weight, x.size(1), "x", conv.groups, None if autocast else x.dtype, x.device)
    if min(conv_out_shape(x.shape, weight.shape, *conv[:3])[2:]) < 1:
        raise ValueError(
            f"x must be at least as large as the dilated kernel of {name}, {tuple(weight.shape[2:])} with dilation {conv.dilation} "
            f"and padding {conv.padding}, got shape {tuple(x.shape)}"
        )


def _weight(name: str, weight: Any, channels: int, whose: str, groups: int, dtype: torch.dtype | None, device: torch.device) -> None:
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"{name} must have 4 dimensions (K, C/groups, R, S), got {got}")
    if channels % groups or weight.size(0) % groups:
        raise ValueError(f"groups must divide the channels of {whose}, {channels}, and of {name}, {weight.size(0)}, got {groups}")
    if weight.size(1) * groups != channels:
        raise ValueError(
            f"{name} must take the {channels} channels of {whose} in {groups} group(s), got shape {tuple(weight.shape)}, "
            f"which takes {weight.size(1) * groups}"
        )
    if dtype is not None and weight.dtype != dtype:
        raise TypeError(f"{name} must have the dtype of x, {dtype}, outside autocast, got {weight.dtype}")
    if weight.device != device:
        raise ValueError(f"{name} must be on the device of x, {device}, got {weight.device}")


def unit_tensors(x: Tensor, parts: Sequence[Any], autocast: torch.dtype | None) -> None:
    """Every vector and weight of the units fits what reaches it: one element would broadcast in silence, another dtype promote.

    A quick test finds what is wrong, on every call; the sentence is made only then.
    """
    device, channels, dtype = x.device, x.size(1), None if autocast else x.dtype
    for unit, projection, params, buffers in parts:
        entering, taken = channels, 0
        for i, layer in enumerate(unit.layers):
            gamma, beta, weight = params[3 * i : 3 * i + 3]
            vectors = [gamma, beta]
            if layer.norm and not (isinstance(layer.eps, int | float) and layer.eps > 0):
                raise ValueError(f"eps of bn{i + 1} must be a positive number, got {layer.eps!r}")
            if not (layer.momentum is None or isinstance(layer.momentum, int | float)):
                raise TypeError(f"momentum of bn{i + 1} must be a number or None, got {layer.momentum!r}")
            if layer.norm and (layer.update or not layer.batch):
                vectors += buffers[taken : taken + 2]
                taken += 3
            for v in vectors:
                if v is not None and (
                    not isinstance(v, Tensor) or v.shape != (channels,) or not v.is_floating_point() or v.device != device
                ):
                    _vector(f"bn{i + 1}", v, channels, "its input", device)
            groups = layer.conv.groups
            fits = isinstance(weight, Tensor) and weight.dim() == 4 and weight.size(1) * groups == channels and weight.device == device
            if not fits or (dtype and weight.dtype != dtype):
                _weight(f"conv{i + 1}", weight, channels, "its input", groups, dtype, device)
            channels = weight.size(0)
        _shortcut(unit, projection, entering, channels, dtype, device)


def _shortcut(unit: Any, projection: Any, entering: int, leaving: int, dtype: torch.dtype | None, device: torch.device) -> None:
    if (unit.shortcut == "projection") != (projection is not None):
        raise ValueError(f"projection must be given for shortcut 'projection' and for no other, got {unit.shortcut!r}")
    if projection is not None:
        _weight("downsample", projection, entering, "x", unit.projection.groups, dtype, device)
        if projection.size(0) != leaving:
            raise ValueError(f"downsample must give the {leaving} channels of the unit, got shape {tuple(projection.shape)}")
    elif leaving < entering or (leaving > entering and unit.shortcut == "identity"):
        wanted = "as many" if unit.shortcut == "identity" else "at least as many"
        raise ValueError(f"shortcut {unit.shortcut!r} needs {wanted} channels out as in, got {entering} in and {leaving} out")


def unit_statistics(shape: Sequence[int], parts: Sequence[Any]) -> None:
    """Every layer that uses batch statistics sees more than one value per channel."""
    for unit, _, params, _ in parts:
        for i, layer in enumerate(unit.layers):
            if layer.norm and layer.batch:
                batch_statistics(shape)
            shape = conv_out_shape(shape, params[3 * i + 2].shape, *layer.conv[:3])


def batch_statistics(shape: Sequence[int]) -> None:
    """An activation of `shape` has statistics: more than one value per channel. The words are torch's."""
    count = shape[0] * shape[2] * shape[3]
    if count == 0:
        raise ValueError(f"x must hold at least one image when its batch statistics are used, got input size {tuple(shape)}")
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(shape)}")


def same_shape(name: str, t: Any, shape: Sequence[int], x: Tensor) -> None:
    """t is a tensor of exactly `shape` on x's device."""
    if not isinstance(t, Tensor) or tuple(t.shape) != tuple(shape):
        got = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {got}")
    beside(name, t, x)


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """value is one of a few words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
