"""Residual units with full pre-activation (He et al. 2016, figure 4e): x + F(x), each unit one differentiable function."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from fused_preact.backends.records import SHORTCUTS as UNIT_SHORTCUTS
from fused_preact.backends.records import Unit
from fused_preact.functional import Group, UnitTensors, preact_unit
from fused_preact.functional.checks import one_of
from fused_preact.functional.preact_unit import MEMORIES
from fused_preact.modules.children import (
    any_global_hook,
    buffers_of,
    conv_of,
    has_hooks,
    layer_of,
    must_call,
    own_forward,
    sync_group,
    uses_batch_statistics,
)

PREACTS = ("branch", "shared", "none")
SHORTCUTS = ("auto", *UNIT_SHORTCUTS)


class Reading(NamedTuple):
    """A unit's record and tensors, and the group of processes (None: this one alone) that its norms share batch statistics with, if any."""

    tensors: UnitTensors
    groups: set[Group | None]


class PreActResidual(nn.Module):
    """A chain of BN-ReLU-conv layers, bn1, conv1, bn2, ..., around which the shortcut runs.

    widths: channels before, between and after the convolutions; strided: the index of the one with the stride.
    """

    def __init__(
        self,
        widths: Sequence[int],
        kernels: Sequence[int],
        stride: int,
        strided: int,
        preact: str,
        shortcut: str,
        memory: str,
        eps: float,
        momentum: float | None,
    ) -> None:
        super().__init__()
        one_of("preact", preact, PREACTS)
        one_of("shortcut", shortcut, SHORTCUTS)
        one_of("memory", memory, MEMORIES)
        for i, kernel in enumerate(kernels):
            if i > 0 or preact != "none":
                self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i], eps, momentum))
            self.add_module(
                f"conv{i + 1}", nn.Conv2d(widths[i], widths[i + 1], kernel, stride if i == strided else 1, kernel // 2, bias=False)
            )
        self.names = tuple((f"bn{i + 1}", f"conv{i + 1}") for i in range(len(kernels)))
        self.stride, self.preact, self.memory = stride, preact, memory
        self.shortcut = _resolved(shortcut, widths[0], widths[-1], stride)
        if self.shortcut == "projection":
            self.downsample = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)

    def extra_repr(self) -> str:
        return f"preact={self.preact!r}, shortcut={self.shortcut!r}, memory={self.memory!r}"

    def layers(self) -> list[tuple[nn.Module | None, nn.Module]]:
        """Norm (None if there is none) and convolution of every layer."""
        children = self._modules
        return [(children.get(bn), children[conv]) for bn, conv in self.names]

    def is_plain(self) -> bool:
        """Whether nobody watches the unit or put another forward into it."""
        return not (own_forward(self, PreActResidual) or has_hooks(self) or any_global_hook())

    def takes_statistics(self) -> bool:
        """Whether the unit can be given the statistics of its input, and uses them."""
        return self.is_plain() and uses_batch_statistics(self._modules.get(self.names[0][0]))

    def joins_chains(self) -> bool:
        """Whether a chain may run this unit's arithmetic without calling the unit: nobody would notice."""
        return self._compiled_call_impl is None and self.is_plain()

    def read(self) -> Reading | None:
        """The unit as it is now, read from the children.

        None if that is not enough and they must be called: one is watched, is not what it was or got a bias, or the norms share
        statistics with different processes.
        """
        if any_global_hook():
            return None
        layers, params, buffers, groups, children = [], [], [], set(), self._modules
        for bn_name, conv_name in self.names:
            bn, conv = children.get(bn_name), children[conv_name]
            if must_call(conv) or conv.bias is not None or must_call(bn):
                return None
            layer = layer_of(bn, conv_of(conv))
            layers.append(layer)
            weight = conv._parameters["weight"]
            if bn is None:
                params += (None, None, weight)
                continue
            params += (bn._parameters["weight"], bn._parameters["bias"], weight)
            if layer.batch:
                groups.add(sync_group(bn))
            if layer.update or not layer.batch:
                buffers += buffers_of(bn)
        if len(groups) > 1:
            return None
        downsample = children.get("downsample")
        if downsample is None:
            return Reading(UnitTensors(Unit(tuple(layers), self.shortcut, self.preact == "shared"), None, params, buffers), groups)
        if must_call(downsample) or downsample.bias is not None:
            return None
        unit = Unit(tuple(layers), self.shortcut, self.preact == "shared", conv_of(downsample))
        return Reading(UnitTensors(unit, downsample._parameters["weight"], params, buffers), groups)

    def forward(self, x: Tensor, stats: Tensor | None = None, return_stats: bool = False) -> Tensor | tuple[Tensor, Tensor | None]:
        """x (N, in_channels, H, W) -> x + F(x). stats: statistics of x from the unit before; return_stats: return those of the result."""
        reading = self.read()
        if reading is None:
            y = self.call_children(x)
            return (y, None) if return_stats else y
        group = next(iter(reading.groups), None)
        return preact_unit(x, reading.tensors, stats=stats, return_stats=return_stats, memory=self.memory, process_group=group)

    def call_children(self, x: Tensor) -> Tensor:
        """The same unit through the children themselves, unfused."""
        h, shortcut = x, x
        for i, (bn, conv) in enumerate(self.layers()):
            if bn is not None:
                h = F.relu(bn(h))
            if i == 0 and self.preact == "shared":
                shortcut = h
            h = conv(h)
        if self.shortcut == "projection":
            shortcut = self.downsample(shortcut)
        elif self.shortcut == "pad":
            shortcut = F.pad(F.avg_pool2d(shortcut, 1, self.stride), (0, 0, 0, 0, 0, h.size(1) - x.size(1)))
        return h + shortcut


