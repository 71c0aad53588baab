import math
import sys

import pytest
import torch

from fused_preact.train import progress as module
from fused_preact.train import usage
from fused_preact.train.progress import Progress
from fused_preact.train.record import EpochRecord

RECORD = EpochRecord(1, 4, 0.1, 1.25, 0.5, 1.5, 0.25, 0.875, 2.0, 50.0, 100.0, 0.0)


def on_a_terminal(monkeypatch):
    """Not a fixture: the stderr of a test is another one than that of its fixtures."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def run(**options):
    with Progress(2, 200, **options) as progress:
        progress.epoch(1)
        progress.advance(100)
        progress.show(1.25, 0.5)
        progress.record(RECORD)
        progress.note("a checkpoint")
        progress.epoch(2)
        progress.advance(100)


def test_without_a_terminal_progress_is_plain_lines(capsys):
    run()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "epoch 1/2: train loss 1.2500, accuracy 50.00%; test loss 1.5000, accuracy 25.00%; 2.0 s, 50 images/s\na checkpoint\n"
    )


def test_on_a_terminal_a_bar_shows_where_the_run_is(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    monkeypatch.setattr(module, "peak_mb", lambda device: 1234.0)
    run()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "\r" in captured.err
    for text in ("epoch 1/2", "epoch 2/2", "100%", "loss 1.250, accuracy 50.0%, 1.23 GB", "images/s", "left", "\na checkpoint\n"):
        assert text in captured.err.replace("\r", "\n")


def test_memory_that_nobody_knows_is_left_out(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    monkeypatch.setattr(module, "peak_mb", lambda device: math.nan)
    run()
    err = capsys.readouterr().err
    assert "accuracy 50.0%" in err
    assert "GB" not in err


def test_a_run_that_goes_on_begins_where_it_was_and_its_speed_counts_only_what_is_new(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(clock)))
    with Progress(2, 1_000_000, done_images=500_000) as progress:
        progress.advance(1)
    first, *_, last = [part for part in capsys.readouterr().err.split("\r") if "%" in part]
    assert " 50%" in first
    assert float(last.partition("| ")[2].split(" images/s")[0]) < 1


def test_a_quiet_one_says_nothing(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    run(quiet=True)
    assert capsys.readouterr() == ("", "")


def test_top5_is_told_when_asked(capsys):
    run(top5=True)
    assert "accuracy 25.00%, top-5 87.50%; 2.0 s" in capsys.readouterr().err


def test_the_peak_of_a_process_covers_what_it_holds():
    before = usage.peak_mb("cpu")
    held = bytearray(b"x") * 300_000_000
    assert usage.peak_mb("cpu") >= max(before, len(held) / 1e6)
    # Not in another unit: no machine that runs tests holds a thousand times that.
    assert usage.peak_mb("cpu") < before + 300_000


@pytest.mark.parametrize(("system", "expected"), [("linux", 1.024), ("darwin", 0.001)])
def test_the_unit_is_that_of_the_system(monkeypatch, system, expected):
    class Used:
        ru_maxrss = 1000

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(usage.resource, "getrusage", lambda who: Used)
    assert usage.peak_mb("cpu") == pytest.approx(expected)


def test_where_python_has_no_resource_module_the_peak_is_unknown(monkeypatch):
    monkeypatch.setattr(usage, "resource", None)
    assert math.isnan(usage.peak_mb("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_peak_of_a_gpu_is_what_torch_allocated():
    held = torch.empty(100_000_000, dtype=torch.uint8, device="cuda")
    assert usage.peak_mb("cuda") >= held.nbytes / 1e6
    assert usage.peak_mb("cuda") == torch.cuda.max_memory_allocated() / 1e6


def test_a_process_without_stderr_says_nothing(monkeypatch):
    """As one that was started with `2>&-`."""
    monkeypatch.setattr("sys.stderr", None)
    with Progress(1, 10) as progress:
        progress.note("a line")
        progress.advance(10)
        progress.show(1.0, 0.5)
