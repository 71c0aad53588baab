"""Images to train on, by name."""

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch

from fused_preact._text import unknown
from fused_preact.data.cifar import cifar10, cifar100
from fused_preact.data.folder import folder
from fused_preact.data.small import digits, synthetic
from fused_preact.data.source import DataError, Source

# What takes an argument `root` is read from there.
DATASETS: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "synthetic": synthetic,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "folder": folder,
}


def needs_root(name: str) -> bool:
    """Whether the data set called `name` is read from disk."""
    return "root" in inspect.signature(DATASETS[name]).parameters


def load(name: str, root: str | os.PathLike[str] | None = None, *, device: torch.device | str = "cpu", **options: Any) -> Source:
    """The data set called `name`, whose batches are on `device`.

    Args:
        name: a key of `DATASETS`.
        root: where its files are, if it is read from disk; nothing is downloaded.
        device: of the batches.
        options: what its loader takes besides.

    Raises ValueError with the nearest name, DataError for files that are missing or damaged, MissingExtraError without its package.
    """
    if name not in DATASETS:
        raise ValueError(unknown("data set", name, DATASETS))
    if needs_root(name) != (root is not None):
        expected = "the folder or file that it is read from" if root is None else "nothing, because it is read from no file"
        raise DataError(f"root: expected {expected} with the data set {name}, got {root if root is None else os.fspath(root)!r}")
    from_disk = {} if root is None else {"root": root}
    return DATASETS[name](**from_disk, **options).to(device)
