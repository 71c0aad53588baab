"""What a training run reports."""

from pathlib import Path
from typing import NamedTuple


class EpochRecord(NamedTuple):
    """One epoch, a row of metrics.csv: losses are means over images, accuracies fractions, `lr` that of its first step.

    `seconds` and `images_per_s` are of training alone, without the evaluation.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    images_per_s: float


class FitResult(NamedTuple):
    """One run: its epochs in order, and the folder with metrics.csv, model.safetensors and config.json."""

    epochs: list[EpochRecord]
    out: Path

    @property
    def test_accuracy(self) -> float:
        return self.epochs[-1].test_accuracy
