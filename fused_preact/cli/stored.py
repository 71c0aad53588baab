"""The config.json of a run, which a hand may have changed since."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fused_preact.cli.arguments import ArgumentParser, UsageError
from fused_preact.train.config import TrainConfig
from fused_preact.train.writer import CONFIG

# `recipe` is a name that nothing depends on any more; the others are what this command and this machine say, whatever the run did.
_ANY_TEXT = frozenset({"recipe", "device", "out"})
_MAY_BE_NONE = frozenset({"data_dir", "epochs", "iterations", "threads", "checkpoint_every", "out"})


def read(folder: Path, argument: str, add_arguments: Callable[[argparse.ArgumentParser], None]) -> TrainConfig:
    """The config of the run in `folder`, every field of which the option of its name would take; raises UsageError, naming `argument`."""
    path = folder / CONFIG
    if folder.is_dir() and not path.exists():
        raise UsageError(f"argument {argument}: expected the folder of a run, got {str(folder)!r}, which has no {CONFIG}")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        config = TrainConfig.from_json(stored)
        _check(config.as_json(), add_arguments)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, argparse.ArgumentTypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"argument {argument}: expected the config of a run in {str(path)!r}, got something else: {reason}") from None
    return config


def _check(fields: dict[str, Any], add_arguments: Callable[[argparse.ArgumentParser], None]) -> None:
    """Raises ValueError or ArgumentTypeError, naming the field, for a value that is not as the options have it."""
    parser = ArgumentParser(add_help=False)
    add_arguments(parser)
    # argparse has no public way to its options.
    options = {action.dest: action.type for action in parser._actions}
    for name, value in fields.items():
        if name == "model_options":
            # What is in it, `create_model` judges.
            if not isinstance(value, dict):
                raise ValueError(f"{name}: expected options by name, got {value!r}")
            continue
        if value is None and name in _MAY_BE_NONE:
            continue
        parse = str if name in _ANY_TEXT else options[name]
        if parse is None:
            if not isinstance(value, bool):
                raise ValueError(f"{name}: expected true or false, got {value!r}")
            continue
        text = ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        try:
            parsed = parse(text)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{name}: {error}") from None
        # "1" is not 1, and 1.0 would print itself otherwise.
        same = str(parsed) if isinstance(parsed, Path) else list(parsed) if isinstance(parsed, tuple) else parsed
        if same != value or isinstance(value, bool) or (isinstance(value, str) != isinstance(same, str)):
            raise ValueError(f"{name}: expected {type(same).__name__}, got {value!r}")
    if (fields["epochs"] is None) == (fields["iterations"] is None):
        raise ValueError("expected one of epochs and iterations")
