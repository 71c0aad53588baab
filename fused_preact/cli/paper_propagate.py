"""`fused-preact paper propagate`: the paper's equations (3) to (8), measured on one batch."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from fused_preact._extras import MissingExtraError, require
from fused_preact.cli.arguments import (
    UsageError,
    add_model_option,
    check_model,
    check_weights,
    device,
    file,
    integer,
    named,
    png,
)
from fused_preact.models import list_models
from fused_preact.models.paper import ORDERS
from fused_preact.models.paper_shortcuts import JOINS
from fused_preact.paper.propagate_plot import draw
from fused_preact.paper.propagate_report import (
    CLASSES,
    DATA,
    DTYPES,
    Case,
    Setting,
    companions,
    figure_cases,
    network,
    report,
    table,
    write_json,
)

HELP = "how signal and gradient go through the residual units: equations (3) to (8), measured on one batch"

# Those whose units are options.
_MODELS = sorted(set(list_models()) - set(list_models(paper=False)))
# The order whose f is an identity, as the equations have it.
_MODEL, _ORDER = "resnet110", "full_preact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, what goes through it, and where the findings go."""
    group = parser.add_argument_group("the network")
    add = group.add_argument
    add("--model", type=_model, metavar="NAME", help=f"one of {', '.join(_MODELS)} (default: {_MODEL})")
    add("--shortcut", type=named("shortcut", list(JOINS)), metavar="NAME", help=f"one of {', '.join(JOINS)} (default: identity)")
    add("--activation", type=named("activation", list(ORDERS)), metavar="NAME", help=f"one of {', '.join(ORDERS)} (default: {_ORDER})")
    add_model_option(group, "another option of it, gate_bias=-6, say; may be given several times")
    add("--weights", type=Path, metavar="FILE", help="weights that models.load_weights reads (default: the initialisation)")
    add = parser.add_argument_group("what goes through it").add_argument
    default = Setting()
    add("--data", type=named("data", DATA), default=default.data, metavar="NAME", help=f"{' or '.join(DATA)} (default: %(default)s)")
    add("--batch-size", type=integer(2, 1_000_000), default=default.batch_size, metavar="N", help="images (default: %(default)s)")
    add("--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="of weights, images and dropout (default: 0)")
    add("--dtype", type=named("dtype", DTYPES), default=default.dtype, metavar="DTYPE", help="float32 or float64 (default: %(default)s)")
    add("--device", type=device, default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N (default: auto)")
    add("--threads", type=integer(1, 1024), metavar="N", help="CPU threads (default: torch's choice)")
    add = parser.add_argument_group("what comes out").add_argument
    add("--all-units", action="store_true", help="a row for every unit, instead of four a stage")
    add("--json", type=file, metavar="FILE", help="write everything that was measured")
    add("--plot", type=png, metavar="FILE.png", help="draw it")
    add(
        "--figure",
        type=png,
        metavar="FILE.png",
        help="instead of one network, draw identity, 0.5 scaling, gating and dropout at 110 and 164 layers",
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, and write what is asked for."""
    _refuse_impossible(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    setting = Setting(args.data, args.batch_size, args.seed, args.dtype, args.device)
    cases = figure_cases(args.activation or _ORDER) if args.figure else [_case(args)]
    networks = ((case, network(case, setting)) for case in cases)
    try:
        if args.weights:
            ((case, model),) = networks
            check_weights(model, args.weights, f"{case.model} with {CLASSES} classes and these options", "--weights")
            networks = [(case, model)]
        found = report(networks, setting, weights=str(args.weights) if args.weights else None, tell=_tell)
        if not (args.figure or args.weights):
            found["small"] = companions(cases[0], setting)
    except MissingExtraError as error:
        raise UsageError(str(error)) from None
    _refuse_infinite(found, args)
    print(table(found, all_units=args.all_units))
    if args.json:
        write_json(found, args.json)
    if picture := args.figure or args.plot:
        draw(found, picture)


def _model(text: str) -> str:
    if text in _MODELS:
        return text
    if text in list_models():
        same = text.removeprefix("preact_")
        hint = f"; its units are those of {same} with --activation full_preact" if same in _MODELS else ", which is no network for CIFAR"
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(_MODELS)}, got {text!r}{hint}")
    return named("model", _MODELS)(text)


def _case(args: argparse.Namespace) -> Case:
    chosen = {name: getattr(args, name) for name in ("shortcut", "activation") if getattr(args, name)}
    for name in chosen:
        if name in args.model_options:
            raise UsageError(f"argument --{name}: expected one of --{name} and --model-option {name}=..., got both")
    options: dict[str, Any] = {"shortcut": "identity", "activation": _ORDER} | args.model_options | chosen
    model = args.model or _MODEL
    check_model(model, "layer", options)
    return Case(options["shortcut"], model, options)


def _refuse_impossible(args: argparse.Namespace) -> None:
    if args.figure:
        for option in ("model", "shortcut", "model_options", "weights", "plot"):
            if getattr(args, option):
                name = option.rstrip("s") if option == "model_options" else option
                raise UsageError(f"argument --figure: expected no --{name.replace('_', '-')} with it, got both; its networks are given")
    if args.weights and not args.weights.is_file():
        raise UsageError(f"argument --weights: expected a file of weights, got {str(args.weights)!r}, which is not there")
    if args.figure or args.plot:
        try:
            require("matplotlib")
        except MissingExtraError as error:
            raise UsageError(str(error)) from None


def _refuse_infinite(found: dict[str, Any], args: argparse.Namespace) -> None:
    """What is not finite has no place in JSON or on a logarithmic axis."""
    try:
        json.dumps(found, allow_nan=False)
    except ValueError:
        numbers = "loss, signals and gradients are finite"
        if args.weights:
            sentence = f"argument --weights: expected weights with which {numbers} in {args.dtype}, got {str(args.weights)!r}"
        elif args.dtype == "float32":
            sentence = "argument --dtype: expected float64 with this network, whose signals or gradients overflow it, got 'float32'"
        else:
            options = ", ".join(f"{name}={value}" for name, value in found["networks"][0]["options"].items())
            sentence = f"argument --model-option: expected options with which {numbers}, got {options}"
        raise UsageError(sentence) from None


def _tell(message: str) -> None:
    print(f"fused-preact: {message}", file=sys.stderr)
