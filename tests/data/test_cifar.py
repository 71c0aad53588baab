"""CIFAR from every form of its files, and one sentence for each way in which they can be wrong."""

import gzip
import io
import os
import tarfile
import time

import pytest
import torch

from fused_preact import data
from fused_preact.data import archives, cifar
from fused_preact.data.memory import Augment
from fused_preact.data.source import DataError
from tests.data import cifar_files
from tests.data.cifar_files import FOLDERS, LAYOUTS, sentence

BATCH = 3073


@pytest.mark.parametrize("where", ["in a folder", "itself"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [10, 100])
def test_every_form_gives_the_images_that_were_written(classes, layout, where, tmp_path):
    train, test = (25, 7) if classes == 10 else (130, 101)
    path = cifar_files.write(tmp_path, layout, classes, train, test, seed=3)
    source = data.load(f"cifar{classes}", tmp_path if where == "in a folder" else path)
    planes, labels = cifar_files.images(classes, train + test, seed=3)
    for split, part in ((source.train, slice(train)), (source.test, slice(train, None))):
        assert torch.equal(split.images, planes[part].permute(0, 2, 3, 1))
        assert split.images.is_contiguous()
        assert torch.equal(split.labels, labels[part])
    assert (source.num_classes, source.image_size, source.train_images, source.test_images) == (classes, 32, train, test)
    assert source.augment == Augment(shift=4, flip=True, edge="zero")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_batches_are_normalised_by_the_published_numbers(name, tmp_path):
    cifar_files.write(tmp_path, "binary", int(name[5:]), 100, 20)
    source = data.load(name, str(tmp_path))
    mean, std = {
        "cifar10": ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7]),
        "cifar100": ([129.3, 124.1, 112.4], [68.2, 65.4, 70.4]),
    }[name]
    (batch,) = source.test_batches(20)
    expected = (source.test.images.double() - torch.tensor(mean).double()) / torch.tensor(std).double()
    torch.testing.assert_close(batch.images, expected.permute(0, 3, 1, 2).float())


def test_pickles_come_before_records_and_folders_before_archives(tmp_path):
    for seed, layout in enumerate(reversed(LAYOUTS)):
        path = cifar_files.write(tmp_path, layout, seed=seed)
        assert torch.equal(data.load("cifar10", tmp_path).test.images, data.load("cifar10", path).test.images)


def test_links_in_an_archive_are_passed_over_and_members_may_begin_with_a_dot(tmp_path):
    files = cifar_files.contents("binary", 100, 3, 2)
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./cifar-100-binary/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert data.load("cifar100", path).train_images == 3
    with tarfile.open(path, "w:gz") as tar:
        for name in files:
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, "/dev/zero"
            tar.addfile(info)
    with pytest.raises(DataError, match=sentence("...which has none of them")):
        data.load("cifar100", path)


def rewritten(key, value):
    """A pickle of four images but for one value."""
    planes, labels = cifar_files.images(10, 4)
    return cifar_files.python2({b"data": planes.flatten(1), b"labels": labels.tolist()} | {key: value})


def test_a_root_that_is_no_folder_and_no_file_is_one_sentence_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        DataError, match=sentence("root: expected ... of CIFAR-10, ..., got '...pipe', which is neither a folder nor a file")
    ):
        data.load("cifar10", tmp_path / "pipe")
    with pytest.raises(DataError, match=sentence("root: expected ... of CIFAR-10, ..., got '...': File name too long")):
        data.load("cifar10", tmp_path / ("long" * 100))


