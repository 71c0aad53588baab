"""The file of rows: one JSON object a line, on disk before the next measurement starts.

A result is {"part", "name", "ok", ..., "seconds"}, with "error" if not ok. A mark {"begun", "part", "child", "patience", "facts"} says what
a child works on, so that whoever finds it dead or silent knows what to blame; {"finished"}: it waits for another job (in a dry run).
"""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]
NO_TIME = "skipped: no time left"
LONGEST = 300
# Exit code of a child: the CUDA context is lost, and the row that lost it is written.
POISONED = 75
# Python's arguments that make a child; its job may follow.
CHILD = ("-c", "from benchmarks.gpu_report.child import main; main()")


def append(path: Path, row: Row) -> None:
    """Add a line to the file, whole and on disk: several processes write to it."""
    line = json.dumps(_plain(row), allow_nan=False) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, line.encode())
        os.fsync(file)
    finally:
        os.close(file)


class Tail:
    """Reads the lines that were added since it last looked."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def read(self) -> list[Row]:
        if not self.path.exists():
            return []
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        found = []
        for line in whole.splitlines():
            # A process that was killed may have left half a line.
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found


def sentence(error: BaseException) -> str:
    """An exception on one line: its class and its first line, or the last where the first is a place in the source (Triton)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = lines[-1] if lines[0].startswith("at ") else lines[0]
    return f"{type(error).__name__}: {text}".removesuffix(": ")[:LONGEST]


def _plain(value: Any) -> Any:
    """Whatever JSON has no word for becomes a string."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
