"""`fused-preact eval`: loss and errors of trained weights on a test set, with one crop or ten."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from fused_preact import data
from fused_preact._extras import MissingExtraError
from fused_preact.cli.arguments import (
    DTYPES,
    UsageError,
    add_model_option,
    check_dtype,
    check_model,
    check_weights,
    device,
    integer,
    named,
    network,
    of_data_dir,
)
from fused_preact.cli.stored import read
from fused_preact.cli.train import add_arguments as add_train_arguments
from fused_preact.data.source import DataError, Source, View
from fused_preact.models import create_model
from fused_preact.train.config import TrainConfig
from fused_preact.train.evaluate import evaluate
from fused_preact.train.summary import TOP5_CLASSES
from fused_preact.train.writer import CHECKPOINT, MODEL, strict

HELP = "loss and errors of a run, or of a file of weights, on its test images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; those of a run's folder are its own unless given."""
    add = parser.add_argument
    add("weights", type=Path, metavar="PATH", help="a folder of `fused-preact train`, or a file that models.load_weights reads")
    add("--model", type=network, metavar="NAME", help="the network (default: the run's)")
    add_model_option(parser, "an option of it, for the resnet networks; may be given several times (default: the run's)")
    add("--data", type=named("data set", list(data.DATASETS)), metavar="NAME", help="the data set (default: the run's)")
    add("--data-dir", type=Path, metavar="DIR", help="where it is (default: the run's)")
    add("--crop", type=integer(8, 4096), metavar="N", help="crop NxN of --data folder, as 224 or 320 (default: 224)")
    add("--resize", type=integer(8, 8192), metavar="N", help="the shorter side before it (default: 256 for 224, 320 for 320)")
    add("--ten-crop", action="store_true", help="average centre, corners and their mirror images instead of the centre alone")
    add("--batch-size", type=integer(1, 1_000_000), default=128, metavar="N", help="images at a time (default: %(default)s)")
    add("--device", type=device, default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N (default: auto)")
    add("--dtype", type=named("dtype", DTYPES), default="float32", metavar="DTYPE", help="float32, or bfloat16 or float16 by autocast")
    add("--workers", type=integer(0, 1024), default=4, metavar="N", help="processes that decode images (default: %(default)s)")
    add("--threads", type=integer(1, 1024), metavar="N", help="CPU threads (default: torch's choice)")
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print the scores."""
    check_dtype(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    stored = _stored(args.weights)
    name, file = _network(args, stored), _file(args.weights)
    try:
        source = _source(args, stored)
        model = create_model(name, num_classes=source.num_classes, **_options(args, stored, name))
        check_weights(model, file, f"{name} with {source.num_classes} classes", "PATH")
        config = TrainConfig(out=Path(), device=args.device, dtype=args.dtype)
        view = View(args.crop, args.resize, args.ten_crop)
        batches = source.test_batches(args.batch_size, view=view)
        scores = evaluate(model.to(args.device, memory_format=torch.channels_last), batches, config)
    except DataError as error:
        raise UsageError(of_data_dir(error)) from None
    except MissingExtraError as error:
        raise UsageError(str(error)) from None
    found = {
        "model": name,
        "images": source.test_images,
        "loss": scores.loss,
        "top1_error": 1 - scores.accuracy,
        "top5_error": 1 - scores.top5,
    }
    print(json.dumps(strict(found), allow_nan=False) if args.json else _sentence(found, source.num_classes))


def _stored(path: Path) -> dict[str, Any]:
    """The config of the run in a folder; empty for a file."""
    try:
        there = path.exists()
    except OSError as error:
        raise UsageError(f"argument PATH: expected the folder of a run or a file of weights, got {str(path)!r}: {error.strerror}") from None
    if not there:
        raise UsageError(f"argument PATH: expected the folder of a run or a file of weights, got {str(path)!r}, which is not there")
    if path.is_file():
        return {}
    return read(path, "PATH", add_train_arguments).as_json()


def _network(args: argparse.Namespace, stored: dict[str, Any]) -> str:
    name = args.model or stored.get("model")
    if name is None:
        raise UsageError("argument --model: expected the name of the network, which a file of weights does not tell")
    return name


def _options(args: argparse.Namespace, stored: dict[str, Any], name: str) -> dict[str, Any]:
    """Those given, or those of the run, if it is its network."""
    options = args.model_options or (stored.get("model_options", {}) if name == stored.get("model") else {})
    check_model(name, "layer", options)
    return options


def _file(path: Path) -> Path:
    """A run's weights at its end, or those of its last checkpoint."""
    if path.is_file():
        return path
    for name in (MODEL, CHECKPOINT):
        if (path / name).exists():
            if name != MODEL:
                print(f"fused-preact: the run in {path} is not at its end; these are the weights of its last checkpoint", file=sys.stderr)
            return path / name
    raise UsageError(f"argument PATH: expected a run with {MODEL} or {CHECKPOINT}, got {str(path)!r}, which has neither yet")


def _source(args: argparse.Namespace, stored: dict[str, Any]) -> Source:
    name = args.data or stored.get("data")
    if name is None:
        raise UsageError("argument --data: expected the name of a data set, which a file of weights does not tell")
    for option in ("crop", "resize", "ten_crop"):
        if getattr(args, option) and name != "folder":
            flag = option.replace("_", "-")
            raise UsageError(f"argument --{flag}: expected --data folder with it, got {name}, whose images are looked at whole")
    crop = args.crop or stored.get("crop_size", 224)
    if args.resize and args.resize < crop:
        raise UsageError(f"argument --resize: expected at least the crop, which is {crop}, got {args.resize}")
    root = args.data_dir or (Path(stored["data_dir"]) if stored.get("data_dir") and name == stored["data"] else None)
    options = {"crop_size": crop, "workers": args.workers} if name == "folder" else {}
    return data.load(name, root, device=args.device, **options)


def _sentence(found: dict[str, Any], classes: int) -> str:
    top5 = f", top-5 error {found['top5_error']:.2%}" if classes > TOP5_CLASSES else ""
    return f"{found['model']}: top-1 error {found['top1_error']:.2%}{top5}, loss {found['loss']:.4f} on {found['images']} test images"
