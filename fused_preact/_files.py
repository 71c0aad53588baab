"""Files that are either the old one or the new one, never half of each."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it to `path`.

    The temporary file keeps the suffix of `path`, because writers such as matplotlib choose a format by it. What must not be replaced (a
    pipe, a device, a link, as /dev/stdout is one) is written to as it is.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        write(path)
        return
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    # Opened here, so that the user's umask decides who may read it.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
