"""The project's own tests of each backend on this device: the shared cases that every backend passes."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.child import Job

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tests/ops", "tests/functional", "tests/modules")
COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped)\b")
# It ends when the part's time is up.
PATIENCE = 1e6


def run(job: Job) -> None:
    for name in job.backends():
        job.measure(f"tests {name}", lambda name=name: _pytest(job, name), backend=name, patience=PATIENCE)


def _pytest(job: Job, backend: str) -> dict[str, Any]:
    where = ("tests/ops/test_bn.py",) if job.dry else FOLDERS
    chosen = f"{backend} and merge" if job.dry else backend
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "-m", "not slow", "-k", chosen, *where]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=max(1.0, job.left() - 1))
    except subprocess.TimeoutExpired as cut:
        printed = cut.stdout or b""
        return {"error": "killed: no time left", "last": printed.decode(errors="replace").splitlines()[-1:]}
    print(done.stdout)
    counts = {kind: int(number) for number, kind in COUNT.findall(done.stdout.splitlines()[-1])} if done.stdout.strip() else {}
    if done.returncode == 0:
        return counts
    first = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), done.stderr.strip()[-200:])
    return counts | {"error": f"pytest ended with {done.returncode}, the first: {first[:200]}"}
