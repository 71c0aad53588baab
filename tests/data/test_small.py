"""The data sets that need no files, and `load`."""

import functools
import sys

import pytest
import torch
from sklearn.datasets import load_digits

from fused_preact import data
from fused_preact._extras import MissingExtraError
from fused_preact.data.memory import Augment
from fused_preact.data.source import DataError
from tests.data import cifar_files
from tests.data.cifar_files import sentence


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_images_are_bytes_and_always_the_same(name):
    first, second = data.load(name), data.load(name)
    assert first.num_classes == 10
    for split, again in ((first.train, second.train), (first.test, second.test)):
        assert split.images.shape == (len(split.labels), 32, 32, 3)
        assert split.images.dtype == torch.uint8
        assert torch.equal(split.images, again.images)
        assert torch.equal(split.labels, again.labels)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_the_training_images_have_mean_0_and_deviation_1(name):
    source = data.load(name)
    mean, std = torch.tensor(source.mean), torch.tensor(source.std)
    images = (source.train.images - mean) / std
    torch.testing.assert_close(images.mean((0, 1, 2)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std((0, 1, 2)), torch.ones(3), atol=1e-3, rtol=0)


def test_digits_are_all_images_once_and_a_fifth_of_each_class_is_for_testing(digits):
    bunch = load_digits()
    counts = torch.bincount(torch.from_numpy(bunch.target))
    test = torch.bincount(digits.test.labels)
    assert torch.equal(torch.bincount(digits.train.labels) + test, counts)
    assert ((test - counts / 5).abs() < 1).all()
    # Enlarging eight pixels to 32 keeps an image's mean, but for rounding, so the means tell the images that are in either split.
    images = torch.cat((digits.train.images, digits.test.images))
    assert torch.equal(images[..., 0], images[..., 2])
    means = images.double().mean((1, 2, 3)).sort().values
    grey = torch.from_numpy(bunch.images).mean((1, 2)).sort().values * 255 / 16
    torch.testing.assert_close(means, grey, atol=0.25, rtol=0)


def test_digits_move_over_their_edge_and_synthetic_images_stay(digits):
    assert digits.augment == Augment(shift=4, flip=False, edge="replicate")
    assert data.load("synthetic").augment == Augment(shift=0, flip=False)


def test_synthetic_classes_can_be_told_apart():
    source = data.load("synthetic", train=1024, test=256)
    assert (source.train_images, source.test_images) == (1024, 256)
    train, test = source.train, source.test
    means = torch.stack([train.images[train.labels == c].float().mean(0).flatten() for c in range(source.num_classes)])
    nearest = torch.cdist(test.images.float().flatten(1), means).argmin(1)
    assert (nearest == test.labels).float().mean() > 0.95


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown data set 'digit'; did you mean 'digits'"):
        data.load("digit")


def test_an_entry_may_be_replaced_by_a_smaller_one(monkeypatch):
    monkeypatch.setitem(data.DATASETS, "synthetic", functools.partial(data.synthetic, train=30, test=20))
    source = data.load("synthetic")
    assert (source.train_images, source.test_images) == (30, 20)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_data_set_on_disk_asks_for_its_folder(name):
    with pytest.raises(DataError, match=sentence(f"root: expected the folder or file that ... with the data set {name}, got None")):
        data.load(name)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_a_data_set_without_files_refuses_a_folder(name, tmp_path):
    with pytest.raises(DataError, match=sentence(f"root: expected nothing, ... with the data set {name}, got '{tmp_path}'")):
        data.load(name, tmp_path)


@pytest.mark.parametrize("module", ["sklearn", "sklearn.datasets"])
def test_a_missing_package_is_one_sentence(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"^training needs sklearn.*pip install 'fused-preact\[train\]'$"):
        data.load("digits")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_a_gpu_sees_what_the_cpu_sees(name, tmp_path):
    if name == "cifar10":
        cifar_files.write(tmp_path, "binary")
    sources = [data.load(name, tmp_path if name == "cifar10" else None, device=device) for device in ("cpu", "cuda")]
    batches = zip(*(source.train_batches(16, seed=1, epoch=2) for source in sources), strict=True)
    for on_cpu, on_gpu in [*batches, *zip(*(source.test_batches(16) for source in sources), strict=True)]:
        assert on_gpu.images.device.type == on_gpu.labels.device.type == "cuda"
        assert torch.equal(on_gpu.labels.cpu(), on_cpu.labels)
        torch.testing.assert_close(on_gpu.images.cpu(), on_cpu.images)
        assert on_gpu.images.is_contiguous(memory_format=torch.channels_last)
