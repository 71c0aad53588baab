"""Data sets held whole on the device as bytes, normalised and augmented there a batch at a time."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_preact.data.source import Batch, DataError, Shard, Source, View, batches_per_epoch, generator, order

# What follows seed, epoch and step in the key of a batch's draws.
_DRAWS = 1


class Split(NamedTuple):
    """`images` (N, H, W, 3) uint8, contiguous, the colours R, G, B; `labels` (N,) int64."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


class Augment(NamedTuple):
    """What happens to an image in training: moved by up to `shift` pixels along both axes, mirrored every other time if `flip`.

    `edge` fills what it leaves: "zero" after normalising, which is the mean colour, or "replicate", the pixel at the edge.
    """

    shift: int = 0
    flip: bool = False
    edge: Literal["zero", "replicate"] = "zero"


class Memory(Source):
    """Splits of square images.

    Args:
        train, test: at least one image each, of one size.
        num_classes: labels are below it.
        mean, std: of each colour, as pixels of 0..255 have them.
        augment: of training images.

    Raises DataError for splits that are not as `Split` says.
    """

    def __init__(
        self, train: Split, test: Split, *, num_classes: int, mean: Sequence[float], std: Sequence[float], augment: Augment = Augment()
    ) -> None:
        for name, split in (("train", train), ("test", test)):
            _check(name, split, train.images.shape[1:])
        self.train, self.test = train, test
        self.num_classes, self.mean, self.std, self.augment = num_classes, tuple(mean), tuple(std), augment
        self.image_size = train.images.size(1)
        self.train_images, self.test_images = len(train.labels), len(test.labels)
        device = train.images.device
        # Of a row of pixels: the innermost loop over three colours alone would take twice the time.
        self._mean, self._std = (torch.tensor(colours, device=device).repeat(self.image_size) for colours in (self.mean, self.std))

    def to(self, device: torch.device | str) -> "Memory":
        """The same, held on `device`."""
        train, test = self.train.to(device), self.test.to(device)
        return Memory(train, test, num_classes=self.num_classes, mean=self.mean, std=self.std, augment=self.augment)

    def train_batches(self, batch_size: int, *, seed: int, epoch: int, first: int = 0, shard: Shard = Shard()) -> Iterator[Batch]:
        """See `Source`; a split smaller than `batch_size` is one batch.

        Raises ValueError if the processes can't share `batch_size` evenly, DataError if they can't share that one batch.
        """
        _check_shared(batch_size, shard)
        if (images := min(batch_size, self.train_images)) % shard.world:
            raise DataError(f"train: expected images that {shard.world} processes can share evenly, got {images}, all in one batch")
        return self._train_batches(images, seed, epoch, first, shard)

    def test_batches(self, batch_size: int, *, shard: Shard = Shard(), view: View = View()) -> Iterator[Batch]:
        """See `Source`: process `rank` has the images rank, rank + world, ... in order; raises ValueError as `train_batches` does."""
        if view != View():
            raise DataError(f"view: expected View() of images held in memory, which are looked at whole, got {view}")
        _check_shared(batch_size, shard)
        images, labels = (t[shard.rank :: shard.world].split(batch_size // shard.world) for t in self.test)
        return (
            Batch(self._normalised(some).permute(0, 3, 1, 2), theirs.clone())
            for some, theirs in zip(images, labels, strict=True)
            if len(some)
        )

    def _train_batches(self, images: int, seed: int, epoch: int, first: int, shard: Shard) -> Iterator[Batch]:
        numbers = order(self.train_images, seed=seed, epoch=epoch)
        mine = slice(shard.rank * images // shard.world, (shard.rank + 1) * images // shard.world)
        for step in range(first, batches_per_epoch(self.train_images, images)):
            # All draws of the batch, whoever needs them: so they don't depend on the number of processes.
            moves = draw(images, self.augment, generator(seed, epoch, step, _DRAWS))
            batch = torch.cat((numbers[None, step * images : (step + 1) * images], moves))[:, mine]
            number, *moves = _sent(batch, self.train.labels.device)
            pixels = augmented(self._normalised(self.train.images[number]), *moves, self.augment)
            yield Batch(pixels.permute(0, 3, 1, 2), self.train.labels[number])

    def _normalised(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> float32 of mean 0 and deviation 1, contiguous, a tensor of its own."""
        return images.flatten(2).float().sub_(self._mean).div_(self._std).view(images.shape)


def draw(images: int, augment: Augment, generator: torch.Generator) -> Tensor:
    """(3, images) int64: how far down and to the right the window moves, 0..2*shift, and whether its columns are mirrored, 0 or 1."""
    window = torch.randint(2 * augment.shift + 1, (2, images), generator=generator)
    mirrored = torch.randint(1 + augment.flip, (1, images), generator=generator)
    return torch.cat((window, mirrored))


def augmented(images: Tensor, down: Tensor, right: Tensor, mirrored: Tensor, augment: Augment) -> Tensor:
    """The windows that `draw` names, of (N, H, W, 3) normalised images within their edge; the same shape, contiguous."""
    if not augment.shift and not augment.flip:
        return images
    n, h, w, colours = images.shape
    mode = "replicate" if augment.edge == "replicate" else "constant"
    padded = F.pad(images.permute(0, 3, 1, 2), (augment.shift,) * 4, mode=mode).permute(0, 2, 3, 1)
    x = torch.arange(w, device=images.device)
    columns = torch.where(mirrored[:, None] == 1, w - 1 - x, x) + right[:, None]
    rows = torch.arange(h, device=images.device) + down[:, None]
    # Pixels of the batch in one row, one index each: half the time of an index for each axis (docs/performance.md).
    rows += torch.arange(n, device=images.device)[:, None] * padded.size(1)
    pixels = rows[:, :, None] * padded.size(2) + columns[:, None, :]
    return padded.reshape(-1, colours).index_select(0, pixels.flatten()).view(images.shape)


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    """`numbers` on `device`; the host does not wait for a GPU to have them."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)


def _check(name: str, split: Split, size: torch.Size) -> None:
    images, labels = split
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] != (size[0], size[0], 3) or not images.is_contiguous():
        got = f"{images.dtype} {tuple(images.shape)}{'' if images.is_contiguous() else ', not contiguous'}"
        raise DataError(f"{name}: expected contiguous uint8 images (N, S, S, 3) of one size S, got {got}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
        got = f"{labels.dtype} {tuple(labels.shape)} for {len(images)} images"
        raise DataError(f"{name}: expected an int64 label for each of at least one image, got {got}")


def _check_shared(batch_size: int, shard: Shard) -> None:
    if batch_size < 1 or batch_size % shard.world:
        raise ValueError(f"batch_size: expected images that {shard.world} processes can share evenly, got {batch_size}")
