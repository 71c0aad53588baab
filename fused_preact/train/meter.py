"""Losses and hits of training steps, read from the device now and then."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from fused_preact.train.world import World


class DivergedError(ArithmeticError):
    """The loss is no longer a finite number; the message is one sentence."""


@dataclass
class Sums:
    """Over some steps: images, their losses and hits, and the seconds that training them took."""

    images: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0

    def add(self, images: int, loss: float, correct: int) -> None:
        """`images` more; `loss` and `correct` are sums over them."""
        self.images += images
        self.loss += loss
        self.correct += correct

    def clear(self) -> Self:
        """A copy, after which these sums begin anew."""
        copy = Sums(**asdict(self))
        self.__init__()
        return copy

    @property
    def mean_loss(self) -> float:
        return self.loss / self.images if self.images else math.nan

    @property
    def accuracy(self) -> float:
        return self.correct / self.images if self.images else math.nan

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Meter:
    """Keeps what steps return on the device until somebody reads it, because reading waits for the device.

    Reads are exact whenever they happen: each step's number is turned into a Python float by itself, so sums do not depend on when.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: list[Tensor] = []
        self._images: list[int] = []

    def add(self, loss: Tensor, correct: Tensor, images: int) -> None:
        """One step: its mean loss and its hits, both 0-d, over this process's part of `images` images."""
        self._pending += [loss, correct]
        self._images.append(images)

    def read(self) -> list[tuple[int, float, int]]:
        """(images, sum of losses, hits) of every step since the last read, over all processes, each of which must come here."""
        if not self._pending:
            return []
        # float64: hits of large batches are whole numbers, and a mean stays what it was in float32.
        values = torch.stack([value.double() for value in self._pending]).view(-1, 2)
        losses, hits = self._world.total(values).T.tolist()
        images, self._pending, self._images = self._images, [], []
        # Every process has as many images, so the mean of their means is the mean.
        world = self._world.shard.world
        return [(n, loss / world * n, round(hit)) for n, loss, hit in zip(images, losses, hits, strict=True)]
