"""`fused-preact train`: learn a data set, and leave the weights, the metrics and checkpoints in a folder."""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fused_preact._extras import MissingExtraError, require
from fused_preact.bench.variants import CompileError, why_no_compile
from fused_preact.cli.arguments import (
    DTYPES,
    Collect,
    UsageError,
    adder,
    assignment,
    check_dtype,
    check_model,
    device,
    integer,
    integers,
    named,
    network,
    number,
    of_data_dir,
)
from fused_preact.cli.stored import read
from fused_preact.data import DATASETS
from fused_preact.data.source import DataError
from fused_preact.functional.preact_unit import MEMORIES
from fused_preact.models import list_models
from fused_preact.train.checkpoint import CheckpointError
from fused_preact.train.config import TrainConfig, differences
from fused_preact.train.lock import FolderInUse
from fused_preact.train.loop import NEEDED, fit
from fused_preact.train.meter import DivergedError
from fused_preact.train.recipes import RECIPES, describe, resolve
from fused_preact.train.summary import summary
from fused_preact.train.world import World, joined, launched, lost
from fused_preact.train.writer import CHECKPOINT, CONFIG

HELP = "train a network, in one process or in several that torchrun starts"

SCALES = ("aspect", "shorter-side")
# 128 and the number of the signal, as shells have it.
_EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a training run; what is not given comes from the recipe, or with --resume from the folder."""
    _what(parser.add_argument_group("what to learn"))
    _how(parser.add_argument_group("how to learn; the recipe decides what is not given"))
    _where(parser.add_argument_group("where, and how fast"))
    _files(parser.add_argument_group("files"))


def _what(group: argparse._ArgumentGroup) -> None:
    add, default = adder(group), TrainConfig(out=Path())
    add("--model", network, f"one of {', '.join(list_models())} (default: {default.model})", "NAME")
    options = "an option of it, for the resnet networks; shortcut=dropout, say, or activation=full_preact; may be given several times"
    add("--model-option", assignment, options, "NAME=VALUE", action=Collect, dest="model_options")
    add("--data", named("data set", list(DATASETS)), f"one of {', '.join(DATASETS)} (default: the recipe's, or {default.data})", "NAME")
    add("--data-dir", Path, "where the data are; nothing is ever downloaded", "DIR")
    add("--crop-size", integer(8, 4096), f"height and width of images of --data folder (default: {default.crop_size})", "N")
    add(
        "--scale", named("scale augmentation", SCALES), "of images of --data folder: aspect (area and aspect ratio) or shorter-side", "NAME"
    )
    add("--lighting", None, "add PCA colour noise to images of --data folder")


def _how(group: argparse._ArgumentGroup) -> None:
    add = adder(group)
    add("--recipe", named("recipe", list(RECIPES)), f"one of {', '.join(RECIPES)} (default: one-cycle)", "NAME")
    add("--print-recipe", None, "say what the run would be, and stop")
    add("--epochs", integer(1), "times through the training images", "N")
    add("--iterations", integer(1), "the length in steps instead", "N")
    add("--batch-size", integer(2, 1_000_000), "images a step, of all processes together", "N")
    add("--schedule", named("schedule", ("one-cycle", "steps")), "of the learning rate: one-cycle or steps", "NAME")
    add("--lr", number(above=True), "the learning rate, or the peak of its cycle", "LR")
    add("--milestones", integers(1), "where it becomes a tenth, in epochs or iterations, as the length is; `none`: nowhere", "N,..")
    add("--warmup-iterations", integer(0), "first steps, which take --warmup-lr", "N")
    add("--warmup-lr", number(above=True), "their learning rate", "LR")
    add("--momentum", number(below=1.0), "of SGD", "M")
    group.add_argument("--nesterov", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help="whether it is Nesterov's")
    add("--weight-decay", number(), "L2 penalty", "WD")
    add("--decay", named("decay", ("all", "conv")), "on what: all parameters, or the weights of convolutions (conv)", "NAME")
    add("--seed", integer(0, 2**32 - 1), "of the weights and of the order and the augmentation of images (default: 0)", "N")


def _where(group: argparse._ArgumentGroup) -> None:
    add, default = adder(group), TrainConfig(out=Path())
    group.add_argument("--device", type=device, default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N (default: auto)")
    add("--dtype", named("dtype", DTYPES), f"one of {', '.join(DTYPES)}; 16 bits mean autocast with float32 weights", "DTYPE")
    add("--memory", named("memory mode", MEMORIES), f"what forward keeps for backward: one of {', '.join(MEMORIES)}", "MODE")
    add("--sync-bn", None, "share the statistics of a batch between processes")
    add("--compile", None, "let torch.compile have every unit")
    add("--cuda-graph", None, "capture the training step as one CUDA graph; no effect on a CPU")
    add("--threads", integer(1, 1024), "CPU threads (default: torch's choice)", "N")
    add("--workers", integer(0, 1024), f"processes that decode images of --data folder (default: {default.workers})", "N")


def _files(group: argparse._ArgumentGroup) -> None:
    add, default = adder(group), TrainConfig(out=Path())
    group.add_argument("--out", type=Path, metavar="DIR", help="a new folder for the files (default: runs/MODEL-DATA-TIME)")
    group.add_argument("--resume", action="store_true", help="go on with the run in --out, from its last checkpoint")
    group.add_argument("--accept-changes", action="store_true", help="go on even if options differ from those that the run began with")
    group.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    add("--checkpoint-every", integer(1), "steps between checkpoints (default: one after every epoch, which there are besides)", "N")
    add("--log-every", integer(1), f"steps that a line of metrics.jsonl sums up (default: {default.log_every})", "N")


def run(args: argparse.Namespace) -> int | None:
    """Train; 1 if the loss diverged or a file could not be written, 130 or 143 if a signal ended it."""
    if getattr(args, "print_recipe", False):
        print(describe(_config(args, Path())))
        return None
    try:
        for name in NEEDED:
            require(name)
        with joined(args.device) as world:
            return _train(args, world)
    except DataError as error:
        raise UsageError(of_data_dir(error)) from None
    except (MissingExtraError, CheckpointError, FolderInUse) as error:
        raise UsageError(str(error)) from None
    except CompileError as error:
        print(f"fused-preact: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not lost(error):
            raise
        first = str(error).partition("\n")[0]
        print(f"fused-preact: another process of the run ended before this one: {first}", file=sys.stderr)
        return 1


def _train(args: argparse.Namespace, world: World) -> int | None:
    config = replace(_agreed(args, world), device=world.device)
    if world.first:
        for note in _notes(config, world):
            print(f"fused-preact: {note}", file=sys.stderr)
    try:
        result = fit(config, resume=args.resume, overwrite=args.overwrite, world=world)
    except DivergedError as error:
        # Every process knows.
        if world.first:
            print(f"fused-preact: {error}", file=sys.stderr)
        return 1
    except DataError as error:
        # Of files that only this process reads; what all of them read, the first one explains.
        if not world.first:
            print(f"fused-preact: process {world.shard.rank}: {of_data_dir(error)}", file=sys.stderr)
        raise
    except OSError as error:
        kept = config.out / CHECKPOINT
        print(f"fused-preact: {error}" + (f"; the last good checkpoint is {kept}" if kept.exists() else ""), file=sys.stderr)
        return 1
    if world.first:
        print(summary(json.loads((config.out / CONFIG).read_text(encoding="utf-8")), result))
    return _EXIT_CODES[result.interrupted] if result.interrupted else None


def _agreed(args: argparse.Namespace, world: World) -> TrainConfig:
    """The config that the first process finds right, in every process; else its UsageError, which the first alone reports."""
    found: TrainConfig | Exception | None = None
    if world.first:
        try:
            found = _prepared(args)
        except (UsageError, OSError) as error:
            # Whatever it is: the others wait to be told.
            found = error
    found = world.told(found)
    if isinstance(found, Exception):
        raise found
    return found


def _prepared(args: argparse.Namespace) -> TrainConfig:
    """The config, after everything that can be wrong with it or with its folder."""
    for option in ("resume", "overwrite"):
        if getattr(args, option) and args.out is None:
            raise UsageError(f"argument --{option}: expected --out too, which names the folder of the run")
    if args.resume and args.overwrite:
        raise UsageError("argument --overwrite: expected one of --resume and --overwrite, got both")
    try:
        goes_on = args.resume and (args.out / CONFIG).exists()
    except OSError as error:
        raise UsageError(f"argument --out: expected the folder of a run, got {str(args.out)!r}: {error.strerror}") from None
    if goes_on:
        config = _resumed(args)
    else:
        config = _config(args, args.out or Path())
        if args.out is None:
            config = replace(config, out=Path("runs") / f"{config.model}-{config.data}-{time.strftime('%Y%m%d-%H%M%S')}")
    _refuse_impossible(config)
    _folder(config.out, args)
    return config


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {field.name: getattr(args, field.name) for field in fields(TrainConfig) if hasattr(args, field.name)}


def _config(args: argparse.Namespace, out: Path) -> TrainConfig:
    given = _given(args)
    _refuse_two_lengths(given)
    return TrainConfig(**resolve(given.get("recipe", "one-cycle"), given) | {"out": out})


def _refuse_two_lengths(given: dict[str, Any]) -> None:
    if given.get("epochs") and given.get("iterations"):
        raise UsageError("argument --iterations: expected one of --epochs and --iterations, got both")


def _resumed(args: argparse.Namespace) -> TrainConfig:
    """The config of the run in --out with what may change; raises UsageError for what may not, unless --accept-changes says so."""
    stored = read(args.out, "--resume", add_arguments)
    given = _given(args) | {"out": args.out}
    changes = resolve(given["recipe"], given) if "recipe" in given else given
    _refuse_two_lengths(given)
    for unit, other in (("epochs", "iterations"), ("iterations", "epochs")):
        if given.get(unit):
            changes = changes | {other: None}
    wanted = replace(stored, **changes)
    if (differing := differences(stored, wanted)) and not args.accept_changes:
        raise UsageError(
            f"argument --resume: expected the options that the run in {str(args.out)!r} began with, got others: {'; '.join(differing)}; "
            "--accept-changes goes on with them"
        )
    return wanted


def _refuse_impossible(config: TrainConfig) -> None:
    check_dtype(config)
    check_model(config.model, config.memory, config.model_options)
    processes = launched()
    if config.batch_size % processes:
        raise UsageError(f"argument --batch-size: expected a multiple of the {processes} processes, got {config.batch_size}")
    if config.captured and processes > 1:
        raise UsageError("argument --cuda-graph: expected one process, got several: a captured step can't wait for the others")
    if config.compile and (reason := why_no_compile(config.device)):
        raise UsageError(f"argument --compile: {reason}")
    if config.compile and config.memory == "segment":
        raise UsageError("argument --compile: expected --memory layer or unit, got segment, whose units torch.compile does not see")
    if config.schedule == "one-cycle" and (config.milestones or config.warmup_iterations):
        name = "milestones" if config.milestones else "warmup-iterations"
        raise UsageError(f"argument --{name}: expected --schedule steps with it, got one-cycle, which has none")
    if config.nesterov and not config.momentum:
        raise UsageError("argument --nesterov: expected a momentum above 0 with it, got 0; --no-nesterov leaves it out")


def _folder(out: Path, args: argparse.Namespace) -> None:
    """Find that `out` can be made or written; refuse files in it unless the options allow for them. Nothing is made yet."""
    if args.resume and not out.is_dir():
        raise UsageError(f"argument --resume: expected the folder of a run, got {str(out)!r}, which is not there")
    try:
        full = out.exists() and any(not path.name.startswith(".") for path in out.iterdir())
        with tempfile.TemporaryFile(dir=next(path for path in (out, *out.absolute().parents) if path.exists())):
            pass
    except OSError as error:
        raise UsageError(f"argument --out: expected a folder that can be made and written, got {str(out)!r}: {error.strerror}") from None
    if args.resume and full and not (out / CONFIG).exists():
        raise UsageError(f"argument --resume: expected the folder of a run, got {str(out)!r}, which has files but no {CONFIG}")
    if full and not args.resume and not args.overwrite:
        raise UsageError(
            f"argument --out: expected a new or empty folder, got {str(out)!r}, which has files in it; "
            "--resume goes on with a run, --overwrite replaces it"
        )


def _notes(config: TrainConfig, world: World) -> list[str]:
    """What was asked for and has no effect here."""
    notes = []
    if config.cuda_graph and not config.captured:
        notes.append("--cuda-graph has no effect on the cpu, which has no CUDA graphs")
    if config.sync_bn and world.alone:
        notes.append("--sync-bn has no effect in one process")
    return notes
