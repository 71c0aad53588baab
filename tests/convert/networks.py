"""Small networks in the manners that people write them in: what each is for, and what of it is fused."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Bottleneck(nn.Module):
    """Attributes and functional ReLU; the projection reads the shared activation, and is there only where it is needed."""

    def __init__(self, c: int, w: int, stride: int = 1, out: int | None = None) -> None:
        super().__init__()
        out = out or 4 * w
        self.bn1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, w, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(w), nn.Conv2d(w, w, 3, stride, 1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(w), nn.Conv2d(w, out, 1, bias=False)
        if c != out or stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(c, out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        out += shortcut
        return out


class Basic(nn.Module):
    """One in-place ReLU module for all; the shortcut is an average pooling of raw x, padded by zero channels."""

    def __init__(self, c: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, out, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.relu, self.stride, self.more = nn.ReLU(inplace=True), stride, out - c

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.relu(self.bn1(x)))
        out = self.conv2(self.relu(self.bn2(out)))
        if self.stride > 1:
            x = F.pad(F.avg_pool2d(x, self.stride), (0, 0, 0, 0, 0, self.more))
        return out + x


class Pyramid(nn.Module):
    """No ReLU between the first norm and its convolution, and a norm before the addition."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, c, 3, padding=1)
        self.bn2, self.conv2, self.bn3 = nn.BatchNorm2d(c), nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.bn1(x))
        return x + self.bn3(self.conv2(F.relu(self.bn2(out))))


class DenseLayer(nn.Module):
    """Concatenation before the norm; by activation checkpointing if asked."""

    def __init__(self, c: int, growth: int, reentrant: bool | None) -> None:
        super().__init__()
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(c), nn.ReLU(inplace=True), nn.Conv2d(c, 2 * growth, 1, bias=False)
        self.norm2, self.relu2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.ReLU(inplace=True), nn.Conv2d(2 * growth, growth, 3, 1, 1)
        self.reentrant = reentrant

    def bottleneck(self, *features: Tensor) -> Tensor:
        return self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))

    def forward(self, features: list[Tensor]) -> Tensor:
        plain = self.reentrant is None
        y = self.bottleneck(*features) if plain else checkpoint(self.bottleneck, *features, use_reentrant=self.reentrant)
        return self.conv2(self.relu2(self.norm2(y)))


class Dense(nn.Module):
    """Two dense layers and a transition, which is a Sequential."""

    def __init__(self, c: int, reentrant: bool | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DenseLayer(c, 4, reentrant), DenseLayer(c + 4, 4, reentrant)])
        self.transition = nn.Sequential(nn.BatchNorm2d(c + 8), nn.ReLU(inplace=True), nn.Conv2d(c + 8, c, 1), nn.AvgPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return self.transition(torch.cat(features, 1))


class Wide(nn.Module):
    """x becomes its own activation where widths differ, and dropout may stand before the second convolution."""

    def __init__(self, c: int, out: int, p: float = 0.0) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, out, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.relu1, self.relu2, self.p = nn.ReLU(inplace=True), nn.ReLU(inplace=True), p
        self.shortcut = nn.Conv2d(c, out, 1, bias=False) if c != out else None

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            x = self.relu1(self.bn1(x))
            out = x
        else:
            out = self.relu1(self.bn1(x))
        out = self.relu2(self.bn2(self.conv1(out)))
        if self.p:
            out = F.dropout(out, self.p, self.training)
        out = self.conv2(out)
        return torch.add(x if self.shortcut is None else self.shortcut(x), out)


class NormWithActivation(nn.BatchNorm2d):
    """A norm of somebody's own, with dropout and activation behind it."""

    def __init__(self, c: int) -> None:
        super().__init__(c, eps=1e-3)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        factor = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, factor, self.eps)
        return self.act(self.drop(x))


