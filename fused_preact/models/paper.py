"""Every residual unit that the paper studies, as its figures 2 and 4 read, in plain `torch.nn`; `fuse` runs the BN -> ReLU -> conv in them.

"Identity Mappings in Deep Residual Networks" (He et al. 2016). A unit is a branch of weight layers in one of five orders of activation
(`ORDERS`, figure 4) and a shortcut, joined in one of six ways (`paper_shortcuts.JOINS`, figure 2). Where the paper is silent, the
docstring of the class says what was chosen, and marks it as a choice.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_preact._text import unknown
from fused_preact.models.architectures import Architecture, UnitPlan
from fused_preact.models.initialise import initialise
from fused_preact.models.paper_shortcuts import JOINS, Gate, JoinOptions


class UnitOptions(NamedTuple):
    """What is the same for all units of a network. layers: weight layers of a unit, 1, 2 (3x3 each) or 3 (1x1, 3x3, 1x1)."""

    layers: int
    shortcut: str
    join: JoinOptions


class PaperUnit(nn.Module):
    """A residual unit, (N, in_channels, H, W) -> (N, out, H / stride, W / stride); subclasses are the orders of its operations.

    Children: conv1, bn1, conv2, ...; `downsample` where the shortcut is a 1x1 convolution, `bn_downsample` behind it; and `join`, which
    adds the branch to the shortcut. The first convolution has the stride, as in `preact_resnet110` and `preact_resnet164`.

    The shortcut of a unit that changes shape pads with zero channels (option A) between units of 3x3 layers, and is a 1x1 convolution
    between bottlenecks; with shortcut="conv1x1" it is one in every unit. Choices: what is scaled, gated or dropped is that shortcut, and
    pre-activated 1x1 convolutions read the first activation in every unit, as the appendix has it for bottlenecks that change shape.
    """

    # Whether bn_i stands in front of conv_i; whether the first activation stands in front of conv1; whether a BN follows `downsample`.
    norm_first, preactivated, norm_projection = False, False, True

    def __init__(self, plan: UnitPlan, out_channels: int, options: UnitOptions) -> None:
        super().__init__()
        c, stride = plan.channels, plan.stride
        widths = (plan.in_channels, c, c, out_channels) if options.layers == 3 else (plan.in_channels, *[c] * options.layers)
        kernels = (1, 3, 1) if options.layers == 3 else (3,) * options.layers
        self.layers, self.stride, self.out_channels = options.layers, stride, out_channels
        for i, kernel in enumerate(kernels):
            bn = nn.BatchNorm2d(widths[i] if self.norm_first else widths[i + 1])
            conv = nn.Conv2d(widths[i], widths[i + 1], kernel, stride if i == 0 else 1, kernel // 2, bias=False)
            pair = ((f"bn{i + 1}", bn), (f"conv{i + 1}", conv))
            for name, child in pair if self.norm_first else reversed(pair):
                self.add_module(name, child)
        plain_net = options.shortcut == "constant_scaling" and options.join.shortcut_scale == 0
        self.kind = "none" if plain_net else "projection" if options.shortcut == "conv1x1" else plan.shortcut
        self.shared = self.preactivated and (plan.preact == "shared" or self.kind == "projection")
        if self.kind == "projection":
            self.downsample = nn.Conv2d(plan.in_channels, out_channels, 1, stride, bias=False)
            if self.norm_projection:
                self.bn_downsample = nn.BatchNorm2d(out_channels)
        self.join = JOINS[options.shortcut](options.join, (plan.in_channels, out_channels, stride))

    def extra_repr(self) -> str:
        return f"shortcut={self.kind!r}, shared={self.shared}"

    def pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Convolution and norm of every weight layer."""
        for i in range(1, self.layers + 1):
            yield getattr(self, f"conv{i}"), getattr(self, f"bn{i}")

    def conv_bn(self, h: Tensor) -> Tensor:
        """conv BN, then ReLU conv BN for every further layer."""
        for i, (conv, bn) in enumerate(self.pairs()):
            h = bn(conv(F.relu(h) if i else h))
        return h

    def joined(self, x: Tensor, h: Tensor) -> Tensor:
        """The shortcut of x and the branch h."""
        return self.join(x, self.shortcut(x), h)

    def shortcut(self, x: Tensor) -> Tensor | None:
        """x in the shape of the branch, before it is scaled, gated or dropped; None in the plain net, which has no shortcut."""
        if self.kind == "none":
            return None
        if self.kind == "projection":
            s = self.downsample(x)
            return self.bn_downsample(s) if self.norm_projection else s
        if self.kind == "pad":
            return F.pad(F.avg_pool2d(x, 1, self.stride), (0, 0, 0, 0, 0, self.out_channels - x.size(1)))
        return x


class Original(PaperUnit):
    """Figure 4a, equation 2 with f = ReLU: conv BN ReLU conv BN, addition, ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.joined(x, self.conv_bn(x)))


class BNAfterAddition(PaperUnit):
    """Figure 4b: conv BN ReLU conv, addition, BN ReLU.

    Choice: no BN behind a 1x1 convolution in the shortcut, as behind the branch's last convolution: the one after the addition has both.
    """

    norm_projection = False

    def forward(self, x: Tensor) -> Tensor:
        (conv, bn), *others = self.pairs()
        h = conv(x)
        for following, own in others:
            h, bn = following(F.relu(bn(h))), own
        return F.relu(bn(self.joined(x, h)))


class ReLUBeforeAddition(PaperUnit):
    """Figure 4c: conv BN ReLU conv BN ReLU, addition.

    Choices: no ReLU in the shortcut, and none after the last unit, where after an identity nothing is negative.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.joined(x, F.relu(self.conv_bn(x)))


