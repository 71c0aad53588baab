"""The parts of a network, and scenes: functions of them and an image that return what is to be compared."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Parts(nn.Module):
    """Layers of a network, to be called in any order."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, c, 3, padding=1)
        for i in (1, 2, 3):
            self.add_module(f"bn{i}", nn.BatchNorm2d(c))
            self.add_module(f"conv{i}", nn.Conv2d(c, c, 3, padding=1, bias=False))
        self.proj, self.biased = nn.Conv2d(c, c, 1, bias=False), nn.Conv2d(c, c, 1)

    def layer(self, i: int, x: Tensor) -> Tensor:
        return self._modules[f"conv{i}"](F.relu(self._modules[f"bn{i}"](x)))

    def unit(self, x: Tensor) -> Tensor:
        return self.layer(2, self.layer(1, x)) + x

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(3, self.unit(self.stem(x)))


class Scene(NamedTuple):
    id: str
    why: str
    run: Callable[[Parts, Tensor], Any]


class Scenes(list[Scene]):
    """A list that functions are put in by a decorator."""

    def __call__(self, why: str) -> Callable:
        def add(run: Callable[[Parts, Tensor], Any]) -> Callable[[Parts, Tensor], Any]:
            self.append(Scene(run.__name__.replace("_", "-"), why, run))
            return run

        return add


def backward(y: Tensor) -> Tensor:
    y.square().sum().backward()
    return y


class Double(torch.autograd.Function):
    """Somebody's own: torch functions don't see its apply."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2 + ctx.saved_tensors[0]


class DoubleInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.mul_(2)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2
