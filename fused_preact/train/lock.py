"""One run at a time in a folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

NAME = ".lock"


class FolderInUse(RuntimeError):
    """Another process trains into the folder; the message is one sentence."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; raises FolderInUse if another one holds it.

    The system lets go of it when the process dies, however it does.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        # Windows: nothing holds the folder there.
        yield
        return
    path = folder / NAME
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(f"expected a folder that no other run writes to, got {str(folder)!r}, where one is at work") from None
        yield
    finally:
        os.close(file)
