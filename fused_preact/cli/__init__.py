"""The command line: `fused-preact {train, bench, env}`.

Exit codes: 0 done, 1 the command ran and failed, 2 what was asked for is impossible (one sentence on stderr, nothing written).
"""

import sys
from collections.abc import Sequence

from fused_preact.cli import bench, env, train
from fused_preact.cli.arguments import ArgumentParser, UsageError

COMMANDS = {"train": train, "bench": bench, "env": env}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` (default: the process's) and run the command; returns the exit code."""
    parser = ArgumentParser(prog="fused-preact", description="Fused BatchNorm -> ReLU -> Conv2d for training deep pre-activation networks.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    for name, module in COMMANDS.items():
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    try:
        args = parser.parse_args(argv)
        return args.run(args) or 0
    except UsageError as error:
        print(f"fused-preact: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fused-preact: interrupted", file=sys.stderr)
        return 130
