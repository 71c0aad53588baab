"""The files of a training run."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fused_preact._extras import require
from fused_preact._files import remove_temporaries, write_atomically
from fused_preact.train.events import EventFile, in_order
from fused_preact.train.record import EpochRecord, History

CONFIG, CSV, JSONL, EVENTS = "config.json", "metrics.csv", "metrics.jsonl", "events.out.tfevents.fused_preact"
MODEL, CURVES, CHECKPOINT = "model.safetensors", "curves.png", "checkpoint.pt"
# The config first: a folder that has lost it is no run any more, whatever else is still there.
_FILES = (CONFIG, CHECKPOINT, CSV, JSONL, EVENTS, MODEL, CURVES)
# Packages of the `train` extra.
NEEDED = ("safetensors.torch", "matplotlib")

_WHOLE = {"epoch", "step", "time"}


class RunWriter:
    """Writes into the folder `out`, which it makes, and from which it removes what a killed run left half written.

    Every file is whole at every moment (the event file but for its end, which its readers allow) and a function of what it is given, so
    that writing again changes nothing. Write `records` before `checkpoint`: a run that is killed then leaves metrics that are at most
    ahead of its checkpoint, and the first `records` after it goes on cuts them back. Raises OSError, naming the file, when one can't be
    written, and MissingExtraError, before anything is, when a package is missing.
    """

    def __init__(self, out: Path) -> None:
        self._serialise, _ = (require(name) for name in NEEDED)
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        remove_temporaries(out)
        self._events = EventFile(out / EVENTS)

    def clear(self, overwrite: bool) -> None:
        """Make place for a new run: remove the files of an old one, and no others.

        Raises FileExistsError if there is one and not `overwrite`.
        """
        found = [path for name in _FILES if (path := self.out / name).exists()]
        if found and not overwrite:
            raise FileExistsError(f"expected a folder without a run in it, got {str(self.out)!r}, which has {found[0].name}")
        for path in found:
            path.unlink()

    def config(self, fields: Mapping[str, Any]) -> None:
        """config.json: `fields`, as JSON has them."""
        self._text(CONFIG, json.dumps(strict(fields), indent=2, allow_nan=False) + "\n")

    def records(self, history: History) -> None:
        """The whole of `history`, which may only grow from call to call: metrics.csv, metrics.jsonl and TensorBoard's events.

        metrics.csv has a row for each epoch, of six digits where they are measured. metrics.jsonl has a line for every record in order of
        the steps, `kind` ("step" or "epoch") first, at full precision; what is not finite is null.
        """
        write_atomically(self.out / CSV, lambda path: _write_csv(path, history.epochs))
        self._text(JSONL, "".join(_line(record) + "\n" for record in in_order(history)))
        self._events.update(history)

    def curves(self, history: History, title: str) -> None:
        """curves.png; drawing takes a good part of a second, so this is for the end of a run."""
        # matplotlib takes long to import, and a run that is killed before its end never needs it.
        from fused_preact.train.curves import draw

        draw(history, title, self.out / CURVES)

    def model(self, model: nn.Module) -> None:
        """model.safetensors: the state_dict, on the CPU and contiguous, as safetensors wants it."""
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        # Its save_file writes by itself, and its errors are no OSErrors.
        write_atomically(self.out / MODEL, lambda path: path.write_bytes(self._serialise.save(state)))

    def remove_model(self) -> None:
        """Remove the weights of an end that is none any more, because the run goes on; its checkpoint has them."""
        (self.out / MODEL).unlink(missing_ok=True)

    def checkpoint(self, state: dict[str, Any]) -> None:
        """checkpoint.pt: `state`, of tensors, numbers, strings, None and plain lists, tuples and dicts of them.

        So `torch.load(path, weights_only=True)` reads it; a NamedTuple it would refuse.
        """
        write_atomically(self.out / CHECKPOINT, lambda path: _save(state, path))

    def _text(self, name: str, text: str) -> None:
        write_atomically(self.out / name, lambda path: path.write_text(text, encoding="utf-8"))


def _write_csv(path: Path, epochs: list[EpochRecord]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(EpochRecord._fields)
        for record in epochs:
            rows.writerow([repr(value) if name in _WHOLE else f"{value:.6g}" for name, value in record._asdict().items()])


def _line(record: Any) -> str:
    kind = "epoch" if isinstance(record, EpochRecord) else "step"
    return json.dumps({"kind": kind} | strict(record._asdict()), allow_nan=False)


def strict(value: Any) -> Any:
    """`value` with None for the floats that JSON has no words for."""
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _save(state: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # When a write fails, torch goes on to look for the end of the file, and tells only that it is not where it should be.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
