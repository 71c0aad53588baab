"""Batches of images in memory: which images, moved how, and the same for every number of processes."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from fused_preact.data.memory import Augment, Memory, Split, augmented, draw
from fused_preact.data.source import DataError, Shard, View, batches_per_epoch, generator

MEAN, STD = (100.0, 120.0, 140.0), (50.0, 60.0, 70.0)


def split(images, size=8):
    """Random images; the label is the number of the image."""
    drawn = torch.randint(256, (images, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(images))
    return Split(drawn, torch.arange(images))


def source(train, test=5, augment=Augment(shift=2, flip=True)):  # noqa: B008
    return Memory(split(train), split(test), num_classes=max(train, test), mean=MEAN, std=STD, augment=augment)


def normalised(images):
    """(N, 3, H, W) of (N, H, W, 3) bytes."""
    return ((images.double() - torch.tensor(MEAN)) / torch.tensor(STD)).float().permute(0, 3, 1, 2)


def is_like(images, expected):
    """Whether two images are the same but for rounding."""
    return torch.allclose(images, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("edge", ["zero", "replicate"])
@pytest.mark.parametrize("flip", [False, True], ids=["plain", "flip"])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_augmented_is_what_is_done_to_one_image_after_the_other(shift, flip, edge):
    augment = Augment(shift, flip, edge)
    images = torch.randn(40, 6, 6, 3, generator=torch.Generator().manual_seed(0))
    down, right, mirrored = draw(40, augment, torch.Generator().manual_seed(1))
    got = augmented(images, down, right, mirrored, augment)
    for i, image in enumerate(images.permute(0, 3, 1, 2)):
        padded = F.pad(image[None], (shift,) * 4, **({"mode": "replicate"} if edge == "replicate" else {"value": 0.0}))[0]
        window = padded[:, down[i] : down[i] + 6, right[i] : right[i] + 6]
        assert torch.equal(got[i].permute(2, 0, 1), window.flip(2) if mirrored[i] else window)


@pytest.mark.parametrize(("shift", "flip"), [(0, True), (4, False), (4, True)])
def test_all_shifts_and_both_sides_are_drawn_equally_often_and_independently(shift, flip):
    draws = 20_000
    cases = (2 * shift + 1) ** 2 * (1 + flip)
    down, right, mirrored = draw(draws, Augment(shift, flip), torch.Generator().manual_seed(0))
    counts = torch.bincount((down * (2 * shift + 1) + right) * (1 + flip) + mirrored, minlength=cases)
    assert len(counts) == cases
    # A chi-squared with cases - 1 degrees of freedom: five deviations.
    chi = ((counts - draws / cases) ** 2 / (draws / cases)).sum()
    assert abs(chi - (cases - 1)) < 5 * math.sqrt(2 * (cases - 1))


@pytest.mark.parametrize("augment", [Augment(), Augment(2, True), Augment(0, True), Augment(1, False, "replicate")])
def test_batches_are_float_channels_last_and_own_their_memory(augment):
    held = source(8, augment=augment)
    for images, labels in itertools.chain(held.train_batches(4, seed=0, epoch=0), held.test_batches(4)):
        assert images.shape == (len(labels), 3, 8, 8)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.is_contiguous(memory_format=torch.channels_last)
        images.zero_()
        labels.zero_()
    assert torch.equal(held.test.images, split(5).images)
    assert torch.equal(held.test.labels, torch.arange(5))
    assert torch.equal(held.train.labels, torch.arange(8))


@pytest.mark.parametrize(("images", "batch_size", "sizes"), [(10, 4, [4, 4]), (9, 4, [4, 4]), (8, 4, [4, 4]), (3, 4, [3]), (4, 4, [4])])
def test_training_batches_have_one_size_and_no_image_twice(images, batch_size, sizes):
    held = source(images, augment=Augment())
    batches = list(held.train_batches(batch_size, seed=0, epoch=0))
    assert [len(batch.labels) for batch in batches] == sizes
    assert len(batches) == batches_per_epoch(images, batch_size)
    labels = torch.cat([batch.labels for batch in batches])
    assert len(labels.unique()) == len(labels)
    for batch in batches:
        assert is_like(batch.images, normalised(held.train.images[batch.labels]))


def test_an_augmented_batch_holds_each_image_moved_or_mirrored():
    held = source(64, augment=Augment(1, True))
    (batch,) = held.train_batches(64, seed=0, epoch=0)
    assert sorted(batch.labels.tolist()) == list(range(64))
    seen = set()
    for image, original in zip(batch.images, normalised(held.train.images[batch.labels]), strict=True):
        padded = F.pad(original, (1,) * 4)
        windows = {(y, x): padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)}
        seen |= {(y, x, m) for (y, x), window in windows.items() for m in (0, 1) if is_like(image, window.flip(2) if m else window)}
    assert len(seen) == 18


def test_order_and_moves_follow_seed_and_epoch():
    held = source(64)

    def epoch(seed, epoch):
        (batch,) = held.train_batches(64, seed=seed, epoch=epoch)
        return batch

    first = epoch(0, 1)
    assert torch.equal(first.labels, epoch(0, 1).labels)
    assert torch.equal(first.images, epoch(0, 1).images)
    assert len({tuple(epoch(*key).labels.tolist()) for key in [(0, 1), (1, 0), (0, 2), (2, 1)]}) == 4
    draws = [draw(64, held.augment, generator(0, 1, step, 1)) for step in range(2)]
    assert not torch.equal(*draws)


@pytest.mark.parametrize("edge", ["zero", "replicate"])
@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_an_epoch_goes_on_as_it_would_have_gone(first, edge):
    held = source(27, augment=Augment(2, True, edge))
    whole = list(held.train_batches(8, seed=3, epoch=4))
    rest = list(held.train_batches(8, seed=3, epoch=4, first=first))
    assert len(rest) == len(whole) - first
    for got, expected in zip(rest, whole[first:], strict=True):
        assert torch.equal(got.images, expected.images)
        assert torch.equal(got.labels, expected.labels)


@pytest.mark.parametrize(("images", "batch_size"), [(50, 12), (12, 12), (24, 30)], ids=["batches", "one", "less than one"])
@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_all_shards_together_are_the_batch_of_one_process(world, images, batch_size):
    held = source(images)
    shards = [held.train_batches(batch_size, seed=5, epoch=6, shard=Shard(rank, world)) for rank in range(world)]
    whole = list(held.train_batches(batch_size, seed=5, epoch=6))
    for batch, parts in zip(whole, list(zip(*shards, strict=True)), strict=True):
        assert {len(part.labels) for part in parts} == {len(batch.labels) // world}
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("images", [1, 5, 16, 25])
def test_every_test_image_is_seen_once_by_all_processes_together(images, world):
    held = source(8, images)
    batches = [batch for rank in range(world) for batch in held.test_batches(24, shard=Shard(rank, world))]
    labels = torch.cat([batch.labels for batch in batches])
    assert sorted(labels.tolist()) == list(range(images))
    assert all(1 <= len(batch.labels) <= 24 // world for batch in batches)
    assert is_like(torch.cat([batch.images for batch in batches]), normalised(held.test.images[labels]))


@pytest.mark.parametrize("method", ["train_batches", "test_batches"])
@pytest.mark.parametrize(("batch_size", "world"), [(8, 3), (2, 4), (0, 1)])
def test_a_batch_that_processes_cannot_share_is_refused_at_once(method, batch_size, world):
    options = {"seed": 0, "epoch": 0} if method == "train_batches" else {}
    with pytest.raises(ValueError, match=rf"^batch_size: expected images that {world} processes can share evenly, got {batch_size}$"):
        getattr(source(16), method)(batch_size, shard=Shard(0, world), **options)


def test_a_batch_of_all_images_that_processes_cannot_share_is_refused():
    with pytest.raises(DataError, match=r"^train: expected images that 2 processes can share evenly, got 7, all in one batch$"):
        source(7).train_batches(8, seed=0, epoch=0, shard=Shard(0, 2))


@pytest.mark.parametrize("view", [View(crop=4), View(resize=16), View(ten=True)])
def test_other_views_are_refused_at_once(view):
    with pytest.raises(DataError, match=r"^view: expected View\(\) of images held in memory.*crop="):
        source(8).test_batches(8, view=view)


IMAGES, LABELS = split(4)
WRONG = {
    "floats": (Split(IMAGES.float(), LABELS), "expected contiguous uint8 images"),
    "planes": (Split(IMAGES.permute(0, 3, 1, 2).contiguous(), LABELS), "expected contiguous uint8 images"),
    "strides": (Split(IMAGES.transpose(1, 2), LABELS), "expected contiguous uint8 images.*not contiguous$"),
    "another size": (Split(IMAGES[:, :4, :4].contiguous(), LABELS), "expected contiguous uint8 images"),
    "too few labels": (Split(IMAGES, LABELS[:3]), "expected an int64 label for each"),
    "int32 labels": (Split(IMAGES, LABELS.int()), "expected an int64 label for each"),
    "nothing": (Split(IMAGES[:0], LABELS[:0]), "expected an int64 label for each of at least one image"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_splits_are_checked(wrong):
    bad, says = WRONG[wrong]
    with pytest.raises(DataError, match=f"^test: {says}"):
        Memory(split(4), bad, num_classes=4, mean=MEAN, std=STD)
