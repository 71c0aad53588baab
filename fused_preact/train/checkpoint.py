"""All that a run needs to go on, as tensors and plain Python values."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fused_preact.train.config import TrainConfig
from fused_preact.train.meter import Sums
from fused_preact.train.record import EpochRecord, History, StepRecord
from fused_preact.train.trainer import Trainer, decayed

_FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint can't be read, or belongs to another run; the message is one sentence."""


@dataclass
class State:
    """How far a run is: `step` steps are done; `epoch` sums up those of the running epoch, `record` those since the last StepRecord."""

    step: int = 0
    epoch: Sums = field(default_factory=Sums)
    record: Sums = field(default_factory=Sums)
    history: History = field(default_factory=lambda: History([], []))


def pack(config: TrainConfig, state: State, trainer: Trainer, per_epoch: int) -> dict[str, Any]:
    """What checkpoint.pt holds; `torch.load(weights_only=True)` reads it. No state of a random generator: none outlives a step."""
    return {
        "format": _FORMAT,
        "config": config.as_json(),
        "per_epoch": per_epoch,
        "step": state.step,
        "sums": {"epoch": state.epoch.as_json(), "record": state.record.as_json()},
        "history": {"steps": [tuple(r) for r in state.history.steps], "epochs": [tuple(r) for r in state.history.epochs]},
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
    }


def finite(packed: dict[str, Any]) -> bool:
    """Whether all weights and running statistics are finite numbers."""
    return all(bool(t.isfinite().all()) for t in packed["model"].values() if t.is_floating_point())


def read(path: Path) -> dict[str, Any]:
    """What `pack` made; raises CheckpointError for anything else."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # Damaged bytes raise whatever the readers of zip and pickle stumble over.
        raise CheckpointError(f"expected a checkpoint in {str(path)!r}, got a file that torch can't read: {_first_line(error)}") from error
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
        raise CheckpointError(f"expected a checkpoint of `fused-preact train` in {str(path)!r}, got something else")
    return saved


def unpack(saved: dict[str, Any], trainer: Trainer, per_epoch: int) -> State:
    """Put a checkpoint's weights into `trainer`; returns how far the run was.

    Raises CheckpointError for a checkpoint of another network or of data of another size, or if parts of it are missing or changed.
    """
    try:
        if saved["per_epoch"] != per_epoch:
            raise CheckpointError(f"expected data of {saved['per_epoch']} batches an epoch, as the checkpoint had, got {per_epoch}")
        _load_network(saved, trainer)
        _load_momenta(saved, trainer)
        # A scaler that is off saves nothing, which one that is on refuses: it then begins anew.
        if saved["scaler"]:
            trainer.scaler.load_state_dict(saved["scaler"])
        history = History([StepRecord(*r) for r in saved["history"]["steps"]], [EpochRecord(*r) for r in saved["history"]["epochs"]])
        return State(saved["step"], Sums(**saved["sums"]["epoch"]), Sums(**saved["sums"]["record"]), history)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"expected a checkpoint of `fused-preact train`, got one with other contents: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _load_network(saved: dict[str, Any], trainer: Trainer) -> None:
    try:
        trainer.model.load_state_dict(saved["model"])
    except RuntimeError as error:
        # torch tells of every tensor, a line each after the first.
        first = (str(error).splitlines()[1:] or [str(error)])[0].strip()
        name, theirs = trainer.config.model, saved["config"]["model"]
        raise CheckpointError(
            f"expected a checkpoint of {name} with as many classes as the data, got one of {theirs}: {first[:200]}"
        ) from None


def _load_momenta(saved: dict[str, Any], trainer: Trainer) -> None:
    """The momenta alone, each to its parameter.

    torch's load_state_dict would put the old run's weight decay, momentum, rate and implementation over those that are asked for, and
    refuse the other groups that another `decay` makes.
    """
    parameters = [p for group, _ in decayed(trainer.model, replace(trainer.config, decay=saved["config"]["decay"])) for p in group]
    for index, state in saved["optimizer"]["state"].items():
        if (momentum := state["momentum_buffer"]) is not None:
            p = parameters[index]
            trainer.optimizer.state[p]["momentum_buffer"] = momentum.to(device=p.device, dtype=p.dtype)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
