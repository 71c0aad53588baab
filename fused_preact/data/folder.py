"""A folder of images, one folder a class, as ImageNet is usually unpacked."""

import copy
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader

from fused_preact._extras import require
from fused_preact._text import unknown
from fused_preact.data import decode
from fused_preact.data.crops import SCALES
from fused_preact.data.decode import Drawn, Numbered, Pixels, Reader, Viewed
from fused_preact.data.source import Batch, DataError, Shard, Source, View, batches_per_epoch, order

Made = TypeVar("Made")
# Signals that a terminal or a scheduler sends to all processes of a run at once.
_FOR_ALL = (signal.SIGINT, signal.SIGTERM)
_SECONDS_AFTER_SIGTERM = 60
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Of ImageNet's training images, for values of 0 .. 255.
MEAN = tuple(255 * value for value in (0.485, 0.456, 0.406))
STD = tuple(255 * value for value in (0.229, 0.224, 0.225))


def folder(
    root: str | os.PathLike[str],
    *,
    crop_size: int = 224,
    scale: str = "aspect",
    lighting: bool = False,
    workers: int = 4,
) -> "Folder":
    """The images of `root/train/<class>/` and `root/val/<class>/` (or `root/test/<class>/`), at any depth; see `Folder`."""
    return Folder(root, crop_size=crop_size, scale=scale, lighting=lighting, workers=workers)


