"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), from the files of https://www.cs.toronto.edu/~kriz/cifar.html in any of their forms."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fused_preact.data import archives, pickles
from fused_preact.data.memory import Augment, Memory, Split
from fused_preact.data.source import DataError

URL = "https://www.cs.toronto.edu/~kriz/cifar.html"
SIZE = 32
_PIXELS = 3 * SIZE * SIZE


def cifar10(root: str | os.PathLike[str]) -> Memory:
    """60,000 photographs of 32x32 in ten classes, 10,000 of them for testing.

    Args:
        root: the folder of `cifar-10-batches-py` (pickles) or `cifar-10-batches-bin`, the folder that one of them lies in, or
            `cifar-10-python.tar.gz` or `cifar-10-binary.tar.gz` as downloaded, or the folder that one of these lies in.

    Means and deviations of the colours, and the augmentation (moved by up to 4 pixels into zeros, mirrored every other time), are those of
    the authors' code, https://github.com/KaimingHe/resnet-1k-layers, and of fb.resnet.torch, which it runs in.

    Raises DataError for files that are missing, damaged or hold something else; a pickle runs nothing.
    """
    return _load(_CIFAR10, root)


def cifar100(root: str | os.PathLike[str]) -> Memory:
    """The same in 100 classes ("fine" labels): `cifar-100-python`, `cifar-100-binary`, or their archives; see `cifar10`.

    Means and deviations are those of https://github.com/szagoruyko/wide-residual-networks.
    """
    return _load(_CIFAR100, root)


class _Layout(NamedTuple):
    """One form of the files, the last of which is for testing.

    `read` makes of the bytes and the name of one its planes (N, 3072) uint8, and its labels.
    """

    folder: str
    archive: str
    files: tuple[str, ...]
    read: Callable[[bytes, str], tuple[Tensor, list[int]]]

    @property
    def members(self) -> list[str]:
        """The files as the archive calls them."""
        return [f"{self.folder}/{name}" for name in self.files]


class _Cifar(NamedTuple):
    """One of the two data sets."""

    name: str
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layouts: tuple[_Layout, ...]


def _pickled(labels: bytes) -> Callable[[bytes, str], tuple[Tensor, list[int]]]:
    def read(data: bytes, file: str) -> tuple[Tensor, list[int]]:
        content = pickles.load(data, file)
        if not isinstance(content, dict):
            raise DataError(f"{file}: expected a dict in the pickle, got {type(content).__name__}")
        # Python 3 writes keys as text; in a pickle they may hold what UTF-8 has no bytes for.
        fields = {key.encode(errors="replace") if isinstance(key, str) else key: value for key, value in content.items()}
        planes, numbers = fields.get(b"data"), fields.get(labels)
        if not isinstance(planes, pickles.Array) or planes.shape[1] != _PIXELS or not planes.shape[0]:
            got = f"shape {planes.shape}" if isinstance(planes, pickles.Array) else type(planes).__name__
            raise DataError(f"{file}: expected data of shape (N, {_PIXELS}), uint8, got {got}")
        if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
            raise DataError(f"{file}: expected {labels.decode()}, a list of whole numbers, got {type(numbers).__name__}")
        return planes.tensor(), numbers

    return read


def _binary(label_bytes: int) -> Callable[[bytes, str], tuple[Tensor, list[int]]]:
    def read(data: bytes, file: str) -> tuple[Tensor, list[int]]:
        record = label_bytes + _PIXELS
        if not data or len(data) % record:
            raise DataError(f"{file}: expected records of {record} bytes, got {len(data)} bytes, which are not a whole number of them")
        records = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, record)
        return records[:, label_bytes:], records[:, label_bytes - 1].tolist()

    return read


_TEN = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_CIFAR10 = _Cifar(
    "CIFAR-10",
    10,
    (125.3, 123.0, 113.9),
    (63.0, 62.1, 66.7),
    (
        _Layout("cifar-10-batches-py", "cifar-10-python.tar.gz", _TEN, _pickled(b"labels")),
        _Layout("cifar-10-batches-bin", "cifar-10-binary.tar.gz", tuple(f"{name}.bin" for name in _TEN), _binary(1)),
    ),
)
_CIFAR100 = _Cifar(
    "CIFAR-100",
    100,
    (129.3, 124.1, 112.4),
    (68.2, 65.4, 70.4),
    (
        _Layout("cifar-100-python", "cifar-100-python.tar.gz", ("train", "test"), _pickled(b"fine_labels")),
        # Of the two label bytes the first is the coarse one.
        _Layout("cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin", "test.bin"), _binary(2)),
    ),
)


