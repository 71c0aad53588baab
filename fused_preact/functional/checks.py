"""The one place that checks arguments: each refusal is one sentence with the argument, what was expected, and what came."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_preact.backends.layout import conv_out_shape
from fused_preact.backends.records import Conv, Pair

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def pair(name: str, value: Any, low: int) -> Pair:
    """An int, or two, of at least `low`, as two."""
    both = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if len(both) != 2 or not all(isinstance(v, int) and v >= low for v in both):
        raise ValueError(f"{name} must be a whole number of at least {low} or two of them, got {value!r}")
    return both


def conv_of(stride: Any, padding: Any, dilation: Any, groups: Any) -> Conv:
    """The geometry of a convolution from its arguments as torch takes them (except string paddings)."""
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups must be a whole number of at least 1, got {groups!r}")
    return Conv(pair("stride", stride, 1), pair("padding", padding, 0), pair("dilation", dilation, 1), groups)


def activation(name: str, x: Any) -> None:
    """x is a 4-D floating tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"{name} must have 4 dimensions (N, C, H, W), got shape {tuple(x.shape)}")
    if x.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {x.dtype}")


def beside(name: str, t: Tensor | None, x: Tensor) -> None:
    """t is absent or on x's device."""
    if t is not None and t.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {t.device}")


def channel_vector(name: str, v: Tensor | None, x: Tensor) -> None:
    """v is absent or a floating tensor of one element per channel of x, on x's device."""
    if v is None:
        return
    if tuple(v.shape) != (x.size(1),):
        raise ValueError(f"{name} must have shape ({x.size(1)},), one element per channel of x, got {tuple(v.shape)}")
    if not v.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating dtype, got {v.dtype}")
    beside(name, v, x)


def conv_weight(name: str, weight: Any, x: Tensor, conv: Conv, autocast: torch.dtype | None) -> None:
    """weight (K, C/groups, R, S) fits x: channels, groups, dtype, device, and an output of at least one pixel."""
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"{name} must have 4 dimensions (K, C/groups, R, S), got {got}")
    if x.size(1) % conv.groups or weight.size(0) % conv.groups:
        raise ValueError(f"groups must divide the channels of x, {x.size(1)}, and of {name}, {weight.size(0)}, got {conv.groups}")
    if weight.size(1) * conv.groups != x.size(1):
        raise ValueError(
            f"{name} must take the {x.size(1)} channels of x in {conv.groups} group(s), got shape {tuple(weight.shape)}, "
            f"which takes {weight.size(1) * conv.groups}"
        )
    if autocast is None and weight.dtype != x.dtype:
        raise TypeError(f"{name} must have the dtype of x, {x.dtype}, outside autocast, got {weight.dtype}")
    beside(name, weight, x)
    if min(conv_out_shape(x.shape, weight.shape, *conv[:3])[2:]) < 1:
        raise ValueError(
            f"x must be at least as large as the dilated kernel of {name}, {tuple(weight.shape[2:])} with dilation {conv.dilation} "
            f"and padding {conv.padding}, got shape {tuple(x.shape)}"
        )


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