def header(kind, size, name=b"a"):
    """A block of tar before `size`, a field of 12 bytes or a number."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(name.ljust(124, b"\0") + field.ljust(24, b"\0") + b" " * 8 + kind).ljust(512, b"\0")
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


STRANGE_TARS = {
    "headers upon headers": header(b"x", 0) * 3000,
    "long names upon long names": (header(b"L", 1) + b"a".ljust(512, b"\0")) * 3000,
    "digits for a regular expression": header(b"x", 500_000) + b"1" * 500_000,
    "a size beyond all": header(b"0", b"\x80" + b"\x7f" * 11),
    "a size below nothing": header(b"0", b"\xff" * 12),
    "a size with a sign": header(b"0", b"-1000"),
    "a file that is cut short": header(b"0", 513) + b"a" * 512,
    "a sparse file that is cut short": header(b"S", 0)[:482] + b"\1",
    "a header that is cut short": header(b"0", 0) + header(b"0", 0)[:300],
}


@pytest.mark.parametrize("tar", STRANGE_TARS.values(), ids=STRANGE_TARS)
def test_a_strange_archive_is_one_sentence_at_once(tar, tmp_path):
    """Each of these is an error of another kind, or takes minutes, where tarfile opens it."""
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(tar))
    before = time.process_time()
    with pytest.raises(DataError, match=sentence(f"...{path}...")):
        data.load("cifar10", path)
    assert time.process_time() - before < 2


@pytest.mark.parametrize("written", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_every_tar_are_read(written, tmp_path):
    """With the folders, owners, times and comments that people's archives have; of files of one name the last counts, as in tar."""
    files = cifar_files.contents("binary", 10, 5, 3)
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", format=written, pax_headers={"comment": "é" * 600}) as tar:
        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for content in (b"an older one", None):
            for name, data_ in files.items():
                info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                info.size, info.mtime, info.uname = len(content or data_), 1234.5, "böse"
                tar.addfile(info, io.BytesIO(content or data_))
    assert data.load("cifar10", path).train_images == 5


def test_folders_may_be_in_the_prefix_of_a_name(tmp_path):
    prefixed = bytearray(header(b"0", 3, b"data_batch_1"))
    prefixed[257:265], prefixed[345:364] = b"ustar\x0000", b"cifar-10-batches-py"
    prefixed[148:156] = b" " * 8
    prefixed[148:156] = b"%06o\0 " % sum(prefixed)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(prefixed + b"abc".ljust(512, b"\0")))
    assert archives.members(path, ["cifar-10-batches-py/data_batch_1"]) == {"cifar-10-batches-py/data_batch_1": b"abc"}


def test_a_key_that_no_encoding_has_is_passed_over():
    planes, labels = cifar_files.images(10, 2)
    good = cifar_files.python2({b"data": planes.flatten(1), b"labels": labels.tolist()})
    strange = good[:-2] + b"X\x03\x00\x00\x00\xed\xa0\x80Nu."
    for data_ in (good, strange):
        read, numbers = cifar._pickled(b"labels")(data_, "a file")
        assert torch.equal(read, planes.flatten(1))
        assert numbers == [0, 1]


DAMAGES = {
    "a pickle cut short": (
        "python",
        lambda old: old[:5000],
        ": expected a pickle of CIFAR, got one that is damaged or holds something else: ...",
    ),
    "no pickle": (
        "python",
        lambda old: b"GIF89a" + old,
        ": expected a pickle of CIFAR, got one that is damaged or holds something else: ...",
    ),
    "an empty pickle": ("python", lambda old: b"", ": expected a pickle of CIFAR, got one that is damaged or holds something else: ..."),
    "a pickle of something else": ("python", lambda old: b"\x80\x02].", ": expected a dict in the pickle, got list"),
    "labels missing": ("python", lambda old: old.replace(b"labels", b"fables"), ": expected labels, a list of whole numbers, got NoneType"),
    "data missing": (
        "python",
        lambda old: old.replace(b"\x04data", b"\x04dada"),
        ": expected data of shape (N, 3072), uint8, got NoneType",
    ),
    "more labels": (
        "python",
        lambda old: rewritten(b"labels", [0, 1, 2, 3, 4]),
        ": expected a label for each of 4 images, got 5 labels",
    ),
    "labels of text": (
        "python",
        lambda old: rewritten(b"labels", [b"cat"] * 4),
        ": expected labels, a list of whole numbers, got list",
    ),
    "a label too large": ("python", lambda old: rewritten(b"labels", [0, 1, 10, 3]), ": expected labels from 0 to 9, got 10"),
    "a label below 0": ("python", lambda old: rewritten(b"labels", [0, 1, -1, 3]), ": expected labels from 0 to 9, got -1"),
    "other images": (
        "python",
        lambda old: rewritten(b"data", torch.zeros(4, 768, dtype=torch.uint8)),
        ": expected data of shape (N, 3072), uint8, got shape (4, 768)",
    ),
    "no images": (
        "python",
        lambda old: rewritten(b"data", torch.zeros(0, 3072, dtype=torch.uint8)),
        ": expected data of shape (N, 3072), uint8, got shape (0, 3072)",
    ),
    "a record cut short": (
        "binary",
        lambda old: old[:-1],
        f": expected records of 3073 bytes, got {10 * BATCH - 1} bytes, which are not a whole number of them",
    ),
    "empty records": ("binary", lambda old: b"", ": expected records of 3073 bytes, got 0 bytes, which are not a whole number of them"),
    "a record's label": ("binary", lambda old: b"\xff" + old[1:], ": expected labels from 0 to 9, got 255"),
}


