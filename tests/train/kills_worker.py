"""Kills a training run at random moments and lets it go on: `python -m tests.train.kills_worker OUT SEED KILLS ARGUMENT...`.

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


def killed(arguments: list[str], seconds: float) -> bool:
    """Whether a run was killed after `seconds`; False if it had ended by itself before."""
    child, deadline = begun(arguments), time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "a run that was not killed failed"
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def run(out: Path, seed: int, kills: int, arguments: list[str]) -> None:
    moments = random.Random(seed)
    out.mkdir()
    arguments = ["train", *arguments, "--out", str(out), "--resume"]
    count = 0
    while count < kills:
        before = (out / "checkpoint.pt").exists()
        if not killed(arguments, moments.uniform(0.05, 2.0)):
            break
        count += 1
        print(f"killed {count}, checkpoint {'kept' if before else 'none before'}", flush=True)
    print(f"kills {count}", flush=True)
    _, status = os.waitpid(begun(arguments), 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
