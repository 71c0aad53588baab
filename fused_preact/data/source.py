"""What a training run asks of a data set, and what it gets."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class DataError(ValueError):
    """The data are missing, damaged or not what was asked for; the message is one sentence."""


class Batch(NamedTuple):
    """`images` (N * V, 3, H, W) float32, channels_last, normalised; `labels` (N,) int64; both on the device.

    V views of an image lie next to each other; there is one in training, and only `View` can ask for more.
    """

    images: Tensor
    labels: Tensor


class Shard(NamedTuple):
    """The part of process `rank` of `world`: every batch belongs to all processes together."""

    rank: int = 0
    world: int = 1


class View(NamedTuple):
    """How an image is looked at in evaluation: the shorter side resized to `resize`, then `crop` x `crop` from the centre.

    `ten`: instead of the centre alone, the centre, the four corners, and their mirror images. None leaves the data set's own way, which
    for images held in memory is the only one: the whole image.
    """

    crop: int | None = None
    resize: int | None = None
    ten: bool = False


class Source(ABC):
    """A data set on disk or in memory. Everything random is a function of the seed, the epoch and the image, never of what ran before.

    So a run that goes on in the middle of an epoch, or in another number of processes, sees the images that it would have seen.
    """

    num_classes: int
    image_size: int
    train_images: int
    test_images: int

    @abstractmethod
    def to(self, device: torch.device | str) -> "Source":
        """The same, whose batches are on `device`."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """How many batches `train_batches` has."""
        return batches_per_epoch(self.train_images, batch_size)

    @abstractmethod
    def train_batches(self, batch_size: int, *, seed: int, epoch: int, first: int = 0, shard: Shard = Shard()) -> Iterator[Batch]:
        """The batches of epoch number `epoch` from the one numbered `first` on: `shard`'s part of each, batch_size / world images.

        The order is drawn anew every epoch. What does not fill a batch sits the epoch out: a last batch of one image would have no batch
        statistics. Fewer images than `batch_size` are one batch.
        """

    @abstractmethod
    def test_batches(self, batch_size: int, *, shard: Shard = Shard(), view: View = View()) -> Iterator[Batch]:
        """Every test image once in all processes together, in batches of up to batch_size / world.

        Raises DataError for a view that it lacks.
        """


def batches_per_epoch(images: int, batch_size: int) -> int:
    """How many whole batches there are; fewer images than `batch_size` are one."""
    return max(1, images // batch_size)


def order(images: int, *, seed: int, epoch: int) -> Tensor:
    """The images of an epoch in their order, (images,) int64 on the CPU."""
    return torch.randperm(images, generator=generator(seed, epoch))


def generator(*key: int) -> torch.Generator:
    """A generator on the CPU, seeded by all of `key` and by nothing else."""
    mixed = 0
    for part in key:
        # Neighbouring keys must not give neighbouring seeds: a step of splitmix64 (Steele, Lea, Flood 2014) for each part.
        mixed = (mixed + part + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    # torch takes seeds of 64 bits with a sign.
    return torch.Generator().manual_seed(mixed >> 1)


_MASK = 2**64 - 1
