"""Look-alikes of public codes, written from scratch: the wiring and the names that they have, as small as they get."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Pad(nn.Module):
    """Option A: every second pixel, and as many channels of zeros behind."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 1, 2)
        return torch.cat((x, 0 * x), 1)


class Sum(nn.ModuleList):
    """What torch7 calls a ConcatTable under a CAddTable."""

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self)


def norm(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def lua_unit(inputs: int, channels: int, stride: int, kind: str, pre: str) -> nn.Sequential:
    """A unit as the authors add one up: `pre` is "shared" (both_preact), "branch" or "none"; `kind` is one of those in LUA below."""
    basic = kind.startswith("basic")
    if basic:
        branch = [conv(inputs, channels, 3, stride), *norm(channels), conv(channels, channels)]
        outputs = channels
    else:
        outputs, strides = 4 * channels, (stride, 1) if kind == "stride at 1x1" else (1, stride)
        branch = [conv(inputs, channels, 1, strides[0]), *norm(channels), conv(channels, channels, 3, strides[1])]
        branch += [*norm(channels), conv(channels, outputs, 1)]
    if pre == "branch":
        branch = [*norm(inputs), *branch]
    widens = Pad() if kind == "basic, padded" else nn.Sequential(conv(inputs, outputs, 1, stride))
    shortcut = nn.Identity() if inputs == outputs else widens
    return nn.Sequential(*(norm(inputs) if pre == "shared" else []), Sum([nn.Sequential(*branch), shortcut]))


def lua_network(
    units: tuple[int, ...], channels: tuple[int, ...], kind: str, stem: list[nn.Module], first: str, classes: int = 5
) -> nn.Sequential:
    """`stem`, stages, norm, ReLU, pooling and a classifier; `first` is the `pre` of the very first unit."""
    modules, width = [*stem], channels[0]
    for stage, (count, c) in enumerate(zip(units, channels, strict=True)):
        for unit in range(count):
            pre = "branch" if unit else "shared" if stage else first
            modules.append(lua_unit(width, c, 2 if stage and not unit else 1, kind, pre))
            width = c if kind.startswith("basic") else 4 * c
    return nn.Sequential(*modules, *norm(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def imagenet_stem() -> list[nn.Module]:
    return [conv(3, 64, 7, 2), *norm(64), nn.MaxPool2d(3, 2, 1)]


def flat(module: nn.Module) -> list[Tensor]:
    """Weight, bias and running statistics of every module, depth first."""
    names = ("weight", "bias", "running_mean", "running_var")
    own = [value.detach() for name in names if (value := getattr(module, name, None)) is not None]
    return own + [value for child in module.children() for value in flat(child)]


class FilterPruningUnit(nn.Module):
    """he-y/filter-pruning-geometric-median: the first unit of a stage hands the activation to its shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int, first: bool) -> None:
        super().__init__()
        self.bn_a, self.conv_a = nn.BatchNorm2d(inputs), conv(inputs, channels, 3, stride)
        self.bn_b, self.conv_b = nn.BatchNorm2d(channels), conv(channels, channels)
        self.downsample = Pad() if stride == 2 else None
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn_a(x))
        shortcut = h if self.first else x
        y = self.conv_b(F.relu(self.bn_b(self.conv_a(h))))
        return y + (shortcut if self.downsample is None else self.downsample(shortcut))


class FilterPruning(nn.Module):
    """Its CIFAR network of n units a stage."""

    def __init__(self, n: int, classes: int = 10) -> None:
        super().__init__()
        self.conv_3x3 = conv(3, 16)
        for i, (inputs, channels) in enumerate(((16, 16), (16, 32), (32, 64))):
            first = FilterPruningUnit(inputs, channels, 2 if i else 1, True)
            rest = (FilterPruningUnit(channels, channels, 1, False) for _ in range(n - 1))
            self.add_module(f"stage_{i + 1}", nn.Sequential(first, *rest))
        self.lastact = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU())
        self.classifier = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage_3(self.stage_2(self.stage_1(self.conv_3x3(x))))
        return self.classifier(self.lastact(x).mean((2, 3)))


class PortUnit(nn.Module):
    """Yang Lu's port of preresnet.lua: every unit has a bn1, and the very first one doesn't call it."""

    def __init__(self, inputs: int, channels: int, stride: int, bottleneck: bool, pre: str) -> None:
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        widths, kernels = ((inputs, channels, channels, outputs), (1, 3, 1)) if bottleneck else ((inputs, channels, channels), (3, 3))
        self.depth, self.pre = len(kernels), pre
        for i, kernel in enumerate(kernels):
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i]))
            self.add_module(f"conv{i + 1}", conv(widths[i], widths[i + 1], kernel, stride if i == int(bottleneck) else 1))
        self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride)) if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.pre == "none" else F.relu(self.bn1(x))
        shortcut = h if self.pre == "shared" else x
        h = self.conv1(h)
        for i in range(2, self.depth + 1):
            h = getattr(self, f"conv{i}")(F.relu(getattr(self, f"bn{i}")(h)))
        return h + (shortcut if self.downsample is None else self.downsample(shortcut))


class Port(nn.Module):
    """Its ImageNet network."""

    def __init__(self, units: tuple[int, ...], bottleneck: bool, classes: int, first: str = "none") -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        width = 64
        for stage, count in enumerate(units):
            made = []
            for unit in range(count):
                pre = "branch" if unit else "shared" if stage else first
                made.append(PortUnit(width, 64 << stage, 2 if stage and not unit else 1, bottleneck, pre))
                width = (64 << stage) * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.bn2, self.fc = nn.BatchNorm2d(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.relu(self.bn2(x)).mean((2, 3)))


LUA: dict[str, Callable[[], nn.Module]] = {
    "preact_resnet20": lambda: lua_network((3, 3, 3), (16, 32, 64), "basic, padded", [conv(3, 16)], "shared"),
    "preact_resnet29": lambda: lua_network((3, 3, 3), (16, 32, 64), "stride at 1x1", [conv(3, 16)], "shared"),
    "preact_resnet18": lambda: lua_network((2, 2, 2, 2), (64, 128, 256, 512), "basic", imagenet_stem(), "none"),
    "preact_resnet50": lambda: lua_network((3, 4, 6, 3), (64, 128, 256, 512), "stride at 3x3", imagenet_stem(), "none"),
}
