"""The same networks in plain `torch.nn`, with the same state_dict keys: what the fused ones are tested and timed against."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_preact.models.architectures import Architecture, UnitPlan
from fused_preact.models.initialise import initialise


class ReferenceUnit(nn.Module):
    """A residual unit as equation (9) reads, x + F(f(x)), one torch call an operation."""

    def __init__(self, plan: UnitPlan, bottleneck: bool, stride_at: str) -> None:
        super().__init__()
        self.preact, self.shortcut, self.stride = plan.preact, plan.shortcut, plan.stride
        c = plan.channels
        self.out_channels = 4 * c if bottleneck else c
        if bottleneck:
            widths, kernels, strided = (plan.in_channels, c, c, self.out_channels), (1, 3, 1), 0 if stride_at == "1x1" else 1
        else:
            widths, kernels, strided = (plan.in_channels, c, c), (3, 3), 0
        self.depth = len(kernels)
        for i, kernel in enumerate(kernels):
            if i > 0 or self.preact != "none":
                self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i]))
            stride = plan.stride if i == strided else 1
            self.add_module(f"conv{i + 1}", nn.Conv2d(widths[i], widths[i + 1], kernel, stride, kernel // 2, bias=False))
        if self.shortcut == "projection":
            self.downsample = nn.Conv2d(plan.in_channels, self.out_channels, 1, plan.stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.preact == "none" else F.relu(self.bn1(x))
        s = h if self.preact == "shared" else x
        if self.shortcut == "projection":
            s = self.downsample(s)
        elif self.shortcut == "pad":
            s = F.pad(F.avg_pool2d(s, 1, self.stride), (0, 0, 0, 0, 0, self.out_channels - s.size(1)))
        h = self.conv1(h)
        for i in range(2, self.depth + 1):
            h = getattr(self, f"conv{i}")(F.relu(getattr(self, f"bn{i}")(h)))
        return h + s


class ReferenceResNet(nn.Module):
    """A pre-activation ResNet of `torch.nn` modules only; (N, 3, H, W) -> (N, num_classes)."""

    def __init__(self, architecture: Architecture, num_classes: int | None = None, in_channels: int = 3) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.cifar = a.cifar
        if a.cifar:
            self.conv1 = nn.Conv2d(in_channels, a.stem_channels, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, a.stem_channels, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(a.stem_channels)
        self.stages = [f"layer{i + 1}" for i in range(len(a.units))]
        for name, plans in zip(self.stages, a.stages(), strict=True):
            self.add_module(name, nn.Sequential(*(ReferenceUnit(plan, a.bottleneck, a.stride_at) for plan in plans)))
        self.bn = nn.BatchNorm2d(a.out_channels)
        self.fc = nn.Linear(a.out_channels, a.num_classes if num_classes is None else num_classes)
        initialise(self)

    def units(self) -> list[nn.Module]:
        """Every residual unit, first to last."""
        return [unit for name in self.stages for unit in getattr(self, name)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if not self.cifar:
            x = F.max_pool2d(F.relu(self.bn1(x)), 3, 2, 1)
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(torch.flatten(F.relu(self.bn(x)).mean((2, 3)), 1))
