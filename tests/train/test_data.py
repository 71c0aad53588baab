import sys

import pytest
import torch
from sklearn.datasets import load_digits

from fused_preact.train import data
from fused_preact.train.data import Split
from fused_preact._extras import MissingExtraError


@pytest.fixture(scope="module")
def digits():
    return data.digits()


@pytest.mark.parametrize("make", [data.digits, data.synthetic])
def test_images_are_normalised_channels_last_and_always_the_same(make):
    first, second = make(), make()
    assert first.num_classes == 10
    for split, again in zip(first[:2], second[:2], strict=True):
        assert split.images.shape == (len(split.labels), 3, 32, 32)
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        assert split.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(split.images, again.images)
        assert torch.equal(split.labels, again.labels)


def test_digits_are_all_images_once_and_a_fifth_of_each_class_is_for_testing(digits):
    bunch = load_digits()
    counts = torch.bincount(torch.from_numpy(bunch.target))
    test = torch.bincount(digits.test.labels)
    assert torch.equal(torch.bincount(digits.train.labels) + test, counts)
    assert ((test - counts / 5).abs() < 1).all()
    # Enlarging eight pixels to 32 keeps an image's mean, so the means tell the images that are in either split.
    means = torch.cat([split.images.mean((1, 2, 3)) for split in digits[:2]]).sort().values
    grey = torch.from_numpy(bunch.images).mean((1, 2)).float().sort().values
    scale = (means[-1] - means[0]) / (grey[-1] - grey[0])
    torch.testing.assert_close(means, means[0] + (grey - grey[0]) * scale, atol=1e-5, rtol=0)


def test_digits_are_normalised_by_the_training_images(digits):
    assert abs(digits.train.images.mean()) < 1e-4
    assert abs(digits.train.images.std() - 1) < 1e-3
    assert torch.equal(digits.train.images[:, 0], digits.train.images[:, 2])


def test_synthetic_classes_can_be_told_apart():
    train, test, classes, _ = data.synthetic()
    means = torch.stack([train.images[train.labels == c].mean(0).flatten() for c in range(classes)])
    nearest = torch.cdist(test.images.flatten(1), means).argmin(1)
    assert (nearest == test.labels).float().mean() > 0.95


@pytest.mark.parametrize(("images", "batch_size", "sizes"), [(10, 4, [4, 4]), (9, 4, [4, 4]), (8, 4, [4, 4]), (3, 4, [3]), (4, 4, [4])])
def test_shuffled_batches_have_one_size_and_no_image_twice(images, batch_size, sizes):
    split = Split(torch.arange(images).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2), torch.arange(images))
    batches = list(data.shuffled(split, batch_size, torch.Generator().manual_seed(0)))
    assert [len(batch.labels) for batch in batches] == sizes
    assert len(batches) == data.batches_per_epoch(images, batch_size)
    labels = torch.cat([batch.labels for batch in batches])
    assert len(labels.unique()) == len(labels)
    for batch in batches:
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_the_order_follows_the_generator_and_changes_every_epoch():
    split = Split(torch.zeros(64, 3, 2, 2), torch.arange(64))

    def orders(seed):
        generator = torch.Generator().manual_seed(seed)
        return [next(data.shuffled(split, 64, generator)).labels.tolist() for _ in range(2)]

    assert orders(0) == orders(0)
    assert orders(0) != orders(1)
    assert orders(0)[0] != orders(0)[1]


def test_shifts_move_each_image_whole_and_repeat_its_edge():
    images = torch.arange(6.0).repeat(200, 1, 5, 1)
    moved = data.shifted(images, 2, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.is_contiguous(memory_format=torch.channels_last)
    rows = {tuple(row.tolist()) for row in moved[:, 0, 0]}
    assert rows == {tuple(max(0.0, min(5.0, float(x + by))) for x in range(6)) for by in range(-2, 3)}
    assert torch.equal(moved, moved[:, :, :1].expand_as(moved))

    columns = data.shifted(images.mT, 2, torch.Generator().manual_seed(0))
    assert len({tuple(column.tolist()) for column in columns[:, 0, :, 0]}) == 5


def test_shuffled_shifts_only_when_asked():
    split = Split(torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32))
    (still,) = data.shuffled(split, 32, torch.Generator().manual_seed(0))
    (moved,) = data.shuffled(split, 32, torch.Generator().manual_seed(0), shift=1)
    assert torch.equal(still.images, split.images[still.labels])
    assert torch.equal(moved.labels, still.labels)
    assert not torch.equal(moved.images, still.images)


def test_in_order_has_every_image(digits):
    batches = list(data.in_order(digits.test, 64))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), digits.test.labels)
    assert torch.equal(torch.cat([batch.images for batch in batches]), digits.test.images)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown data set 'digit'; did you mean 'digits'"):
        data.load("digit")


@pytest.mark.parametrize("module", ["sklearn", "sklearn.datasets"])
def test_a_missing_package_is_one_sentence(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"^training needs sklearn.*pip install 'fused-preact\[train\]'$"):
        data.load("digits")