class ReLUOnlyPreActivation(PaperUnit):
    """Figure 4d: ReLU conv BN ReLU conv BN, addition.

    Choice: a BN behind a 1x1 convolution in the shortcut, as behind the branch's last one.
    """

    preactivated = True

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(x)
        return self.joined(z if self.shared else x, self.conv_bn(z))


class FullPreActivation(PaperUnit):
    """Figure 4e, equation 9: BN ReLU conv BN ReLU conv, addition; the same function and keys as PreActBlock and PreActBottleneck."""

    norm_first, preactivated, norm_projection = True, True, False

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, (conv, bn) in enumerate(self.pairs()):
            h = F.relu(bn(h))
            if i == 0 and self.shared:
                x = h
            h = conv(h)
        return self.joined(x, h)


ORDERS: dict[str, type[PaperUnit]] = {
    "original": Original,
    "bn_after_addition": BNAfterAddition,
    "relu_before_addition": ReLUBeforeAddition,
    "relu_only_preact": ReLUOnlyPreActivation,
    "full_preact": FullPreActivation,
}


class PaperResNet(nn.Module):
    """One network of Tables 1 to 3 for 32x32 images: conv1 (BN, ReLU), stages layer1 to layer3, (bn, ReLU), average pooling, fc.

    The first and last activation are the appendix's: pre-activated orders have the first right after conv1 and before the first split,
    and an extra one after the last addition. Choices: with ReLU-only pre-activation conv1 is followed by a BN, as in the original, and
    the extra activation is a ReLU alone; with full pre-activation conv1's BN is that of the first unit, and the last one is `bn`.

    `fuse` makes it train with the fused functions (`create_model` does). Weights begin as the authors' do (`initialise`); choice: so
    does a gate's, whose bias is `gate_bias`.

    Args:
        architecture: of a CIFAR network (`models.architecture(name)`).
        num_classes: outputs; None: 10.
        memory: "layer", the one mode that networks made by `fuse` have.
        in_channels: of the images.
        shortcut: "identity", "constant_scaling", "exclusive_gating", "shortcut_only_gating", "conv1x1" or "dropout" (Table 1).
        activation: "original", "bn_after_addition", "relu_before_addition", "relu_only_preact" or "full_preact" (Table 2).
        one_layer: units of one 3x3 layer each, twice as many (ResNet-110 (1layer) of Table 3); not with bottlenecks.
        shortcut_scale, branch_scale, gate_bias, dropout, rescaled: of the shortcut; `paper_shortcuts.JoinOptions` has their meanings and
            defaults.

    Raises: ValueError for a word that is not one of these, and for an option that the shortcut or the architecture has no use for.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int | None = None,
        memory: str = "layer",
        in_channels: int = 3,
        *,
        shortcut: str = "identity",
        activation: str = "original",
        one_layer: bool = False,
        shortcut_scale: float | None = None,
        branch_scale: float | None = None,
        gate_bias: float | None = None,
        dropout: float | None = None,
        rescaled: bool | None = None,
    ) -> None:
        super().__init__()
        _refuse_impossible(architecture, memory, activation, one_layer)
        given = {"shortcut_scale": shortcut_scale, "branch_scale": branch_scale, "gate_bias": gate_bias}
        join = JoinOptions.checked(shortcut, given | {"dropout": dropout, "rescaled": rescaled})
        options = UnitOptions(3 if architecture.bottleneck else 1 if one_layer else 2, shortcut, join)
        a = architecture._replace(units=tuple(2 * n for n in architecture.units)) if one_layer else architecture
        # Weights of other codes fit the pre-activation network, whose architecture it then is.
        self.architecture = a._replace(variant=(shortcut, activation, one_layer) != ("identity", "full_preact", False))
        unit = self.order = ORDERS[activation]
        self.conv1 = nn.Conv2d(in_channels, a.stem_channels, 3, padding=1, bias=False)
        if not unit.norm_first:
            self.bn1 = nn.BatchNorm2d(a.stem_channels)
        self.stages = tuple(f"layer{i + 1}" for i in range(len(a.units)))
        for name, plans in zip(self.stages, a.stages(), strict=True):
            self.add_module(name, nn.Sequential(*(unit(plan, plan.channels * a.expansion, options) for plan in plans)))
        if unit.norm_first:
            self.bn = nn.BatchNorm2d(a.out_channels)
        self.fc = nn.Linear(a.out_channels, a.num_classes if num_classes is None else num_classes)
        initialise(self)
        for module in self.modules():
            if isinstance(module, Gate):
                module.reset_bias()

    def units(self) -> list[PaperUnit]:
        """Every residual unit, first to last."""
        return [unit for name in self.stages for unit in getattr(self, name)]

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, num_classes)."""
        x, order = self.conv1(x), self.order
        if not order.norm_first:
            x = self.bn1(x)
        if not order.preactivated:
            x = F.relu(x)
        for name in self.stages:
            x = getattr(self, name)(x)
        if order.norm_first:
            x = self.bn(x)
        if order.preactivated:
            x = F.relu(x)
        return self.fc(torch.flatten(x.mean((2, 3)), 1))


def _refuse_impossible(architecture: Architecture, memory: str, activation: str, one_layer: bool) -> None:
    if activation not in ORDERS:
        raise ValueError(unknown("activation", activation, ORDERS))
    if memory != "layer":
        raise ValueError(f"memory: expected 'layer', the one mode of the paper's units (preact_resnet* have others), got {memory!r}")
    if not isinstance(one_layer, bool):
        raise ValueError(f"one_layer: expected True or False, got {one_layer!r}")
    if one_layer and architecture.bottleneck:
        raise ValueError("one_layer: expected False with bottlenecks, whose layers differ in width, got True; resnet110 has no bottlenecks")
