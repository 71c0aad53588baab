"""Two processes of a test, which find each other by a path that they are given."""

import subprocess
import sys
from pathlib import Path


def two_processes(module: str, path: Path, root: Path) -> list[str]:
    """What `python -m module RANK path` prints as rank 0 and as rank 1, run side by side from `root`; both must succeed."""
    options = {"cwd": root, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    workers = [subprocess.Popen([sys.executable, "-m", module, str(rank), str(path)], **options) for rank in range(2)]
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, output in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, output
    return outputs
