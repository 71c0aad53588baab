"""Pre-activation ResNets as the authors' CIFAR and ImageNet codes have them, of fused units."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_preact.models.architectures import Architecture
from fused_preact.models.initialise import initialise
from fused_preact.modules import (
    PreActBlock,
    PreActBottleneck,
    PreActResidual,
    PreActSequential,
    bn_relu_of,
    hand_on,
    takes_statistics,
    uses_batch_statistics,
)


class PreActResNet(nn.Module):
    """conv1, (ImageNet: bn1, ReLU, pooling), stages layer1..., bn, ReLU, average pooling, fc.

    Args:
        architecture: which network (`models.architecture(name)`).
        num_classes: outputs; None: 10 for a CIFAR network, 1000 for an ImageNet one.
        memory: of every unit, "layer", "unit" or "segment".
        segment: units a segment, None: about the square root of a stage's number of units.
        in_channels: of the images.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int | None = None,
        memory: str = "layer",
        segment: int | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        a = self.architecture = architecture
        if a.cifar:
            self.conv1 = nn.Conv2d(in_channels, a.stem_channels, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, a.stem_channels, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(a.stem_channels)
        self.stages = tuple(f"layer{i + 1}" for i in range(len(a.units)))
        options = {"stride_at": a.stride_at} if a.bottleneck else {}
        unit = PreActBottleneck if a.bottleneck else PreActBlock
        for name, plans in zip(self.stages, a.stages(), strict=True):
            units = (
                unit(p.in_channels, p.channels, p.stride, preact=p.preact, shortcut=p.shortcut, memory=memory, **options) for p in plans
            )
            self.add_module(name, PreActSequential(*units, segment=segment))
        self.bn = nn.BatchNorm2d(a.out_channels)
        self.fc = nn.Linear(a.out_channels, a.num_classes if num_classes is None else num_classes)
        initialise(self)

    def units(self) -> list[PreActResidual]:
        """Every residual unit, first to last."""
        return [unit for name in self.stages for unit in getattr(self, name)]

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> logits (N, num_classes)."""
        x, stats = self.conv1(x), None
        if not self.architecture.cifar:
            x = F.max_pool2d(bn_relu_of(self.bn1, x), 3, 2, 1)
        stages = [getattr(self, name) for name in self.stages]
        wanted = [*map(takes_statistics, stages[1:]), uses_batch_statistics(self.bn)]
        for stage, want_stats in zip(stages, wanted, strict=True):
            x, stats = hand_on(stage, x, stats, want_stats)
        z = bn_relu_of(self.bn, x, stats)
        return self.fc(torch.flatten(z.mean((2, 3)), 1))
