"""Small files of CIFAR in every form in which it is published, with images that a small network learns to tell apart."""

import functools
import io
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

LAYOUTS = ("python", "binary", "python-archive", "binary-archive")
# How the files call themselves: folder of pickles, folder of records, archives.
FOLDERS = {
    (10, "python"): "cifar-10-batches-py",
    (10, "binary"): "cifar-10-batches-bin",
    (100, "python"): "cifar-100-python",
    (100, "binary"): "cifar-100-binary",
}


def write(folder: Path, layout: str, classes: int = 10, train: int = 50, test: int = 20, seed: int = 0) -> Path:
    """Write CIFAR-`classes` into `folder`, which must exist, and return where it is: a folder in it, or an archive.

    layout: one of `LAYOUTS`. train, test: images; five files of CIFAR-10 share the first evenly.
    """
    form, _, archived = layout.partition("-")
    files = contents(form, classes, train, test, seed)
    name = FOLDERS[classes, form]
    if not archived:
        (folder / name).mkdir()
        for file, data in files.items():
            (folder / name / file).write_bytes(data)
        return folder / name
    path = folder / f"cifar-{classes}-{form}.tar.gz"
    archive(path, {f"{name}/{file}": data for file, data in files.items()})
    return path


def contents(form: str, classes: int, train: int, test: int, seed: int = 0) -> dict[str, bytes]:
    """The files of a form ("python", "binary"), by name."""
    planes, labels = images(classes, train + test, seed)
    encode = functools.partial(pickled if form == "python" else binary, classes)
    if classes == 100:
        parts = {"train": slice(train), "test": slice(train, None)}
    else:
        parts = {f"data_batch_{i + 1}": slice(i * train // 5, (i + 1) * train // 5) for i in range(5)}
        parts["test_batch"] = slice(train, None)
    suffix = ".bin" if form == "binary" else ""
    return {name + suffix: encode(planes[part], labels[part]) for name, part in parts.items()}


def images(classes: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(count, 3, 32, 32) uint8, a smooth pattern for each class under noise, and labels (count,) in which the classes take turns."""
    generator = torch.Generator().manual_seed(seed)
    patterns = F.interpolate(torch.randn(classes, 3, 4, 4, generator=generator), size=(32, 32), mode="bilinear")
    labels = torch.arange(count) % classes
    noise = torch.randn(count, 3, 32, 32, generator=generator) / 2
    return (128 + 40 * (patterns[labels] + noise)).round().clamp(0, 255).byte(), labels


def binary(classes: int, planes: Tensor, labels: Tensor) -> bytes:
    """Records of the labels (of CIFAR-100 first the coarse one, here a fifth of the fine one) and the planes."""
    columns = [labels] if classes == 10 else [labels // 5, labels]
    return bytes(torch.cat((torch.stack(columns, 1).byte(), planes.flatten(1)), 1).flatten().tolist())


def pickled(classes: int, planes: Tensor, labels: Tensor) -> bytes:
    """A pickle as Python 2's cPickle and numpy of 2009 wrote it."""
    numbers = {b"labels": labels.tolist()} if classes == 10 else {b"coarse_labels": (labels // 5).tolist(), b"fine_labels": labels.tolist()}
    names = [b"image_%d.png" % i for i in range(len(labels))]
    return python2({b"batch_label": b"of a test", b"data": planes.flatten(1), b"filenames": names, **numbers})


def python2(content: dict[bytes, object]) -> bytes:
    """Protocol 2, byte for byte as Python 2 writes strings (BINSTRING) and numpy 1.x a uint8 array."""

    def string(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + len(value).to_bytes(4, "little") + value

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    def encoded(value: object) -> bytes:
        if isinstance(value, bytes):
            return string(value)
        if isinstance(value, Tensor):
            dtype = b"cnumpy\ndtype\n(" + string(b"u1") + b"K\x00K\x01tR(K\x03" + string(b"|") + b"NNN" + number(-1) * 2 + b"K\x00tb"
            state = (
                b"(K\x01" + b"".join(map(number, value.shape)) + b"\x86" + dtype + b"\x89" + string(bytes(value.flatten().tolist())) + b"t"
            )
            return b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state + b"b"
        if isinstance(value, list):
            return b"](" + b"".join(map(encoded, value)) + b"e"
        return number(value)

    return b"\x80\x02}(" + b"".join(string(key) + encoded(value) for key, value in content.items()) + b"u."


def python3(protocol: int) -> Callable[[dict[bytes, object]], bytes]:
    """The same written again by today's Python and numpy, in `protocol`, with keys as text."""

    def write(content: dict[bytes, object]) -> bytes:
        arrays = {key.decode(): value.numpy() if isinstance(value, Tensor) else value for key, value in content.items()}
        return pickle.dumps(arrays, protocol)

    return write


def archive(path: Path, members: dict[str, bytes]) -> None:
    """A .tar.gz of `members`."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def sentence(text: str) -> re.Pattern[str]:
    """A pattern that matches `text` alone, "..." standing for anything on one line."""
    return re.compile("^" + ".*".join(map(re.escape, text.split("..."))) + "$")