class _Found(NamedTuple):
    """A layout, its folder or archive, and the contents of those of its files that are there, by name."""

    layout: _Layout
    path: Path
    contents: dict[str, bytes]


def _load(cifar: _Cifar, root: str | os.PathLike[str]) -> Memory:
    layout, path, contents = _find(cifar, Path(root))
    if missing := [name for name in layout.files if name not in contents]:
        raise DataError(f"{path}: expected {', '.join(layout.files)} of {cifar.name}, got none called {', '.join(missing)}")
    *train, test = (_split(layout, contents.pop(name), str(path / name), cifar.classes) for name in layout.files)
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    augment = Augment(shift=4, flip=True, edge="zero")
    return Memory(Split(images, labels), test, num_classes=cifar.classes, mean=cifar.mean, std=cifar.std, augment=augment)


def _split(layout: _Layout, data: bytes, file: str, classes: int) -> Split:
    planes, labels = layout.read(data, file)
    if len(planes) != len(labels):
        raise DataError(f"{file}: expected a label for each of {len(planes)} images, got {len(labels)} labels")
    if wrong := [label for label in labels if not 0 <= label < classes]:
        raise DataError(f"{file}: expected labels from 0 to {classes - 1}, got {wrong[0]}")
    images = planes.reshape(-1, 3, SIZE, SIZE).permute(0, 2, 3, 1).contiguous()
    return Split(images, torch.tensor(labels))


def _find(cifar: _Cifar, root: Path) -> _Found:
    try:
        exists, readable = root.exists(), root.is_dir() or root.is_file()
    except OSError as error:
        raise DataError(f"root: expected a folder with {_expected(cifar)}, got {str(root)!r}: {error.strerror}") from None
    if not exists:
        raise DataError(f"root: expected a folder with {_expected(cifar)}, got {str(root)!r}, which does not exist")
    # Whoever opens a pipe waits for somebody to write.
    if not readable:
        raise DataError(f"root: expected {_expected(cifar)}, got {str(root)!r}, which is neither a folder nor a file")
    if found := next(_candidates(cifar, root), None):
        return found
    other = _CIFAR100 if cifar is _CIFAR10 else _CIFAR10
    if next(_candidates(other, root), None):
        raise DataError(f"root: expected {cifar.name}, got {str(root)!r}, which holds {other.name}")
    raise DataError(f"root: expected {_expected(cifar)}, got {str(root)!r}, which has none of them")


def _candidates(cifar: _Cifar, root: Path) -> Iterator[_Found]:
    """What of `cifar` is in `root`, the pickles first."""
    if not root.is_dir():
        yield from _archived(cifar.layouts, root)
        return
    for layout in cifar.layouts:
        if (folder := root / layout.folder).is_dir():
            yield _Found(layout, folder, _contents(layout, folder))
        if contents := _contents(layout, root):
            yield _Found(layout, root, contents)
    for layout in cifar.layouts:
        if (archive := root / layout.archive).is_file():
            yield from _archived([layout], archive)


def _contents(layout: _Layout, folder: Path) -> dict[str, bytes]:
    return {name: archives.content(folder / name) for name in layout.files if (folder / name).is_file()}


def _archived(layouts: Iterable[_Layout], archive: Path) -> Iterator[_Found]:
    found = archives.members(archive, [member for layout in layouts for member in layout.members])
    for layout in layouts:
        if any(member in found for member in layout.members):
            yield _Found(layout, archive, {member.rpartition("/")[2]: found[member] for member in layout.members if member in found})


def _expected(cifar: _Cifar) -> str:
    names = [name for layout in cifar.layouts for name in (f"{layout.folder}/", layout.archive)]
    return f"{', '.join(names[:-1])} or {names[-1]} of {cifar.name}, from {URL}"
