"""`fused-preact train`: learn a small data set, and leave the weights and the metrics in a folder."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from fused_preact.cli.arguments import DTYPES, UsageError, check_dtype, device, integer, named, number
from fused_preact.functional.preact_unit import MEMORIES
from fused_preact.models import list_models
from fused_preact.train.config import TrainConfig
from fused_preact.train.data import DATASETS
from fused_preact._extras import MissingExtraError, require
from fused_preact.train.loop import DivergedError, fit

HELP = "train a network on a small data set that needs no download"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a training run; the defaults reach 98 % on the digits."""
    default = TrainConfig(out=Path())

    def add(option: str, parse: Callable[[str], object], meaning: str, metavar: str) -> None:
        value = getattr(default, option.removeprefix("--").replace("-", "_"))
        parser.add_argument(option, type=parse, default=value, metavar=metavar, help=f"{meaning} (default: %(default)s)")

    add("--model", named("model", list_models()), f"one of {', '.join(list_models())}", "NAME")
    add("--data", named("data set", list(DATASETS)), f"one of {', '.join(DATASETS)}", "NAME")
    add("--epochs", integer(1), "times through the training images", "N")
    add("--batch-size", integer(2, 1_000_000), "images a step", "N")
    add("--lr", number(above=True), "peak of the one-cycle learning rate", "LR")
    add("--weight-decay", number(), "L2 penalty on every parameter", "WD")
    add("--dtype", named("dtype", DTYPES), f"one of {', '.join(DTYPES)}; 16 bits mean autocast with float32 weights", "DTYPE")
    add("--memory", named("memory mode", MEMORIES), f"what forward keeps for backward: one of {', '.join(MEMORIES)}", "MODE")
    add("--seed", integer(0, 2**32 - 1), "of the weights and of the order of the images", "N")
    parser.add_argument("--device", type=device, default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--cuda-graph", action="store_true", help="capture the training step as one CUDA graph; no effect on a CPU")
    parser.add_argument("--threads", type=integer(1, 1024), metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder for the files (default: runs/MODEL-DATA-TIME)")


def run(args: argparse.Namespace) -> int | None:
    """Train; 1 if the loss diverged or a file could not be written."""
    check_dtype(args)
    options = {field.name: getattr(args, field.name) for field in fields(TrainConfig)}
    try:
        for name in ("tqdm", "safetensors.torch", *(["sklearn"] if args.data == "digits" else [])):
            require(name)
        config = TrainConfig(**options | {"out": _new_folder(args)})
        if config.cuda_graph and not config.captured:
            print("fused-preact: --cuda-graph has no effect on the cpu, which has no CUDA graphs", file=sys.stderr)
        result = fit(config)
    except MissingExtraError as error:
        raise UsageError(str(error)) from None
    except (DivergedError, OSError) as error:
        print(f"fused-preact: {error}", file=sys.stderr)
        return 1
    print(f"test accuracy {result.test_accuracy:.2%}; config.json, metrics.csv and model.safetensors are in {result.out}")
    return None


def _new_folder(args: argparse.Namespace) -> Path:
    """--out, made and found writable before anything else is done."""
    out = args.out or Path("runs") / f"{args.model}-{args.data}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        full = any(out.iterdir())
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(f"argument --out: expected a folder that can be made and written, got {str(out)!r}: {error.strerror}") from None
    if full:
        raise UsageError(f"argument --out: expected a new or empty folder, got {str(out)!r}, which has files in it")
    return out
