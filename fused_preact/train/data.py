"""Small data sets that need no download, held whole on the device."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_preact._text import unknown
from fused_preact._extras import require

IMAGE_SIZE = 32


class Split(NamedTuple):
    """`images` (N, 3, 32, 32) float32 channels_last, normalised; `labels` (N,) int64."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, index: Tensor) -> "Split":
        """The images numbered by `index`, again channels_last."""
        return Split(self.images[index].contiguous(memory_format=torch.channels_last), self.labels[index])


class Dataset(NamedTuple):
    """What to learn from, moved at random by up to `shift` pixels, and what to be judged by."""

    train: Split
    test: Split
    num_classes: int
    shift: int


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey enlarged to 3x32x32; every fifth image, evenly by class, is for testing."""
    bunch = require("sklearn.datasets").load_digits()
    train, test = require("sklearn.model_selection").train_test_split(
        range(len(bunch.target)), test_size=0.2, random_state=0, stratify=bunch.target
    )
    grey = torch.from_numpy(bunch.images).float().unsqueeze(1)
    images = F.interpolate(grey, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    images = ((images - images[train].mean()) / images[train].std()).repeat(1, 3, 1, 1)
    whole = Split(images, torch.from_numpy(bunch.target).long())
    return Dataset(whole.take(torch.tensor(train)), whole.take(torch.tensor(test)), num_classes=10, shift=4)


def synthetic(train: int = 1024, test: int = 256) -> Dataset:
    """Ten smooth random patterns under noise half as strong: learnable at once, and the same every time."""
    generator = torch.Generator().manual_seed(0)
    patterns = F.interpolate(torch.randn(10, 3, 4, 4, generator=generator), size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    labels = torch.arange(train + test) % 10
    noise = torch.randn(train + test, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator) / 2
    whole = Split(patterns[labels] + noise, labels)
    first, rest = torch.arange(train + test).split([train, test])
    return Dataset(whole.take(first), whole.take(rest), num_classes=10, shift=0)


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": digits, "synthetic": synthetic}


def load(name: str) -> Dataset:
    """The data set called `name`; raises ValueError with the nearest name, MissingExtraError without its package."""
    if name not in DATASETS:
        raise ValueError(unknown("data set", name, DATASETS))
    return DATASETS[name]()


def batches_per_epoch(images: int, batch_size: int) -> int:
    """How many batches `shuffled` yields."""
    return max(1, images // batch_size)


def shuffled(split: Split, batch_size: int, generator: torch.Generator, shift: int = 0) -> Iterator[Split]:
    """Batches of one size, in an order and with shifts drawn from `generator` (a CPU one, so that every device sees the same).

    What is left over sits this epoch out: a last batch of one image would have no batch statistics. A split smaller than a
    batch is one batch.
    """
    images = len(split.labels)
    order = torch.randperm(images, generator=generator)
    for step in range(batches_per_epoch(images, batch_size)):
        batch = split.take(order[step * batch_size : (step + 1) * batch_size].to(split.labels.device))
        yield Split(shifted(batch.images, shift, generator), batch.labels) if shift else batch


def shifted(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image (N, C, H, W) moved by up to `pixels` along both axes; its edge fills what it leaves. Channels_last."""
    n, _, h, w = images.shape
    windows = F.pad(images, (pixels,) * 4, mode="replicate").unfold(2, h, 1).unfold(3, w, 1)
    dy, dx = torch.randint(2 * pixels + 1, (2, n), generator=generator).to(images.device)
    return windows[torch.arange(n, device=images.device), :, dy, dx].contiguous(memory_format=torch.channels_last)


def in_order(split: Split, batch_size: int) -> Iterator[Split]:
    """Every image once, for evaluation."""
    yield from map(Split, split.images.split(batch_size), split.labels.split(batch_size))
