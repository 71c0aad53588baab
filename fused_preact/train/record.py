"""What a training run reports."""

from pathlib import Path
from typing import NamedTuple


class StepRecord(NamedTuple):
    """The steps since the record before, a line of metrics.jsonl: loss and accuracy are means over them.

    `step` counts the optimizer's steps of the whole run, `lr` is that of the last of the steps, `epoch` the epoch (from 1) that it belongs
    to, `time` seconds since 1970.
    """

    step: int
    epoch: int
    lr: float
    loss: float
    accuracy: float
    images_per_s: float
    time: float


class EpochRecord(NamedTuple):
    """One epoch, a row of metrics.csv and a line of metrics.jsonl: losses are means over images, accuracies fractions.

    `step` is the number of steps after it, `lr` that of its first step. `seconds` and `images_per_s` are of training alone, without the
    evaluation. `peak_mb` is the most memory so far in 10^6 bytes: what torch allocated on a GPU, what the process held on a CPU.
    """

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    test_top5: float
    seconds: float
    images_per_s: float
    peak_mb: float
    time: float


class History(NamedTuple):
    """All that a run has reported, in order; part of its checkpoints, so that its files never have a gap or a double."""

    steps: list[StepRecord]
    epochs: list[EpochRecord]


class FitResult(NamedTuple):
    """One run: what it reported, and its folder. `interrupted` names the signal that ended it early."""

    history: History
    out: Path
    interrupted: str | None = None

    @property
    def test_accuracy(self) -> float:
        return self.history.epochs[-1].test_accuracy
