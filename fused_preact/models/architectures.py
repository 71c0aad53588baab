"""What the authors built: depth, widths, stem, and how every residual unit is wired.

Two published codes of the paper's authors differ and each is followed where it is the source:

- CIFAR bottleneck nets (164, 1001): KaimingHe/resnet-1k-layers. Stride on the first 1x1, projections on the shared activation.
- ImageNet nets and CIFAR basic nets (110): facebook/fb.resnet.torch `preresnet.lua`. Stride on the 3x3; on CIFAR shortcuts
  without parameters (option A); ImageNet's first unit has no activation in front, because the stem ends with one.
"""

from collections.abc import Iterator
from typing import NamedTuple


class UnitPlan(NamedTuple):
    """One residual unit: the arguments of PreActBlock or PreActBottleneck."""

    in_channels: int
    channels: int
    stride: int
    preact: str
    shortcut: str


class Architecture(NamedTuple):
    """One network: `units` residual units per stage of `channels` (a bottleneck puts out four times as many).

    variant: its units have another order or shortcut than the pre-activation ones of the authors' codes (`models.paper`).
    """

    bottleneck: bool
    units: tuple[int, ...]
    channels: tuple[int, ...]
    cifar: bool
    variant: bool = False

    @property
    def expansion(self) -> int:
        return 4 if self.bottleneck else 1

    @property
    def stem_channels(self) -> int:
        return self.channels[0]

    @property
    def out_channels(self) -> int:
        return self.channels[-1] * self.expansion

    @property
    def image_size(self) -> int:
        return 32 if self.cifar else 224

    @property
    def num_classes(self) -> int:
        return 10 if self.cifar else 1000

    @property
    def stride_at(self) -> str:
        return "1x1" if self.cifar else "3x3"

    def stages(self) -> Iterator[tuple[UnitPlan, ...]]:
        """The units of each stage, first unit first."""
        width = self.stem_channels
        for stage, (units, channels) in enumerate(zip(self.units, self.channels, strict=True)):
            plans = []
            for unit in range(units):
                stride = 2 if unit == 0 and stage > 0 else 1
                preact = "branch" if unit else "none" if stage == 0 and not self.cifar else "shared"
                same = stride == 1 and width == channels * self.expansion
                shortcut = "identity" if same else "pad" if self.cifar and not self.bottleneck else "projection"
                plans.append(UnitPlan(width, channels, stride, preact, shortcut))
                width = channels * self.expansion
            yield tuple(plans)


def cifar(depth: int) -> Architecture:
    """Depth 6n+2 of basic units (20, 56, 110), or 9n+2 of bottlenecks (29, 164, 1001)."""
    bottleneck = depth in (29, 164, 1001)
    n = (depth - 2) // (9 if bottleneck else 6)
    return Architecture(bottleneck, (n, n, n), (16, 32, 64), cifar=True)


def imagenet(depth: int) -> Architecture:
    """Basic units for 18 and 34, bottlenecks for the deeper ones; 200 adds 16 units to 152's second stage (footnote 3)."""
    units = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
    return Architecture(depth >= 50, units[depth], (64, 128, 256, 512), cifar=False)


CIFAR_DEPTHS = (20, 29, 56, 110, 164, 1001)
ARCHITECTURES = {
    **{f"preact_resnet{depth}": cifar(depth) for depth in CIFAR_DEPTHS},
    **{f"preact_resnet{depth}": imagenet(depth) for depth in (18, 34, 50, 101, 152, 200)},
}
# Of `models.paper`, where order and shortcut are options.
PAPER_ARCHITECTURES = {f"resnet{depth}": cifar(depth) for depth in CIFAR_DEPTHS}


def paper_depths(bottleneck: bool) -> list[int]:
    """Depths of the paper's networks for 32x32 images, of bottlenecks (9n+2) or of 3x3 layers (6n+2)."""
    return [depth for depth in sorted(CIFAR_DEPTHS) if PAPER_ARCHITECTURES[f"resnet{depth}"].bottleneck == bottleneck]
