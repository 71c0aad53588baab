"""TensorBoard's event files, written without TensorBoard."""

import math
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from fused_preact._files import naming
from fused_preact.train.record import EpochRecord, History, StepRecord

_NOT_CURVES = {"step", "epoch", "time"}


class EventFile:
    """A file that holds the curves of a History and grows with it, so that a TensorBoard that is open follows.

    There is one file a run and it is extended in place, because TensorBoard keeps every event file open, and never opens one again: of
    many small files it would lose those beyond the system's limit (1,024 as a rule), and of a replaced one all that comes later. Its
    readers wait at a record that is not whole yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._held = (0, 0)

    def update(self, history: History) -> None:
        """Make the file that of `history`, to the byte, whatever it was; between calls a history may only grow.

        The first call cuts off what the file holds beyond `history`, as that of a run that was killed after its last checkpoint may.
        """
        if self._size and self._path.is_file() and self._path.stat().st_size >= self._size:
            steps, epochs = self._held
            kept, new = self._size, encode(scalars(History(history.steps[steps:], history.epochs[epochs:])), None)
        else:
            records = in_order(history)
            whole = encode(scalars(history), records[0].time) if records else b""
            kept = _agreeing(whole, self._path.read_bytes() if self._path.is_file() else b"")
            new = whole[kept:]
        # If writing fails, the next call looks at the file again.
        self._size = 0
        with naming(self._path), open(self._path, "ab") as file:
            file.truncate(kept)
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        self._size, self._held = kept + len(new), (len(history.steps), len(history.epochs))


def in_order(history: History) -> list[StepRecord | EpochRecord]:
    """All records by their step; that of an epoch after that of its last steps."""
    return sorted([*history.steps, *history.epochs], key=lambda record: (record.step, isinstance(record, EpochRecord)))


def scalars(history: History) -> Iterator[tuple[int, float, str, float]]:
    """(step, time, tag, value) of every point: `train/loss` and its like of the steps, `epoch/test_loss` and its like of the epochs."""
    for record in in_order(history):
        group = "epoch" if isinstance(record, EpochRecord) else "train"
        for name, value in zip(record._fields, record, strict=True):
            if name not in _NOT_CURVES:
                yield record.step, record.time, f"{group}/{name}", value


def encode(scalars: Iterable[tuple[int, float, str, float]], start: float | None = 0.0) -> bytes:
    """The bytes of an event file that holds `scalars`: (step from 0, seconds since 1970, tag, value), in their order.

    It begins with the version record, whose time is `start`; None leaves that out, and gives what has to be appended to a file that has
    it: `encode(a) + encode(b, None) == encode(a + b)`. Values become float32, infinite where that is too narrow.

    Records are framed as tensorflow/core/lib/io/record_writer.h says; what they hold are the messages Event and Summary of
    tensorflow/core/util/event.proto and tensorflow/core/framework/summary.proto.
    """
    parts = [] if start is None else [_record(_double(1, start) + _bytes(3, b"brain.Event:2"))]
    for step, time, tag, value in scalars:
        point = _bytes(1, tag.encode()) + _key(2, _FIXED32) + _float(value)
        parts.append(_record(_double(1, time) + _key(2, _VARINT) + _varint(step) + _bytes(5, _bytes(1, point))))
    return b"".join(parts)


def _agreeing(a: bytes, b: bytes) -> int:
    """How many bytes `a` and `b` have in common at their beginnings."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# Wire types of protocol buffers.
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def _record(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return length + _masked_crc(length) + payload + _masked_crc(payload)


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    # A checksum of data that holds checksums is weak: so they are stored rotated, with a constant added.
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_of_byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_TABLE = tuple(_crc_of_byte(byte) for byte in range(256))


def crc32c(data: bytes) -> int:
    """CRC-32 with Castagnoli's polynomial, as in RFC 3720, appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _varint(value: int) -> bytes:
    if value < 0:
        raise ValueError(f"expected a step of 0 or more, got {value}")
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _float(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def _double(field: int, value: float) -> bytes:
    return _key(field, _FIXED64) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, _LENGTH) + _varint(len(value)) + value
