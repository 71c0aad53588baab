"""Command-line arguments: a parser whose errors are one sentence, and the value types that the commands share."""

import argparse
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import nn

from fused_preact._text import unknown
from fused_preact.models import architecture, create_model, load_weights

DTYPES = ("float32", "bfloat16", "float16")


class Collect(argparse.Action):
    """Pairs of name and value, of an option that may be given several times, as one dict."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        name, value = values
        setattr(namespace, self.dest, getattr(namespace, self.dest, {}) | {name: value})


class UsageError(Exception):
    """What was asked for is impossible; the message is the sentence that the user sees, and the exit code is 2."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse, but an error is a `UsageError` of one sentence instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def adder(group: argparse._ArgumentGroup) -> Callable[..., None]:
    """A function that adds an option whose value is left out unless given: only then it stands against a recipe or what a folder says."""

    def add(option: str, parse: Callable[[str], object] | None, meaning: str, metavar: str | None = None, **more: Any) -> None:
        kind = {"action": "store_true"} if parse is None else {"type": parse, "metavar": metavar}
        group.add_argument(option, default=argparse.SUPPRESS, help=meaning, **kind, **more)

    return add


def named(kind: str, names: Sequence[str]) -> Callable[[str], str]:
    """A value that must be one of `names`; the error tells the nearest."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(unknown(kind, text, names))
        return text

    return parse


def network(text: str) -> str:
    """The name of a network; the error tells the nearest, of a depth that no network has the nearest depth."""
    try:
        architecture(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def assignment(text: str) -> tuple[str, object]:
    """NAME=VALUE; a value is a number, true or false as JSON has them, or else a word."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals and value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """A whole number from `low` up to `high`."""
    wanted = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {value}")
        return value

    return parse


def integers(low: int) -> Callable[[str], tuple[int, ...]]:
    """Whole numbers of at least `low`, rising, with commas between them; "none" for none."""

    def parse(text: str) -> tuple[int, ...]:
        values = () if text == "none" else tuple(map(integer(low), text.split(",")))
        if list(values) != sorted(set(values)):
            raise argparse.ArgumentTypeError(f"expected rising numbers, got {text!r}")
        return values

    return parse


def number(low: float = 0.0, *, above: bool = False, below: float = math.inf) -> Callable[[str], float]:
    """A finite number of at least `low` (`above`: greater than it) and less than `below`."""
    wanted = f"a number {'above' if above else 'of at least'} {low:g}" + (f" and below {below:g}" if below < math.inf else "")

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None
        if not math.isfinite(value) or value < low or (above and value == low) or value >= below:
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
        return value

    return parse


def file(text: str) -> Path:
    """A file that can be written, in a folder that is there; nothing is written yet."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file, got the folder {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in an existing folder, got {text!r}")
    try:
        if not path.exists():
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        elif not os.access(path, os.W_OK):
            raise PermissionError
    except OSError:
        raise argparse.ArgumentTypeError(f"expected a file that can be written, got {text!r}") from None
    return path


def png(text: str) -> Path:
    """A file that can be written, with the ending of what is drawn."""
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"expected a file name that ends in .png, got {text!r}")
    return file(text)


def device(text: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N`, as a device that is there."""
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(text)
    except RuntimeError:
        wanted = None
    if wanted is None or wanted.type not in ("cpu", "cuda") or (wanted.type == "cpu" and wanted.index is not None):
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:N, got {text!r}")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"expected a device of this machine, which has {torch.cuda.device_count()} GPUs, got {text!r}")
    return text


class _Numbers(Protocol):
    dtype: str
    device: str


def check_dtype(args: _Numbers) -> None:
    """Refuse --dtype float16 where --device has no use for it."""
    if args.dtype == "float16" and args.device == "cpu":
        raise UsageError("argument --dtype: expected float32 or bfloat16 on the cpu, got 'float16', which needs a GPU")


def add_model_option(group: argparse._ActionsContainer, meaning: str) -> None:
    """The option --model-option, whose pairs become `model_options`."""
    group.add_argument(
        "--model-option", type=assignment, action=Collect, dest="model_options", default={}, metavar="NAME=VALUE", help=meaning
    )


def check_model(name: str, memory: str, options: Mapping[str, Any]) -> None:
    """Refuse what `create_model` refuses, and options of it that the command or the data decide."""
    if decided := {"num_classes", "in_channels", "memory"} & set(options):
        raise UsageError(f"argument --model-option: expected an option of the units, got {min(decided)!r}, which has its own place")
    if memory == "layer" and not options:
        return
    try:
        with torch.device("meta"):
            create_model(name, memory=memory, **options)
    except (TypeError, ValueError) as error:
        sentence = str(error)
        option = "memory" if sentence.startswith("memory: ") else "model-option"
        raise UsageError(f"argument --{option}: {sentence.removeprefix('memory: ')}") from None


def check_weights(model: nn.Module, file: Path, what: str, argument: str) -> None:
    """Load `file` into `model`, which is called `what`, or refuse it as the value of `argument`."""
    try:
        load_weights(model, file)
    except (ValueError, ImportError) as error:
        raise UsageError(f"argument {argument}: {error}") from None
    except RuntimeError as error:
        # torch tells of every tensor, a line each after the first.
        first, *others = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        more = f", and {len(others)} more" if others else ""
        raise UsageError(f"argument {argument}: expected weights of {what} in {str(file)!r}, got others: {first[:200]}{more}") from None


def of_data_dir(error: Exception) -> str:
    """A DataError's sentence in the words of the command line."""
    return re.sub("^root: ", "argument --data-dir: ", str(error))