@pytest.mark.parametrize("archived", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_file_is_one_sentence_that_names_it(damage, archived, tmp_path):
    form, change, says = DAMAGES[damage]
    files = cifar_files.contents(form, 10, 50, 20)
    name = list(files)[2]
    files[name] = change(files[name])
    folder = FOLDERS[10, form]
    if archived:
        cifar_files.archive(tmp_path / f"cifar-10-{form}.tar.gz", {f"{folder}/{file}": content for file, content in files.items()})
        folder = f"cifar-10-{form}.tar.gz"
    else:
        (tmp_path / folder).mkdir()
        for file, content in files.items():
            (tmp_path / folder / file).write_bytes(content)
    with pytest.raises(DataError, match=sentence(f"{tmp_path}/{folder}/{name}{says}")):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_file_is_named(layout, tmp_path):
    form, _, archived = layout.partition("-")
    files = cifar_files.contents(form, 10, 50, 20)
    removed = next(name for name in files if "_4" in name)
    del files[removed]
    folder = tmp_path / FOLDERS[10, form]
    if archived:
        folder = tmp_path / f"cifar-10-{form}.tar.gz"
        cifar_files.archive(folder, {f"{FOLDERS[10, form]}/{file}": content for file, content in files.items()})
    else:
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
    with pytest.raises(DataError, match=sentence(f"{folder}: expected ..., {removed}, ... of CIFAR-10, got none called {removed}")):
        data.load("cifar10", tmp_path)


def test_an_empty_folder_is_told_what_was_looked_for_and_where_it_comes_from(tmp_path):
    names = "cifar-10-batches-py/, cifar-10-python.tar.gz, cifar-10-batches-bin/ or cifar-10-binary.tar.gz of CIFAR-10"
    says = f"root: expected {names}, from https://www.cs.toronto.edu/~kriz/cifar.html, got '{tmp_path}', which has none of them"
    with pytest.raises(DataError, match=sentence(says)):
        data.load("cifar10", tmp_path)
    with pytest.raises(DataError, match=sentence("root: expected ...https:...got '...nowhere', which does not exist")):
        data.load("cifar10", tmp_path / "nowhere")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("asked", "there"), [(10, 100), (100, 10)])
def test_the_other_cifar_is_recognised(asked, there, layout, tmp_path):
    path = cifar_files.write(tmp_path, layout, there, 100, 20)
    for root in (tmp_path, path):
        says = f"root: expected CIFAR-{asked}, got '{root}', which holds CIFAR-{there}"
        with pytest.raises(DataError, match=sentence(says)):
            data.load(f"cifar{asked}", root)


@pytest.mark.parametrize(
    "change",
    [lambda old: old[: len(old) // 2], lambda old: b"PK" + old, lambda old: gzip.compress(b"no tar" * 1000), lambda old: b""],
    ids=["cut short", "no gzip", "no tar in it", "empty"],
)
def test_a_damaged_archive_is_one_sentence(change, tmp_path):
    path = cifar_files.write(tmp_path, "binary-archive")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=sentence(f"{path}: expected a .tar.gz archive, got one that is damaged or can't be read: ...")):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_too_large_is_not_read(layout, tmp_path, monkeypatch):
    path = cifar_files.write(tmp_path, layout)
    monkeypatch.setattr(archives, "MOST_BYTES", 20_000)
    with pytest.raises(DataError, match=sentence(f"{path}...: expected at most 20000 bytes, got more")):
        data.load("cifar10", tmp_path)


def test_a_file_that_may_not_be_read_is_one_sentence(tmp_path, monkeypatch):
    path = cifar_files.write(tmp_path, "binary") / "data_batch_1.bin"

    def refuse(self, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(DataError, match=sentence(f"{path}: expected a file that can be read, got Permission denied")):
        data.load("cifar10", tmp_path)