class PreActBlock(PreActResidual):
    """Two 3x3 convolutions; `channels` in between and out.

    Args:
        in_channels, channels: channels of the input and of the result.
        stride: of the first convolution and the shortcut.
        preact: "branch": the shortcut starts at x; "shared": at the first activation; "none": no BN and ReLU in front.
        shortcut: "identity"; "projection" (1x1 convolution `downsample`); "pad" (every stride-th pixel, zero channels appended);
            "auto": identity where shapes allow it, else projection.
        memory: "layer" saves each conv's input for backward; "unit" the unit's input; "segment" every k-th unit's input, when the units
            are in a `PreActSequential` (alone it is "unit").
        eps, momentum: of the BatchNorms.

    Raises: ValueError for a word that is not one of these, or a shortcut that doesn't fit.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        preact: str = "branch",
        shortcut: str = "auto",
        memory: str = "layer",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__((in_channels, channels, channels), (3, 3), stride, 0, preact, shortcut, memory, eps, momentum)


class PreActBottleneck(PreActResidual):
    """1x1, 3x3, 1x1 convolutions; `channels` in between, 4*channels out.

    stride_at: "3x3" (the ImageNet code) or "1x1" (the CIFAR code), the convolution with the stride. The rest as in PreActBlock.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        preact: str = "branch",
        shortcut: str = "auto",
        memory: str = "layer",
        stride_at: str = "3x3",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        one_of("stride_at", stride_at, ("3x3", "1x1"))
        widths = (in_channels, channels, channels, self.expansion * channels)
        strided = ("1x1", "3x3").index(stride_at)
        super().__init__(widths, (1, 3, 1), stride, strided, preact, shortcut, memory, eps, momentum)


def _resolved(shortcut: str, in_channels: int, out_channels: int, stride: int) -> str:
    same = stride == 1 and in_channels == out_channels
    if shortcut == "auto":
        return "identity" if same else "projection"
    if shortcut == "identity" and not same:
        raise ValueError(
            f"shortcut 'identity' needs stride 1 and as many channels out as in, got stride {stride}, {in_channels} in and "
            f"{out_channels} out"
        )
    if shortcut == "pad" and out_channels < in_channels:
        raise ValueError(f"shortcut 'pad' needs at least as many channels out as in, got {in_channels} in and {out_channels} out")
    return shortcut