class Folder(Source):
    """Images decoded as they are needed, in `workers` processes, or in this one for 0.

    A class is a folder of `root/train`, numbered in the order of their names; those of `root/val`, or `root/test` where there is none, must
    be among them. Names that begin with a dot are passed over. How a file becomes RGB: `decode.read`.

    Training images are cut by `crops.aspect` or `crops.shorter_side`, mirrored with a chance of 1/2, and with `lighting` their colour is
    moved along ImageNet's principal components. All of an image is drawn from (seed, epoch, its number), so that neither `first`, nor the
    number of workers or processes, changes a bit. Values are normalised with ImageNet's mean and standard deviation.

    Evaluation sees `view.crop` (`crop_size`) pixels of the image with its shorter side resized to `view.resize`: 256 for a crop of 224 and
    in proportion for others, but from 320 pixels on the crop itself (He et al., arXiv:1603.05027, table 5, tests 320x320 at s = 320).
    `view.ten` gives ten images for each: centre, top left, top right, bottom left, bottom right, and the mirror images of these five.
    batch_size counts images before that, so such a batch takes ten times the memory.

    Raises DataError for folders that are missing or empty, and in the midst of an epoch for a file that cannot be decoded;
    ChildProcessError when something has ended a worker.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        crop_size: int = 224,
        scale: str = "aspect",
        lighting: bool = False,
        workers: int = 4,
    ) -> None:
        if scale not in SCALES:
            raise ValueError(unknown("scale", scale, SCALES))
        if crop_size < 1:
            raise ValueError(f"crop_size must be at least 1 pixel, got {crop_size}")
        if workers < 0:
            raise ValueError(f"workers must be 0 (decode in this process) or more, got {workers}")
        # Here, because workers are too late for a sentence.
        require("PIL.Image")
        self.crop_size, self.scale, self.lighting, self.workers = crop_size, scale, lighting, workers
        self._mean, self._std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
        try:
            self.classes, self._train, self._test = _splits(Path(root))
        except OSError as error:
            raise DataError(f"root: expected folders that can be read, got {error.filename!r}: {error.strerror}") from None
        self.num_classes, self.image_size = len(self.classes), crop_size
        self.train_images, self.test_images = len(self._train.paths), len(self._test.paths)

    @property
    def device(self) -> torch.device:
        return self._mean.device

    def to(self, device: torch.device | str) -> "Folder":
        """The same, whose batches are on `device`."""
        there = copy.copy(self)
        # Once, because a copy to a GPU waits for all work that is queued there.
        there._mean, there._std = self._mean.to(device), self._std.to(device)
        return there

    def steps_per_epoch(self, batch_size: int) -> int:
        """See Source; raises DataError when there are fewer images than a batch has."""
        if batch_size > self.train_images:
            raise DataError(f"batch_size must be at most the number of training images, which is {self.train_images}, got {batch_size}")
        return batches_per_epoch(self.train_images, batch_size)

    def train_batches(self, batch_size: int, *, seed: int, epoch: int, first: int = 0, shard: Shard = Shard()) -> Iterator[Batch]:
        """See Source; raises DataError when there are fewer images than a batch has, or it cannot be shared out evenly."""
        if batch_size < 1 or batch_size % shard.world:
            raise DataError(f"batch_size must be a positive multiple of the number of processes, which is {shard.world}, got {batch_size}")
        batches = self.steps_per_epoch(batch_size)
        own = batch_size // shard.world
        starts = (batch * batch_size + shard.rank * own for batch in range(first, batches))
        numbers = order(self.train_images, seed=seed, epoch=epoch)
        wanted = (self._train.numbered(numbers[start : start + own].tolist()) for start in starts)
        return self._batches(wanted, Reader(self.crop_size, Drawn(self.crop_size, self.scale, self.lighting, seed, epoch)))

    def test_batches(self, batch_size: int, *, shard: Shard = Shard(), view: View = View()) -> Iterator[Batch]:
        """See Source; raises DataError for a crop that does not fit into the resized image."""
        if batch_size < shard.world:
            raise DataError(f"batch_size must be at least the number of processes, which is {shard.world}, got {batch_size}")
        crop = self.crop_size if view.crop is None else view.crop
        resize = (crop if crop >= 320 else round(crop * 256 / 224)) if view.resize is None else view.resize
        if not 1 <= crop <= resize:
            raise DataError(f"view.crop must be from 1 to view.resize pixels, got a crop of {crop} and a resize of {resize}")
        numbers, own = range(shard.rank, self.test_images, shard.world), batch_size // shard.world
        wanted = (self._test.numbered(numbers[start : start + own]) for start in range(0, len(numbers), own))
        return self._batches(wanted, Reader(crop, Viewed(crop, resize, view.ten)), mirrored=view.ten)

    def _batches(self, wanted: Iterable[list[Numbered]], reader: Reader, mirrored: bool = False) -> Iterator[Batch]:
        loader = _quietly(
            DataLoader,
            reader,
            # Whole batches are its items: `wanted` names their images, so that no worker is sent the list of all files.
            batch_size=None,
            sampler=wanted,
            num_workers=self.workers,
            multiprocessing_context=_context() if self.workers else None,
            worker_init_fn=_begin_worker,
            pin_memory=self.device.type == "cuda",
            # DataLoader draws a seed for its workers, which must not come from the generator of the model's dropout.
            generator=torch.Generator(),
        )
        loaded = _quietly(iter, loader)
        try:
            while (pixels := _next(loaded)) is not None:
                if isinstance(pixels, DataError):
                    raise pixels
                yield self._normalised(pixels, mirrored)
        finally:
            # The workers end with it, which the traceback of an error would keep.
            del loaded

    def _normalised(self, pixels: Pixels, mirrored: bool) -> Batch:
        crops, labels, colours = (None if t is None else t.to(self.device, non_blocking=True) for t in pixels)
        if mirrored:
            crops = torch.cat((crops, crops.flip(3)), 1)
        images = crops.flatten(0, 1).permute(0, 3, 1, 2).to(torch.float32)
        mean = self._mean if colours is None else self._mean - colours[:, :, None, None]
        return Batch(images.sub_(mean).div_(self._std), labels)


def _quietly(make: Callable[..., Made], *args: Any, **kwargs: Any) -> Made:
    """`make` without torch's advice, of several lines and twice an epoch, that a machine of so few cores should have fewer workers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return make(*args, **kwargs)


def _next(loaded: Iterator[Pixels | DataError]) -> Pixels | DataError | None:
    """The next batch, or None after the last; that a worker is gone is one error, whether torch notices or a batch can't be had from it."""
    try:
        return next(loaded, None)
    except (RuntimeError, OSError, EOFError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in ("exited unexpectedly", "killed by signal")):
            raise
        reason = str(error) or type(error).__name__
        raise ChildProcessError(f"a process that decodes images was ended, as systems do when memory runs out: {reason}") from error


