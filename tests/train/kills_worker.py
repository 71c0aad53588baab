"""Kills a training run at random moments and lets it go on: `python -m tests.train.kills_worker OUT SEED KILLS SPAN ARGUMENT...`.

Started by test_kills.py. Runs are forks of this process, which has imported everything and computed nothing: so a run begins at once,
and no thread is lost.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from fused_preact.cli import main


def begun(arguments: list[str]) -> int:
    """A child that trains; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = main(arguments)
        finally:
            os._exit(code)
    return child


def killed(arguments: list[str], config: Path, seconds: float) -> bool:
    """Whether a run was killed `seconds` after it wrote its config, when it begins to train; False if it had ended by itself before.

    A negative number of seconds counts from the beginning of the process.
    """
    before, child, begin = written(config), begun(arguments), time.monotonic() if seconds < 0 else None
    while begin is None or time.monotonic() < begin + abs(seconds):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "a run that was not killed failed"
            return False
        if begin is None and written(config) != before:
            begin = time.monotonic()
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def written(path: Path) -> int:
    """When, or 0."""
    return path.stat().st_mtime_ns if path.exists() else 0


def run(out: Path, seed: int, kills: int, span: float, arguments: list[str]) -> None:
    """Kill the run `kills` times within `span` seconds of its training, and every fourth time within as much of its beginning."""
    moments = random.Random(seed)
    out.mkdir()
    arguments = ["train", *arguments, "--out", str(out), "--resume"]
    for kill in range(kills):
        moment = moments.uniform(0.0, span)
        if not killed(arguments, out / "config.json", -moment if kill % 4 == 3 else moment):
            print(f"ended before kill {kill + 1}")
            break
        print(f"killed, {'a' if (out / 'checkpoint.pt').exists() else 'no'} checkpoint", flush=True)
    _, status = os.waitpid(begun(arguments), 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:])
