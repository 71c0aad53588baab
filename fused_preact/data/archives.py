"""Files and archives that nobody vouches for, read into memory within limits and never unpacked to disk."""

import gzip
import io
import itertools
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from fused_preact.data.source import DataError

# The largest of CIFAR has 186 MB unpacked, and 9 members.
MOST_BYTES, MOST_MEMBERS = 2**29, 64


def content(path: Path) -> bytes:
    """The bytes of a file; raises DataError if it can't be read or is too large to be meant."""
    try:
        with path.open("rb") as file:
            return _limited(file, path)
    except OSError as error:
        raise DataError(f"{path}: expected a file that can be read, got {error.strerror}") from None


def members(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """Those files of a .tar.gz that are called one of `names`, folders included, with their bytes.

    Links, devices and sparse files are passed over. Raises DataError for an archive that can't be read, is damaged or too large.
    """
    try:
        with gzip.open(path) as file:
            unpacked = _limited(file, path)
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            plain = {str(PurePosixPath(m.name)): m for m in itertools.islice(tar, MOST_MEMBERS) if m.isreg() and not m.issparse()}
            return {name: tar.extractfile(plain[name]).read() for name in names if name in plain}
    except DataError:
        raise
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        raise DataError(f"{path}: expected a .tar.gz archive, got one that is damaged or can't be read: {error}") from None


def _limited(file: io.BufferedIOBase, path: Path) -> bytes:
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise DataError(f"{path}: expected at most {MOST_BYTES} bytes, got more")
    return data
