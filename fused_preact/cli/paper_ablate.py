"""`fused-preact paper ablate`: rows of the paper's Tables 1 to 3 over several seeds, in a table beside the paper's numbers."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from fused_preact._extras import MissingExtraError
from fused_preact._text import unknown
from fused_preact.cli.arguments import DTYPES, UsageError, adder, check_dtype, device, integer, integers, named, number, of_data_dir
from fused_preact.data.source import DataError
from fused_preact.models.paper_rows import ROWS, Row
from fused_preact.paper.ablate import (
    DATASETS,
    PAPER_SEEDS,
    SMALL,
    SMALL_DEPTHS,
    SMALL_ROWS,
    Ablation,
    AblationError,
    Run,
    prepare,
    share,
    train,
    wait,
)
from fused_preact.paper.ablate_report import collect, text, write
from fused_preact.train.checkpoint import CheckpointError
from fused_preact.train.config import OF_THE_MACHINE, TrainConfig
from fused_preact.train.lock import FolderInUse
from fused_preact.train.recipes import RECIPES
from fused_preact.train.world import launched

HELP = "train rows of Tables 1 to 3, and report training loss and test error beside the paper's numbers"

_SEEDS = (0, 1, 2)
# What --paper-setting leaves to choose: it moves the work, not the result.
_FREE = OF_THE_MACHINE | {"cuda_graph"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; what of a run is not given comes from the recipe."""
    which = parser.add_argument_group("which runs")
    rows = which.add_mutually_exclusive_group()
    rows.add_argument("--rows", type=_rows, metavar="ROW,..", help=f"some of {', '.join(ROWS)}; or all")
    rows.add_argument("--table", type=integers(1), metavar="N,..", help="the rows of Table 1, 2 or 3")
    which.add_argument("--seeds", type=_seeds, metavar="N", help="how many (from 0 on), or which, as 0,1,2 (default: 3)")
    which.add_argument("--depth", type=integers(1), metavar="N", help="in place of the rows' own; 20,29: for each row the one that fits")
    kind = which.add_mutually_exclusive_group()
    kind.add_argument("--paper-setting", action="store_true", help="the paper's data, depths, 64k iterations and 5 seeds")
    kind.add_argument("--small", action="store_true", help="a version that two CPU cores finish in minutes: shallow networks on digits")
    _how(parser.add_argument_group("how each learns; the recipe decides what is not given"))
    _where(parser.add_argument_group("where"))


def _how(group: argparse._ArgumentGroup) -> None:
    add = adder(group)
    add("--data", named("data set", DATASETS), f"one of {', '.join(DATASETS)} (default: the row's, cifar10 or cifar100)", "NAME")
    add("--data-dir", Path, "where the data are; nothing is ever downloaded", "DIR")
    add("--recipe", named("recipe", [name for name in RECIPES if name != "paper-imagenet"]), "as of train (default: paper-cifar)", "NAME")
    add("--iterations", integer(1), "the length; milestones and warm-up keep their place in it", "N")
    add("--epochs", integer(1), "the length in times through the training images instead", "N")
    add("--batch-size", integer(2, 1_000_000), "images a step", "N")
    add("--lr", number(above=True), "the learning rate, or the peak of its cycle", "LR")
    add("--warmup-iterations", integer(0), "first steps, at a learning rate of 0.01", "N")
    add("--weight-decay", number(), "L2 penalty", "WD")
    add("--dtype", named("dtype", DTYPES), f"one of {', '.join(DTYPES)}; 16 bits mean autocast with float32 weights", "DTYPE")


