"""The command line: `fused-preact {train, eval, bench, paper, env}`.

Exit codes: 0 done, 1 the command ran and failed, 2 what was asked for is impossible (one sentence on stderr, nothing written).
"""

import os
import sys
from collections.abc import Sequence

from fused_preact.cli import bench, env, evaluate, paper, train
from fused_preact.cli.arguments import ArgumentParser, UsageError

# torch has a class for this on a GPU only.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")

COMMANDS = {"train": train, "eval": evaluate, "bench": bench, "paper": paper, "env": env}


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
        code = args.run(args) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except UsageError as error:
        return _fail(2, str(error))
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is left in the buffer must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(1, str(error))
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        return _fail(1, "there is not enough memory for this; a smaller --batch-size, or --memory unit or segment, needs less")
    return code


def _fail(code: int, sentence: str) -> int:
    # Of processes that torchrun started, all say the same of what was asked for.
    if code == 2 and os.environ.get("RANK", "0") != "0":
        return code
    print(f"fused-preact: {sentence}", file=sys.stderr)
    return code
