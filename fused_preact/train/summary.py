"""A finished run on one screen."""

import math
import shlex
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from fused_preact.train.progress import gigabytes
from fused_preact.train.record import EpochRecord, FitResult

# Of so few classes, how often the label is among the first five says little.
TOP5_CLASSES = 10


def summary(fields: Mapping[str, Any], result: FitResult) -> str:
    """What a run came to, in aligned lines, at most 20 and of 100 columns as long as the folder's name is short.

    Args:
        fields: those of config.json.
        result: what `fit` returned; it may have been interrupted before its first epoch was over.
    """
    steps, epochs = result.history
    done = max([record.step for record in (*steps[-1:], *epochs[-1:])], default=0)
    rows = [
        ("model", f"{fields['model']}, {fields['parameters']:,} parameters"),
        ("data", f"{fields['data']}, {fields['num_classes']} classes, batches of {fields['batch_size']}"),
        ("run", f"{fields['device']}, {fields['dtype']}, memory {fields['memory']}"),
        ("trained", f"{len(epochs)} epochs, {done:,} of {fields['steps']:,} steps"),
    ]
    if epochs:
        rows += _accuracies(epochs, fields["num_classes"])
        rows.append(
            ("time", f"{_duration(sum(e.seconds for e in epochs))} of training, {median(e.images_per_s for e in epochs):,.0f} images/s")
        )
        if math.isfinite(peak := epochs[-1].peak_mb):
            rows.append(("memory", f"{gigabytes(peak)} at the peak"))
    rows.append(("files", str(result.out)))
    if result.interrupted is not None:
        rows.append(("interrupted", f"by {result.interrupted}; to go on:"))
        rows.append(("", f"fused-preact train --out {shlex.quote(str(result.out))} --resume"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _accuracies(epochs: Sequence[EpochRecord], num_classes: int) -> list[tuple[str, str]]:
    # The first of the best; an epoch without a number is never it.
    best = max(epochs, key=lambda record: -math.inf if math.isnan(record.test_accuracy) else record.test_accuracy)
    rows = []
    for name, record in (("test, last", epochs[-1]), ("test, best", best)):
        top5 = f", top-5 {record.test_top5:.2%}" if num_classes > TOP5_CLASSES else ""
        rows.append((name, f"accuracy {record.test_accuracy:.2%}, error {1 - record.test_accuracy:.2%}{top5} (epoch {record.epoch})"))
    return rows


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
