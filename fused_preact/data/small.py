"""Small data sets that need no files."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_preact._extras import require
from fused_preact.data.memory import Augment, Memory, Split

IMAGE_SIZE = 32


def digits() -> Memory:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey enlarged to 32x32x3; every fifth image, evenly by class, is for testing.

    Trained on moved by up to 4 pixels. Raises MissingExtraError without scikit-learn.
    """
    bunch = require("sklearn.datasets").load_digits()
    parts = require("sklearn.model_selection").train_test_split(
        range(len(bunch.target)), test_size=0.2, random_state=0, stratify=bunch.target
    )
    # Grey has 17 steps, 0..16.
    grey = torch.from_numpy(bunch.images).float().unsqueeze(1) * (255 / 16)
    pixels = F.interpolate(grey, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    images, labels = _bytes(pixels.expand(-1, 3, -1, -1)), torch.from_numpy(bunch.target).long()
    train, test = (Split(images[part], labels[part]) for part in parts)
    return _memory(train, test, Augment(shift=4, edge="replicate"))


def synthetic(train: int = 1024, test: int = 256) -> Memory:
    """Ten smooth random patterns under noise half as strong: learnable at once, and the same every time."""
    generator = torch.Generator().manual_seed(0)
    patterns = F.interpolate(torch.randn(10, 3, 4, 4, generator=generator), size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    labels = torch.arange(train + test) % 10
    noise = torch.randn(train + test, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator) / 2
    # Three deviations of both together stay within a byte.
    images = _bytes(128 + 40 * (patterns[labels] + noise))
    return _memory(Split(images[:train], labels[:train]), Split(images[train:], labels[train:]), Augment())


def _bytes(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) of about 0..255 -> (N, H, W, 3) uint8, contiguous."""
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def _memory(train: Split, test: Split, augment: Augment) -> Memory:
    std, mean = torch.std_mean(train.images.double(), (0, 1, 2))
    return Memory(train, test, num_classes=10, mean=mean.tolist(), std=std.tolist(), augment=augment)
