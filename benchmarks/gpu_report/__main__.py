"""`python -m benchmarks.gpu_report --out DIR`: arguments, and the files that are left behind."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_report import STARTED, parts
from benchmarks.gpu_report.parts import PARTS, Part
from benchmarks.gpu_report.runner import Runner
from benchmarks.gpu_report.table import summary
from fused_preact._files import write_atomically
from fused_preact._text import unknown
from fused_preact.backends import NAMES
from fused_preact.cli.arguments import ArgumentParser, UsageError, device, integer, number

# For the summary, after the last child is killed.
RESERVE = 3.0


def parser() -> ArgumentParser:
    """The options."""
    made = ArgumentParser(
        prog="python -m benchmarks.gpu_report",
        description="Everything about this package that needs a GPU: versions, ceilings, correctness, primitives, training steps, memory.",
        epilog="DIR must be new or empty. It receives rows.jsonl (each result as it was measured), gpu_report.json (all of it), "
        "summary.txt and log.txt. A failure is a row, not the end: the exit code is 0 whenever the report is complete.",
    )
    add = made.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    add("--minutes", type=number(above=True), default=9.0, metavar="M", help="for everything; what finds no time is a row (default: 9)")
    add("--only", type=_parts, metavar="PART,..", help=f"of {', '.join(parts.NAMES)} (default: all but tests and profile)")
    add("--backend", type=_names, default=(), metavar="NAME,..", help="backends to measure (default: every native one that is usable)")
    add("--device", type=device, help="cuda, cuda:N, or cpu, which means --dry-run (default: cuda)")
    add("--dry-run", action="store_true", help="everything with tiny sizes, to see that it runs; on the cpu where there is no GPU")
    add("--compile-whole", action="store_true", help="torch.compile of whole networks too")
    add("--max-autotune", action="store_true", help="torch.compile of units with mode max-autotune too")
    add("--workers", type=integer(1, 64), metavar="N", help="processes where nothing is timed (default: 3 for 4 cores, up to 12)")
    add(
        "--patience",
        type=number(above=True),
        default=60.0,
        metavar="S",
        help="seconds for one row, then its process is killed (default: 60)",
    )
    add("--load", type=Path, metavar="FILE.py", help="run this in every child first; it may register a backend to name with --backend")
    return made


def main(argv: Sequence[str] | None = None, started: float | None = None) -> int:
    """Run the report; 0 when it is complete, 1 when it can't be written, 2 for a usage error, 130 when interrupted (and written so far).

    started: when the budget began, by `time.monotonic`; None: now.
    """
    started = time.monotonic() if started is None else started
    try:
        args = parser().parse_args(argv)
        chosen = _checked(args)
    except UsageError as error:
        print(f"gpu_report: {error}", file=sys.stderr)
        return 2
    options = {
        "device": args.device,
        "dry": args.dry_run,
        "backends": list(args.backend),
        "load": str(args.load.resolve()) if args.load else None,
        "compile_whole": args.compile_whole,
        "max_autotune": args.max_autotune,
        "patience": args.patience,
    }
    runner = Runner(args.out, options, started + 60 * args.minutes - RESERVE, args.workers, _teller(started))
    date = time.strftime("%Y-%m-%d %H:%M:%S %z")
    report: dict[str, Any] = {"date": date, "options": options | {"minutes": args.minutes}, "seconds": {}, "rows": runner.rows}
    before = signal.signal(signal.SIGTERM, _interrupt)
    code = 0
    try:
        for i, part in enumerate(chosen):
            report["seconds"][part.name] = round(runner.run(part, chosen[i + 1 :]), 1)
            _write(args.out, report)
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        code = _unwritten(error)
    finally:
        runner.close()
        signal.signal(signal.SIGTERM, before)
    try:
        print(_write(args.out, report), flush=True)
    except OSError as error:
        code = _unwritten(error)
    return code


def _checked(args: argparse.Namespace) -> list[Part]:
    """The parts to run; refuses what is impossible and makes the folder."""
    args.dry_run = args.dry_run or args.device == "cpu"
    if not args.dry_run and not torch.cuda.is_available():
        raise UsageError("this needs a CUDA GPU and torch sees none; --dry-run tries everything on the cpu, with tiny sizes")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.load and not args.load.is_file():
        raise UsageError(f"argument --load: expected a Python file, got {str(args.load)!r}")
    for name in args.backend:
        if name not in NAMES and not args.load:
            raise UsageError(f"argument --backend: {unknown('backend', name, NAMES)}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        held = sorted(path.name for path in args.out.iterdir())
    except OSError as error:
        raise UsageError(f"argument --out: {error}") from None
    if held:
        raise UsageError(f"argument --out: expected a new or empty folder, and {str(args.out)!r} holds {held[0]!r}")
    return [part for part in PARTS if part.name in args.only] if args.only else [part for part in PARTS if not part.asked]


def _write(out: Path, report: dict[str, Any]) -> str:
    text = summary(report)
    write_atomically(out / "gpu_report.json", lambda path: path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8"))
    write_atomically(out / "summary.txt", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    return text


def _unwritten(error: OSError) -> int:
    print(f"gpu_report: {error}", file=sys.stderr)
    return 1


def _teller(started: float) -> Any:
    return lambda message: print(f"[{time.monotonic() - started:5.0f} s] {message}", file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, text.split(","))))


def _parts(text: str) -> tuple[str, ...]:
    names = _names(text)
    for name in names:
        if name not in parts.NAMES:
            raise argparse.ArgumentTypeError(unknown("part", name, parts.NAMES))
    return names


if __name__ == "__main__":
    sys.exit(main(started=STARTED))
