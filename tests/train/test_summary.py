import math
from pathlib import Path

import pytest

from fused_preact.train.record import FitResult, History
from fused_preact.train.summary import summary
from tests.train.histories import cut, history

FIELDS = {
    "model": "preact_resnet1001",
    "data": "imagenette",
    "steps": 6000,
    "batch_size": 128,
    "dtype": "bfloat16",
    "device": "cuda:0",
    "memory": "segment",
    "num_classes": 1000,
    "parameters": 10_327_706,
}


def rows(result, **fields):
    text = summary(FIELDS | fields, result)
    lines = text.splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 100
    assert text.isascii()
    # Aligned: the texts begin in one column.
    width = max(len(line.partition("  ")[0]) for line in lines) + 2
    assert all(line[width - 1] == " " and line[width] != " " for line in lines)
    return {line[:width].strip(): line[width:] for line in lines}


def test_a_run_says_what_it_was_and_what_it_came_to():
    found = rows(FitResult(history(4), Path("runs/first")))
    assert found == {
        "model": "preact_resnet1001, 10,327,706 parameters",
        "data": "imagenette, 1000 classes, batches of 128",
        "run": "cuda:0, bfloat16, memory segment",
        "trained": "4 epochs, 80 of 6,000 steps",
        "test, last": "accuracy 68.00%, error 32.00%, top-5 99.00% (epoch 4)",
        "test, best": "accuracy 73.33%, error 26.67%, top-5 99.00% (epoch 3)",
        "time": "12.0 s of training, 1,002 images/s",
        "memory": "2.35 GB at the peak",
        "files": "runs/first",
    }


def test_top5_of_ten_classes_is_not_worth_a_word():
    assert "top-5" not in rows(FitResult(history(4), Path("a")), num_classes=10)["test, best"]


@pytest.mark.parametrize(
    ("records", "trained"),
    [
        pytest.param(History([], []), "0 epochs, 0 of 6,000 steps", id="at-once"),
        pytest.param(cut(history(1), 15), "0 epochs, 15 of 6,000 steps", id="in-the-first-epoch"),
        pytest.param(cut(history(2), 35), "1 epochs, 35 of 6,000 steps", id="in-the-second"),
    ],
)
def test_an_interrupted_run_says_how_to_go_on(records, trained):
    found = rows(FitResult(records, Path("my runs/first"), "SIGTERM"))
    assert found["trained"] == trained
    assert found["interrupted"] == "by SIGTERM; to go on:"
    assert found[""] == "fused-preact train --out 'my runs/first' --resume"
    assert ("test, best" in found) == bool(records.epochs)


def test_an_epoch_without_a_number_is_not_the_best():
    whole = history(3)
    lost = [whole.epochs[0]._replace(test_accuracy=math.nan), *whole.epochs[1:]]
    assert rows(FitResult(History(whole.steps, lost), Path("a")))["test, best"].endswith("(epoch 2)")


def test_a_peak_that_nobody_knows_is_left_out():
    whole = history(1)
    assert "memory" not in rows(FitResult(History([], [whole.epochs[0]._replace(peak_mb=math.nan)]), Path("a")))


@pytest.mark.parametrize(("seconds", "words"), [(99.94, "99.9 s"), (100, "1 min 40 s"), (3599.6, "1 h 00 min"), (100_000, "27 h 46 min")])
def test_times_are_in_words(seconds, words):
    found = rows(FitResult(History([], [history(1).epochs[0]._replace(seconds=seconds)]), Path("a")))
    assert found["time"].startswith(f"{words} of training")
