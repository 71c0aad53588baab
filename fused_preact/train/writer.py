"""The files of a training run: config.json, metrics.csv, model.safetensors."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from fused_preact._files import write_atomically
from fused_preact._extras import require
from fused_preact.train.record import EpochRecord


class RunWriter:
    """Writes into the folder `out`, which it makes; each file is whole at every moment."""

    def __init__(self, out: Path) -> None:
        self._save_file = require("safetensors.torch").save_file
        self.out = out
        out.mkdir(parents=True, exist_ok=True)

    def config(self, fields: dict[str, Any]) -> None:
        write_atomically(self.out / "config.json", lambda path: path.write_text(json.dumps(fields, indent=2) + "\n"))

    def metrics(self, epochs: Iterable[EpochRecord]) -> None:
        """All epochs so far, one row each."""

        def write(path: Path) -> None:
            with open(path, "w", newline="") as file:
                rows = csv.writer(file, lineterminator="\n")
                rows.writerow(EpochRecord._fields)
                rows.writerows([f"{value:.6g}" for value in record] for record in epochs)

        write_atomically(self.out / "metrics.csv", write)

    def model(self, model: nn.Module) -> None:
        """The state_dict, on the CPU and contiguous, as safetensors wants it."""
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        write_atomically(self.out / "model.safetensors", lambda path: self._save_file(state, path))