class Activated(nn.Module):
    """Norms that contain their activation; it goes to a pooling, too, and as a tuple to the last convolution."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = NormWithActivation(c), nn.Conv2d(c, c, 3, padding=2, dilation=2, groups=2, bias=False)
        self.norm2, self.conv2 = NormWithActivation(c), nn.Conv2d(c, c, 1)
        self.pool, self.down = nn.AvgPool2d(3, 1, 1), nn.Conv2d(c, c, 1)

    def inner(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.norm1(x)
        return self.down(self.pool(z)), z

    def forward(self, x: Tensor) -> Tensor:
        shortcut, z = self.inner(x)
        return self.conv2(self.norm2(self.conv1(z))) + shortcut


class PostActivation(nn.Module):
    """conv, norm, ReLU: what lies inside a block is a triple, too."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class SwishFunction(torch.autograd.Function):
    """An activation that saves memory: code which torch functions don't see."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * s * (1 + x * (1 - s))


class StandardisedConv2d(nn.Conv2d):
    """Weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Unfusable(nn.Module):
    """SiLU, an autograd Function, squeeze and excitation, GroupNorm, a convolution of computed weights."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.bn = nn.ModuleList(nn.BatchNorm2d(c) for _ in range(4))
        self.conv = nn.ModuleList(nn.Conv2d(c, c, 1) for _ in range(3))
        self.standardised, self.group, self.squeeze = StandardisedConv2d(c, c, 1), nn.GroupNorm(2, c), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv[0](F.silu(self.bn[0](x))) + x
        x = self.conv[1](SwishFunction.apply(self.bn[1](x))) + x
        z = F.relu(self.bn[2](x))
        x = self.conv[2](z * torch.sigmoid(self.squeeze(z.mean((2, 3), keepdim=True)))) + x
        return self.standardised(F.relu(self.bn[3](F.relu(self.group(x)))))


class Twice(nn.Module):
    """One norm and convolution called twice, two norms on one input, a result kept for later, and control flow that depends on data."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.bn1, self.bn2, self.conv1, self.conv2 = nn.BatchNorm2d(c), nn.BatchNorm2d(c), nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(self.bn1(x).relu())
        b = self.conv2(torch.relu(self.bn2(x)))
        kept = [a, b]
        c = self.conv1(F.relu_(self.bn1(a)))
        if float(c.mean()) < 1e9:
            c = c + kept[1]
        return c.mul(2) + kept[0]


class Network(NamedTuple):
    """triples, shared, units: what `explain` counts in training mode."""

    id: str
    why: str
    make: Callable[[], nn.Module]
    triples: int
    shared: int
    units: int


def _chain(*blocks: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(block() for block in blocks))


# On inputs of 8 channels.
NETWORKS = [
    Network("bottleneck", "shared projection, then identity", _chain(lambda: Bottleneck(8, 4, 2), lambda: Bottleneck(16, 4)), 6, 1, 2),
    Network("bottleneck-raw", "an identity of as many channels", _chain(lambda: Bottleneck(8, 8, out=8)), 3, 0, 1),
    Network(
        "basic", "one in-place ReLU, a padded shortcut, then identity", _chain(lambda: Basic(8, 12, 2), lambda: Basic(12, 12)), 4, 0, 1
    ),
    Network("pyramid", "no ReLU, biases, a norm that goes to an addition", _chain(lambda: Pyramid(8)), 2, 0, 0),
    Network("dense", "concatenation before the norm", _chain(lambda: Dense(8)), 5, 0, 0),
    Network("dense-checkpoint", "the same, recomputed in backward", _chain(lambda: Dense(8, False)), 5, 0, 0),
    Network("dense-reentrant", "the same by the older checkpointing", _chain(lambda: Dense(8, True)), 5, 0, 0),
    Network("wide", "x becomes its activation", _chain(lambda: Wide(8, 12), lambda: Wide(12, 12)), 4, 1, 2),
    Network("activated", "norms with an activation inside, which goes to a pooling too", _chain(lambda: Activated(8)), 2, 0, 0),
    Network("post-activation", "triples inside a block", _chain(lambda: PostActivation(8)), 1, 0, 0),
    Network("unfusable", "what has no fused function", _chain(lambda: Unfusable(8)), 0, 0, 0),
    Network("twice", "modules called twice, two norms on one input, data-dependent code", _chain(lambda: Twice(8)), 3, 0, 0),
    Network("tail", "the last activation goes to a pooling", _chain(lambda: Bottleneck(8, 2), lambda: nn.BatchNorm2d(8), nn.ReLU), 3, 0, 1),
]