def _where(group: argparse._ArgumentGroup) -> None:
    add = adder(group)
    meaning = "folder of the report and of every run, in ROW/seedN; the same command goes on there (default: runs/ablation)"
    group.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/ablation"), help=meaning)
    group.add_argument("--device", type=device, default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N (default: auto)")
    add("--cuda-graph", None, "capture the training step as one CUDA graph; no effect on a CPU")
    add("--threads", integer(1, 1024), "CPU threads of a process (default: torch's choice)", "N")
    add("--checkpoint-every", integer(1), "steps between checkpoints, besides those after every epoch", "N")
    add("--log-every", integer(1), "steps that a line of a run's metrics.jsonl sums up", "N")


def run(args: argparse.Namespace) -> int | None:
    """Train what is left, and report; 130 or 143 if a signal ended it. A loss that diverges is a result, not a failure."""
    world = launched()
    rank = int(os.environ["RANK"]) if world > 1 else 0
    try:
        ablation = _ablation(args)
        runs = ablation.runs()
        _writable(ablation.out)
        prepare(ablation, runs)
        interrupted = _trained(runs, rank, world)
        if interrupted or rank:
            return interrupted
        if not all(run.done for run in runs):
            print("fused-preact: this process is done and waits for the runs of the others", file=sys.stderr)
        wait(runs)
        results = collect(runs)
        write(ablation, results)
    except DataError as error:
        raise UsageError(of_data_dir(error)) from None
    except (AblationError, MissingExtraError, CheckpointError, FolderInUse) as error:
        raise UsageError(str(error)) from None
    print(text(ablation, results))
    print(f"\nfiles: {ablation.out}")
    return None


def _trained(runs: Sequence[Run], rank: int, world: int) -> int | None:
    own = share(runs, rank, world)
    for happened in train(own):
        if isinstance(happened, str):
            left = sum(not run.done for run in own)
            print(f"fused-preact: interrupted by {happened}, {left} of {len(own)} runs are left; the same command goes on", file=sys.stderr)
            # As shells have it.
            return 128 + signal.Signals[happened]
        print(f"run {own.index(happened) + 1} of {len(own)}: {happened.row.id}, seed {happened.seed}", file=sys.stderr)
    return None


def _ablation(args: argparse.Namespace) -> Ablation:
    given = {field.name: getattr(args, field.name) for field in fields(TrainConfig) if hasattr(args, field.name)}
    recipe = given.pop("recipe", None)
    if given.get("epochs") and given.get("iterations"):
        raise UsageError("argument --iterations: expected one of --epochs and --iterations, got both")
    if args.paper_setting:
        others = {"depth": args.depth or None, "seeds": args.seeds, "recipe": recipe} | {k: v for k, v in given.items() if k not in _FREE}
        for name, value in others.items():
            if value is not None:
                got = ",".join(map(str, value)) if isinstance(value, tuple) else value
                raise UsageError(f"argument --{name.replace('_', '-')}: expected none with --paper-setting, which has its own, got {got}")
    given["device"] = _own_device(args.device)
    depths, seeds, rows = args.depth or (), args.seeds or _SEEDS, _chosen(args)
    if args.paper_setting:
        seeds = PAPER_SEEDS
    if args.small:
        # A length of either kind takes the place of its own.
        own = {k: v for k, v in SMALL.items() if k != "iterations" or "epochs" not in given}
        given, depths = own | given, depths or SMALL_DEPTHS
    ablation = Ablation.of(rows, seeds, recipe=recipe or "paper-cifar", depths=depths, small=args.small, **given)
    check_dtype(ablation.settings)
    if ablation.settings.schedule == "one-cycle" and ablation.settings.warmup_iterations:
        raise UsageError("argument --warmup-iterations: expected a recipe of steps with it, got one-cycle, which has none")
    return ablation


def _chosen(args: argparse.Namespace) -> tuple[Row, ...]:
    if args.table and args.table[-1] > 3:
        raise UsageError(f"argument --table: expected 1, 2 or 3, got {args.table[-1]}")
    if not (args.rows or args.table or args.small):
        raise UsageError("argument --rows: expected rows of the tables, --table, or --small, got none of them")
    if args.table:
        return tuple(row for row in ROWS.values() if row.table in args.table)
    return args.rows or tuple(ROWS[name] for name in SMALL_ROWS)


def _rows(names: str) -> tuple[Row, ...]:
    if names == "all":
        return tuple(ROWS.values())
    for name in names.split(","):
        if name not in ROWS:
            raise argparse.ArgumentTypeError(unknown("row", name, ROWS))
    return tuple(ROWS[name] for name in dict.fromkeys(names.split(",")))


def _seeds(value: str) -> tuple[int, ...]:
    """A number alone is how many."""
    if "," not in value:
        return tuple(range(integer(1, 1000)(value)))
    return tuple(dict.fromkeys(map(integer(0, 2**32 - 1), value.split(","))))


def _own_device(name: str) -> str:
    """Each of several processes that torchrun starts has a GPU of its own."""
    if launched() > 1 and name == "cuda":
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return name


def _writable(out: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=next(path for path in (out, *out.absolute().parents) if path.exists())):
            pass
    except OSError as error:
        raise UsageError(f"argument --out: expected a folder that can be made and written, got {str(out)!r}: {error.strerror}") from None
