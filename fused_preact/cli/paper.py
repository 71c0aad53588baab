"""`fused-preact paper`: what the paper says of its networks, run here."""

import argparse

from fused_preact.cli import paper_propagate

HELP = "the paper's claims, measured: propagate"

SUBCOMMANDS = {"propagate": paper_propagate}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A subcommand for each module, with its own options."""
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="{" + ",".join(SUBCOMMANDS) + "}")
    for name, module in SUBCOMMANDS.items():
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(sub)
        sub.set_defaults(run_subcommand=module.run)


def run(args: argparse.Namespace) -> int | None:
    """Run the subcommand; its exit code."""
    return args.run_subcommand(args)
