"""`fused-preact bench`: time and weigh a fused network against PyTorch's own, in one process."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from fused_preact._files import write_json
from fused_preact._text import unknown
from fused_preact.backends import NAMES, BackendRefusal, use_backend
from fused_preact.bench import data
from fused_preact.bench.agree import Disagreement
from fused_preact.bench.compare import compare
from fused_preact.bench.networks import NoNetwork, factory, fused, image_size, is_own, num_classes
from fused_preact.bench.plot import require_matplotlib, write_plot
from fused_preact.bench.report import table
from fused_preact.bench.variants import BASELINES, CompileError, Config, why_no_compile
from fused_preact.cli.arguments import DTYPES, UsageError, check_dtype, device, file, integer, named, png
from fused_preact.functional.preact_unit import MEMORIES
from fused_preact.models import architecture, list_models

HELP = "time and weigh a training step of a fused network against PyTorch's own"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a comparison."""
    add = parser.add_argument
    network = parser.add_mutually_exclusive_group()
    names = list_models(paper=False)
    network.add_argument(
        "--model", type=named("model", names), default="preact_resnet164", metavar="NAME", help=f"one of {', '.join(names)}"
    )
    network.add_argument(
        "--module",
        type=_factory,
        dest="model",
        default=argparse.SUPPRESS,
        metavar="PACKAGE.MODULE:FACTORY",
        help="any network instead: what FACTORY returns, and what `fused_preact.fuse` makes of it",
    )
    add("--batch-size", type=integer(1, 1_000_000), default=64, metavar="N", help="images a step (default: %(default)s)")
    add(
        "--image-size",
        type=integer(1, 16384),
        metavar="N",
        help="height and width of the images (default: 32 for CIFAR networks and with --module, 224 for others)",
    )
    add("--device", type=device, default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N (default: auto)")
    add("--dtype", type=named("dtype", DTYPES), default="float32", metavar="DTYPE", help="float32, or bfloat16 or float16 by autocast")
    add("--backend", type=named("backend", NAMES), metavar="NAME", help=f"one of {', '.join(NAMES)} (default: the best for each layer)")
    add(
        "--memory",
        type=named("memory mode", MEMORIES),
        default="layer",
        metavar="MODE",
        help="layer, unit or segment (default: %(default)s)",
    )
    add("--against", type=_baselines, default=("eager",), metavar="NAME,..", help="eager, compile or both (default: eager)")
    add("--compile-whole", action="store_true", help="compile the whole network instead of unit by unit (with --module always)")
    add("--data", action="store_true", help="instead: time a batch of augmented images out of memory beside an eager training step of it")
    add("--rounds", type=integer(1), default=10, metavar="N", help="timed steps of each variant (default: %(default)s)")
    add("--threads", type=integer(1, 1024), metavar="N", help="CPU threads (default: torch's choice)")
    add("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="of weights and images (default: %(default)s)")
    add("--json", type=file, metavar="FILE", help="write the report here")
    add("--plot", type=png, metavar="FILE.png", help="draw the report here")


def run(args: argparse.Namespace) -> int | None:
    """Print the table and write the files; 1 if a variant is wrong or breaks."""
    _refuse_impossible(args)
    threads = torch.get_num_threads()
    if args.threads:
        torch.set_num_threads(args.threads)
    config = Config(**{field: getattr(args, field) for field in Config._fields})
    try:
        report = _measure(args, config, tell=lambda message: print(f"{message} ...", file=sys.stderr))
    except BackendRefusal as error:
        raise UsageError(str(error)) from None
    except (Disagreement, CompileError) as error:
        print(f"fused-preact: {error}", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads)
    print(data.table(report) if args.data else table(report))
    try:
        if args.json:
            write_json(args.json, report)
        if args.plot:
            write_plot(report, args.plot)
    except OSError as error:
        print(f"fused-preact: {error}", file=sys.stderr)
        return 1
    return None


def _measure(args: argparse.Namespace, config: Config, tell: Callable[[str], object]) -> dict[str, Any]:
    return data.measure(config, args.rounds, tell) if args.data else compare(config, args.against, args.rounds, tell)


def _refuse_impossible(args: argparse.Namespace) -> None:
    check_dtype(args)
    if args.data:
        _refuse_with_data(args)
    if args.backend:
        try:
            with use_backend(args.backend):
                pass
        except ValueError as error:
            raise UsageError(f"argument --backend: {error}") from None
    if "compile" in args.against and (reason := why_no_compile(args.device)):
        raise UsageError(f"argument --against: {reason}")
    if is_own(args.model):
        _refuse_model(args)
    else:
        _refuse_module(args)
    if args.plot:
        try:
            require_matplotlib()
        except ImportError as error:
            raise UsageError(f"argument --plot: {error}") from None


def _refuse_with_data(args: argparse.Namespace) -> None:
    """What --data has no use for: it times eager PyTorch alone, and images of one size."""
    size = args.image_size or image_size(args.model)
    if size != data.SIZE:
        raise UsageError(f"argument --data: expected a network and images of {data.SIZE}x{data.SIZE}, got {size}x{size}")
    if args.batch_size > data.IMAGES:
        raise UsageError(f"argument --batch-size: expected at most {data.IMAGES} images with --data, got {args.batch_size}")
    for option, unset in (("against", ("eager",)), ("backend", None), ("memory", "layer"), ("compile_whole", False), ("plot", None)):
        if getattr(args, option) != unset:
            name = option.replace("_", "-")
            raise UsageError(f"argument --{name}: expected none with --data, which times a batch and an eager step alone")


def _refuse_model(args: argparse.Namespace) -> None:
    network = architecture(args.model)
    smallest = -(-(args.image_size or network.image_size) // (4 if network.cifar else 32))
    if args.batch_size * smallest**2 < 2:
        raise UsageError(
            "argument --batch-size: expected at least 2 images when the last stage sees 1x1 pixels, got 1: there is no variance"
        )


def _refuse_module(args: argparse.Namespace) -> None:
    if args.memory != "layer":
        raise UsageError(f"argument --memory: expected layer with --module, got {args.memory!r}, which only networks of --model have")
    try:
        fused(args.model, args.memory)
        num_classes(args.model, min(args.batch_size, 2), args.image_size or image_size(args.model))
    except NoNetwork as error:
        raise UsageError(f"argument --module: {error}") from None


def _factory(text: str) -> str:
    # As under `python -m`: a module in the current folder can be imported.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory(text)
    except NoNetwork as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _baselines(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in BASELINES:
            raise argparse.ArgumentTypeError(unknown("variant", name, BASELINES))
    return names