def _begin_worker(worker: int) -> None:
    """Let this worker live as long as the process that it works for."""
    _outlive_signals()
    # torch's workers look whether their parent has changed; this one's is the server of `_context`, which waits for its workers' end.
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(process: Any) -> None:
    wait([process.sentinel])
    os._exit(1)


def _outlive_signals() -> None:
    """Keep a signal that tells the whole group of processes to end from this one: the run wants its batches to end its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        # Not for ever: multiprocessing ends workers by this signal too.
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_SECONDS_AFTER_SIGTERM))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_ALL)


def _context() -> BaseContext:
    """How workers begin: as copies of a server that has imported what they need and nothing else.

    Copies of this process (fork) would inherit locks of its threads, such as OpenMP's and CUDA's, in whatever state they are. The server
    takes 1.4 s once, and two workers then 0.1 s more than as copies; as new interpreters (spawn) they took 2 s at the start of every epoch.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([decode.__name__, "PIL.JpegImagePlugin"])
    # The server inherits that these wait, and from it every worker, until it is ready for them: else they end one that is just beginning.
    # The tracker first, because its start lets them through.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_ALL)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


class _Split(NamedTuple):
    """The files and the numbers of their classes: two lists, because millions of tuples would burden every garbage collection."""

    paths: list[str]
    labels: list[int]

    def numbered(self, numbers: Iterable[int]) -> list[Numbered]:
        return [Numbered(self.paths[i], self.labels[i], i) for i in numbers]


def _splits(root: Path) -> tuple[list[str], _Split, _Split]:
    """The names of the classes, the training images and the test images."""
    layout = f"images in {root / 'train'}/<class>/ and {root / 'val'}/<class>/"
    if not root.is_dir():
        raise DataError(f"root: expected {layout}, got no folder {root}")
    train = root / "train"
    test = next((path for name in ("val", "test") if (path := root / name).is_dir()), root / "val")
    for split in (train, test):
        if not split.is_dir():
            raise DataError(f"root: expected {layout}, got no folder {split}")
    classes, test_classes = _classes(train), _classes(test)
    if strange := sorted(set(test_classes) - set(classes)):
        raise DataError(f"expected the classes of {test} to be among those of {train}, got {', '.join(strange[:3])}")
    train_images, test_images = _found(train, classes, classes), _found(test, test_classes, classes)
    if empty := sorted(set(range(len(classes))) - set(train_images.labels)):
        raise DataError(f"expected images ({', '.join(SUFFIXES)}) in {train / classes[empty[0]]}, got none")
    if not test_images.paths:
        raise DataError(f"expected images ({', '.join(SUFFIXES)}) in the folders of {test}, got none")
    return classes, train_images, test_images


def _classes(split: Path) -> list[str]:
    names = [entry.name for entry in _visible(split) if entry.is_dir()]
    if not names:
        raise DataError(f"expected a folder for each class in {split}, got none")
    return names


def _found(split: Path, folders: list[str], classes: list[str]) -> _Split:
    numbers = {name: number for number, name in enumerate(classes)}
    found = _Split([], [])
    for name in folders:
        found.paths.extend(_files(split / name))
        found.labels.extend([numbers[name]] * (len(found.paths) - len(found.labels)))
    return found


def _files(top: str | os.PathLike[str], above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """The images under `top`, in an order that does not depend on the file system's; links are followed.

    above: what tells the folders that `top` lies in from all others.
    """
    status = os.stat(top)
    here = status.st_dev, status.st_ino
    if here in above:
        raise DataError(f"root: expected no link to a folder that it lies in, got {os.fspath(top)!r}")
    for entry in _visible(top):
        if entry.is_dir():
            yield from _files(entry.path, (*above, here))
        elif entry.name.lower().endswith(SUFFIXES):
            yield entry.path


def _visible(top: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    with os.scandir(top) as entries:
        # Archives made on a Mac hold a "._name" beside each file, which is no image.
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
