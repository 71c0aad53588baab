"""What an ablation came to, beside the paper's numbers: text, Markdown and JSON."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from fused_preact._files import remove_temporaries, write_atomically, write_json
from fused_preact.models.paper_rows import Row
from fused_preact.paper.ablate import OUTCOME, Ablation, AblationError, Run
from fused_preact.train.config import TrainConfig
from fused_preact.train.recipes import describe
from fused_preact.train.writer import JSONL

REPORT_JSON, REPORT_MD, CURVES = "report.json", "report.md", "curves.png"
# In %: above it the paper writes "fail".
FAIL = 20.0
_COLUMNS = ("row", "case", "network", "paper: test error, %", "here: test error, %", "training loss", "error beside the original's")


class Curve(NamedTuple):
    """One run, epoch by epoch: `steps` done, mean training loss, test error in %. diverged: the sentence, if its loss did."""

    seed: int
    steps: list[int]
    train_loss: list[float]
    test_error: list[float]
    diverged: str | None

    @property
    def last(self) -> tuple[float, float]:
        """Training loss and test error at the end, infinite if the loss diverged."""
        return (math.inf, math.inf) if self.diverged else (self.train_loss[-1], self.test_error[-1])


class Result(NamedTuple):
    """A row: its curves, one for every seed."""

    row: Row
    config: TrainConfig
    curves: list[Curve]

    @property
    def train_losses(self) -> list[float]:
        return [curve.last[0] for curve in self.curves]

    @property
    def test_errors(self) -> list[float]:
        return [curve.last[1] for curve in self.curves]

    @property
    def failed(self) -> bool:
        """As the paper has it: a median test error above 20 %, which a loss that diverged counts as."""
        return median(self.test_errors) > FAIL

    @property
    def original(self) -> bool:
        """Whether it is what the paper compares with: identity shortcuts in the original unit."""
        return self.row.options.get("shortcut", "identity") == "identity" and self.row.options["activation"] == "original"

    def beside(self, baseline: "Result") -> tuple[float, int]:
        """How much higher its median error is, and with how many seeds it is higher."""
        pairs = zip(self.test_errors, baseline.test_errors, strict=True)
        return median(self.test_errors) - median(baseline.test_errors), sum(own > theirs for own, theirs in pairs)


def collect(runs: Sequence[Run]) -> list[Result]:
    """What finished runs left in their folders, a result for every row; raises AblationError for files that are not theirs."""
    rows = {run.row.id: [] for run in runs}
    for run in runs:
        rows[run.row.id].append(run)
    return [Result(own[0].row, own[0].config, [_curve(run) for run in own]) for own in rows.values()]


def baseline(result: Result, results: Sequence[Result]) -> Result | None:
    """The original unit in the same network and on the same data; None for itself and where it was not asked for."""
    key = _kind(result)
    return next((other for other in results if other.original and _kind(other) == key and not result.original), None)


def headline(ablation: Ablation, results: Sequence[Result]) -> str:
    """One line that says whether this is the paper's setting, and of what kind it is otherwise."""
    config, seeds = results[0].config, len(ablation.seeds)
    networks, sets = (sorted({getattr(result.config, name) for result in results}) for name in ("model", "data"))
    length = _number(config.iterations, "iteration") if config.epochs is None else _number(config.epochs, "epoch")
    what = f"{' and '.join(networks)} on {' and '.join(sets)}, {length} of batches of {config.batch_size}, {_number(seeds, 'seed')}"
    if ablation.small:
        return f"A small version for two CPU cores, not a reproduction of the paper's tables: {what}."
    if ablation.paper_setting:
        return f"The paper's setting: {what}."
    return f"Not the paper's setting, so not comparable with its numbers: {what}."


def text(ablation: Ablation, results: Sequence[Result]) -> str:
    """For a terminal: the headline and aligned columns."""
    table = [_COLUMNS, *(_cells(result, results) for result in results)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in table]
    return "\n".join([headline(ablation, results), "", *lines, "", _legend(ablation)])


