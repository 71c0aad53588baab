"""Files and archives that nobody vouches for, read into memory within limits and never unpacked to disk."""

import gzip
import io
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from fused_preact.data.source import DataError

# The largest of CIFAR has 186 MB unpacked.
MOST_BYTES = 2**29
_BLOCK = 512
# What the size of is no bytes behind the header: links, devices, folders and pipes.
_BARE = b"123456"


def content(path: Path) -> bytes:
    """The bytes of a file; raises DataError if it can't be read or is too large to be meant."""
    try:
        with path.open("rb") as file:
            return _limited(file, path)
    except OSError as error:
        raise DataError(f"{path}: expected a file that can be read, got {error.strerror}") from None


def members(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """Those files of a .tar.gz that are called one of `names`, folders included, with their bytes.

    Links and devices are passed over. Raises DataError for an archive that can't be read, is damaged or too large.
    """
    try:
        with gzip.open(path) as file:
            unpacked = _limited(file, path)
        return {name: bytes(data) for name, data in _files(unpacked) if name in names}
    except DataError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path}: expected a .tar.gz archive, got one that is damaged or can't be read: {error}") from None


def _files(tar: bytes) -> Iterator[tuple[str, memoryview]]:
    """Ordinary files and their names as every version of tar writes them, if short; raises ValueError for what is no archive.

    Not by tarfile: its extensions for long names and sizes, of which CIFAR has none, are passed over here. There, headers that are made
    for it take the square of their size in time, all of the stack, or end in an IndexError or OverflowError.
    """
    if not tar:
        raise ValueError("it is empty")
    position = 0
    # A block of zeros is the end.
    while header := tar[position : position + _BLOCK].rstrip(b"\0"):
        header = header.ljust(_BLOCK, b"\0")
        if _octal(header[148:156]) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
            raise ValueError(f"no header of a file at byte {position} of what is unpacked")
        kind, size = header[156:157], _octal(header[124:136])
        begin = position + _BLOCK
        end = begin if kind in _BARE else begin + size
        if end > len(tar):
            raise ValueError("it ends in the midst of a file")
        if kind in b"0\0":
            # "/" after the folders of GNU's tar would be the time of something.
            folders = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
            yield str(PurePosixPath(folders, _text(header[:100]))), memoryview(tar)[begin:end]
        position = end + -end % _BLOCK


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0") or b"0"
    # int would take a sign, by which an archive could lead back to where it was.
    if not digits.isdigit():
        raise ValueError(f"a number that is none: {digits!r}")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("latin-1")


def _limited(file: io.BufferedIOBase, path: Path) -> bytes:
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise DataError(f"{path}: expected at most {MOST_BYTES} bytes, got more")
    return data
