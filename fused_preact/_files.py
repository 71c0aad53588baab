"""Files that are either the old one or the new one, never half of each."""

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\.(.+)-[0-9a-f]{8}(\.[^.]+)?")


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, rename it to `path`, and flush the folder.

    The temporary file keeps the suffix of `path`, because writers such as matplotlib choose a format by it. What must not be replaced (a
    pipe, a device, a link, as /dev/stdout is one) is written to as it is. When anything fails, `path` is what it was and the temporary
    file is gone; an OSError then names `path`.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        write(path)
        return
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    with naming(path, instead_of=temporary):
        # Opened here, so that the user's umask decides who may read it.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def naming(path: Path, instead_of: Path | None = None) -> Iterator[None]:
    """An OSError from within that names no file, as that of a full disk does, or the file `instead_of`, names `path`."""
    try:
        yield
    except OSError as error:
        unnamed = error.filename is None or str(error.filename) == str(instead_of)
        if error.errno is None or not unnamed:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: str | os.PathLike[str], fields: Any) -> None:
    """Write `fields` to `path` as strict JSON, all of it or nothing; raises ValueError for a number that is not finite."""
    text = json.dumps(fields, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to disk; nothing happens where a folder can't be opened or flushed, as on Windows."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # What PostgreSQL's fsync_fname takes for "not supported", and ENOTSUP.
        if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, *names: str) -> None:
    """Remove what a killed `write_atomically` left in `folder` of the files `names` (none: of any), which nobody else may be writing."""
    with os.scandir(folder) as entries:
        found = [
            (entry.path, match) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False)
        ]
    for path, match in found:
        if not names or match[1] + (match[2] or "") in names:
            os.unlink(path)