def markdown(ablation: Ablation, results: Sequence[Result]) -> str:
    """The same for a page, with the hyperparameters and the picture."""
    table = [_COLUMNS, ("---",) * len(_COLUMNS), *(_cells(result, results) for result in results)]
    parts = [
        headline(ablation, results),
        "\n".join(f"| {' | '.join(cells)} |" for cells in table),
        _legend(ablation),
        f"![training loss and test error over iterations]({CURVES})",
        f"```\n{describe(results[0].config)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def fields(ablation: Ablation, results: Sequence[Result]) -> dict[str, Any]:
    """The same for a program, and every run's curve. Numbers of runs that diverged are null."""
    return {
        "headline": headline(ablation, results),
        "small": ablation.small,
        "paper_setting": ablation.paper_setting,
        "seeds": list(ablation.seeds),
        "torch": torch.__version__,
        "rows": [_row(result, results) for result in results],
    }


def write(ablation: Ablation, results: Sequence[Result]) -> None:
    """report.json, report.md and curves.png into the ablation's folder, each whole or not at all."""
    # matplotlib takes long to import.
    from fused_preact.paper.ablate_curves import draw

    # No others: a process that begins late may still be writing what was asked for.
    remove_temporaries(ablation.out, REPORT_JSON, REPORT_MD, CURVES)
    write_json(ablation.out / REPORT_JSON, fields(ablation, results))
    page = markdown(ablation, results)
    write_atomically(ablation.out / REPORT_MD, lambda path: path.write_text(page, encoding="utf-8"))
    draw(results, headline(ablation, results), ablation.out / CURVES)


def _curve(run: Run) -> Curve:
    try:
        return _read(run)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AblationError(
            f"argument --out: expected the {OUTCOME} and {JSONL} of a run in {str(run.config.out)!r}, got something else: {error}"
        ) from None


def _read(run: Run) -> Curve:
    out: Path = run.config.out
    diverged = json.loads((out / OUTCOME).read_text(encoding="utf-8"))["diverged"]
    # A run that diverged in its first epoch has none.
    lines = (out / JSONL).read_text(encoding="utf-8").splitlines() if (out / JSONL).exists() else []
    epochs = [line for line in map(json.loads, lines) if line["kind"] == "epoch"]
    if not (epochs or diverged):
        raise ValueError("no epoch")
    return Curve(
        run.seed,
        [line["step"] for line in epochs],
        [line["train_loss"] for line in epochs],
        [100 * (1 - line["test_accuracy"]) for line in epochs],
        diverged,
    )


def _kind(result: Result) -> tuple[str, str, bool]:
    return result.config.model, result.config.data, result.row.options.get("one_layer", False)


def _cells(result: Result, results: Sequence[Result]) -> tuple[str, ...]:
    row, errors = result.row, result.test_errors
    error = f"{'fail, ' if result.failed else ''}{_spread(errors, '.2f')}"
    beside = ""
    if (other := baseline(result, results)) is not None:
        more, worse = result.beside(other)
        seeds = f"higher with {worse} of {_number(len(errors), 'seed')}"
        beside = f"{more:+.2f}, {seeds}" if math.isfinite(more) else seeds
    paper = "fail" if row.error is None else f"{row.error:.2f}"
    return row.id, row.case, result.config.model, paper, error, _spread(result.train_losses, ".4f"), beside


def _spread(values: Sequence[float], form: str) -> str:
    """The median, and the range if there are several."""
    low, middle, high = (
        format(value, form) if math.isfinite(value) else "diverged" for value in (min(values), median(values), max(values))
    )
    return middle if len(values) == 1 or low == high == "diverged" else f"{middle} ({low} to {high})"


def _legend(ablation: Ablation) -> str:
    several = "medians over the seeds, with the lowest and the highest in brackets, " if len(ablation.seeds) > 1 else ""
    return (
        f"Here: {several}after the last iteration; the training loss is the mean over the last epoch.\n"
        f"fail: a test error above {FAIL:.0f} %, in the paper's words, or a loss that diverged.\n"
        "The paper's numbers are medians of five runs of its own setting (CIFAR, depth of the row's name, 64k iterations)."
    )


def _row(result: Result, results: Sequence[Result]) -> dict[str, Any]:
    other = baseline(result, results)
    return {
        "row": result.row.id,
        "table": result.row.table,
        "case": result.row.case,
        "paper_test_error": result.row.error,
        "model": result.config.model,
        "model_options": result.config.model_options,
        "data": result.config.data,
        "fail": result.failed,
        "test_error": _statistics(result.test_errors),
        "train_loss": _statistics(result.train_losses),
        "baseline": other and other.row.id,
        "higher_error_with_seeds": other and result.beside(other)[1],
        "runs": [curve._asdict() for curve in result.curves],
    }


def _statistics(values: Sequence[float]) -> dict[str, float | None]:
    found = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count != 1 else ''}"
