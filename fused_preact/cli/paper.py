"""`fused-preact paper`: the paper's experiments, a subcommand each."""

import argparse

from fused_preact.cli import paper_ablate, paper_propagate

HELP = "the paper's tables trained, its equations measured: ablate, propagate"

COMMANDS = {"ablate": paper_ablate, "propagate": paper_propagate}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands, and the options of each."""
    commands = parser.add_subparsers(dest="experiment", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    for name, module in COMMANDS.items():
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(sub)
        sub.set_defaults(experiment_run=module.run)


def run(args: argparse.Namespace) -> int | None:
    """Run the chosen one; its exit code."""
    return args.experiment_run(args)
