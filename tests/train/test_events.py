import math
import struct

import pytest

from fused_preact.train.events import EventFile, crc32c, encode, scalars
from tests.train.histories import START, cut, history

POINTS = [(0, 1.5, "train/loss", 2.25), (127, 2.5, "train/loss", -1.0), (128, 3.5, "ä/β", 0.0), (2**40, 4.5, "train/lr", 1e-30)]


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


def fields(data):
    """{field number: value} of a protocol buffer without repeated fields."""
    found, at = {}, 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
        else:
            size, at = varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = data[at : at + size], at + size
        assert key >> 3 not in found
        found[key >> 3] = value
    return found


def unmasked(data):
    rotated = (struct.unpack("<I", data)[0] - 0xA282EAD8) % 2**32
    return (rotated >> 17 | rotated << 15) % 2**32


def decode(data):
    """(version, points) of a whole event file."""
    events, at = [], 0
    while at < len(data):
        head, (size,) = data[at : at + 8], struct.unpack_from("<Q", data, at)
        payload, end = data[at + 12 : at + 12 + size], at + 16 + size
        assert unmasked(data[at + 8 : at + 12]) == crc32c(head)
        assert unmasked(data[end - 4 : end]) == crc32c(payload)
        events.append(fields(payload))
        at = end
    points = []
    for event in events[1:]:
        value = fields(fields(event[5])[1])
        points.append((event[2], *struct.unpack("<d", event[1]), value[1].decode(), *struct.unpack("<f", value[2])))
    return (events[0][3], *struct.unpack("<d", events[0][1])), points


def as_float32(points):
    return [(step, time, tag, struct.unpack("<f", struct.pack("<f", value))[0]) for step, time, tag, value in points]


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        pytest.param(b"", 0, id="empty"),
        pytest.param(bytes(32), 0x8A9136AA, id="rfc3720-zeros"),
        pytest.param(b"\xff" * 32, 0x62A8AB43, id="rfc3720-ones"),
        pytest.param(bytes(range(32)), 0x46DD794E, id="rfc3720-rising"),
        pytest.param(b"123456789", 0xE3069283, id="the-usual-check"),
    ],
)
def test_crc32c_is_that_of_the_rfc(data, crc):
    assert crc32c(data) == crc


def test_a_file_holds_its_points():
    assert decode(encode(POINTS, start=7.0)) == ((b"brain.Event:2", 7.0), as_float32(POINTS))


def test_files_join():
    assert encode(POINTS[:2]) + encode(POINTS[2:], None) == encode(POINTS)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        pytest.param(math.inf, math.inf, id="infinity"),
        pytest.param(1e300, math.inf, id="too-large-for-float32"),
        pytest.param(-1e300, -math.inf, id="too-small-for-float32"),
        pytest.param(math.nan, math.nan, id="nan"),
    ],
)
def test_no_value_is_lost_or_refused(value, kept):
    _, [(*_, got)] = decode(encode([(1, 0.0, "a", value)]))
    assert got == pytest.approx(kept, nan_ok=True)


def test_a_negative_step_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"^expected a step of 0 or more, got -1$"):
        encode([(-1, 0.0, "a", 0.0)])


def test_every_record_gives_its_curves_in_order_of_the_steps():
    points = list(scalars(history(2)))
    assert [step for step, *_ in points] == sorted(step for step, *_ in points)
    at_20 = [(time, tag, value) for step, time, tag, value in points if step == 20]
    step, epoch = history(2).steps[3], history(2).epochs[0]
    assert at_20[:4] == [(step.time, f"train/{name}", getattr(step, name)) for name in ("lr", "loss", "accuracy", "images_per_s")]
    assert {"epoch/train_loss", "epoch/train_accuracy", "epoch/test_loss", "epoch/test_accuracy", "epoch/test_top5"} <= {
        tag for _, tag, _ in at_20[4:]
    }
    assert {time for time, *_ in at_20[4:]} == {epoch.time}


def test_the_file_grows_to_the_bytes_that_it_would_have_at_once(tmp_path):
    path = tmp_path / "events"
    file = EventFile(path)
    for step in (0, 5, 20, 35, 35, 40):
        file.update(cut(history(2), step))
        version, points = decode(path.read_bytes()) if step else (None, [])
        assert points == as_float32(scalars(cut(history(2), step)))
    assert version == (b"brain.Event:2", history(2).steps[0].time)
    EventFile(tmp_path / "at once").update(history(2))
    assert path.read_bytes() == (tmp_path / "at once").read_bytes()


def test_it_grows_in_place_for_the_readers_that_hold_it_open(tmp_path):
    """TensorBoard never opens a file again, so a renamed one would stay as it was."""
    path = tmp_path / "events"
    file = EventFile(path)
    file.update(cut(history(2), 20))
    with open(path, "rb") as reader:
        read = reader.read()
        file.update(history(2))
        assert decode(read + reader.read())[1] == as_float32(scalars(history(2)))


LEFT = {
    "the-same": lambda whole: whole,
    "ahead-of-the-checkpoint": lambda whole: whole + encode([(41, START, "train/loss", 1.0)], None),
    "ahead-and-torn": lambda whole: whole + encode([(41, START, "train/loss", 1.0)], None)[:-3],
    "torn": lambda whole: whole[:-3],
    "zeros-of-a-power-cut": lambda whole: whole[:500] + bytes(len(whole)),
    "of-another-run": lambda whole: encode(scalars(history(3, seed=9)), START),
    "empty": lambda whole: b"",
}


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
@pytest.mark.parametrize(
    "kept", [pytest.param(40, id="to-the-end"), pytest.param(20, id="to-an-earlier-checkpoint"), pytest.param(0, id="to-nothing")]
)
def test_a_new_writer_makes_it_that_of_the_history(tmp_path, left, kept):
    fresh, old = tmp_path / "fresh", tmp_path / "old"
    EventFile(fresh).update(cut(history(2), kept))
    EventFile(old).update(history(2))
    old.write_bytes(left(old.read_bytes()))
    EventFile(old).update(cut(history(2), kept))
    assert old.read_bytes() == fresh.read_bytes()


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")], ids=["removed", "cut-short"])
def test_a_file_harmed_during_the_run_is_made_anew(tmp_path, harm):
    path = tmp_path / "events"
    file = EventFile(path)
    file.update(cut(history(2), 20))
    harm(path)
    file.update(history(2))
    assert decode(path.read_bytes())[1] == as_float32(scalars(history(2)))


def test_what_a_full_disk_cut_off_is_written_by_the_next_update(tmp_path, monkeypatch):
    path = tmp_path / "events"
    file = EventFile(path)
    file.update(cut(history(2), 20))

    def no_space(descriptor):
        path.write_bytes(path.read_bytes()[:-9])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_space)
        with pytest.raises(OSError, match=r"No space left on device: '.*events'$"):
            file.update(cut(history(2), 40))
    file.update(history(2))
    assert decode(path.read_bytes())[1] == as_float32(scalars(history(2)))


def test_tensorboard_reads_it_and_follows(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="TensorBoard is no dependency; its own reader is the judge where it is",
    )
    file = EventFile(tmp_path / "events.out.tfevents.fused_preact")
    reader = accumulator.EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    for step in (20, 40, 60):
        file.update(cut(history(3), step))
        reader.Reload()
        expected = as_float32(scalars(cut(history(3), step)))
        got = [(e.step, e.wall_time, tag, e.value) for tag in reader.Tags()["scalars"] for e in reader.Scalars(tag)]
        assert sorted(got) == sorted(expected)
