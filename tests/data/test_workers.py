"""Processes that decode images end when they should, and only then."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fused_preact.data.folder import folder
from tests.data.pictures import ramp, save

REPOSITORY = Path(__file__).parents[2]
# Says which its processes are, and goes on for ever.
ENDLESS = """
import itertools, multiprocessing, sys
from fused_preact.data.folder import folder
if __name__ == "__main__":
    for epoch in itertools.count():
        for _ in folder(sys.argv[1], crop_size=8, workers=2).train_batches(1, seed=0, epoch=epoch):
            if epoch == 0:
                print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""
# Hears of signals and goes on to its end.
SOME = """
import signal, sys
from fused_preact.data.folder import folder
if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)
    print("ready", flush=True)
    source, images = folder(sys.argv[1], crop_size=8, workers=2), 0
    for epoch in range(4):
        images += sum(len(batch.labels) for batch in source.train_batches(4, seed=0, epoch=epoch))
    print(images, "images", flush=True)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    top = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for number in range(40):
            save(ramp(40, 30), top / split / "ant" / f"{number}.png")
    return top


def running(pid):
    try:
        # Of an ended process whose parent has not yet asked for it there is a Z.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="sends signals to a group of processes")
def test_signals_to_all_processes_leave_the_workers_to_the_run(root, tmp_path):
    """Whenever they come: while the server starts, while workers start, while they decode."""
    script = tmp_path / "some.py"
    script.write_text(SOME)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, script, root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True) as process:
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.killpg(process.pid, number)
            time.sleep(0.02)
        # Not how it ended: Python takes its handlers away before it has.
        assert process.stdout.read() == "160 images\n"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_end_with_a_process_that_is_killed(root, tmp_path):
    """They can't ask for their parent: that is a server which in turn waits for their end."""
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, script, root], stdout=subprocess.PIPE, text=True, env=environment) as process:
        workers = process.stdout.readline().split()
        process.kill()
    try:
        assert len(workers) == 2
        until = time.monotonic() + 15
        while any(map(running, workers)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not any(map(running, workers))
    finally:
        for worker in filter(running, workers):
            os.kill(int(worker), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_sentence(root):
    batches = folder(root, crop_size=8, workers=2).train_batches(1, seed=0, epoch=0)
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match=r"^a process that decodes images was ended, as systems do when memory runs out: .*$"):
        list(batches)


@pytest.mark.filterwarnings("error")
def test_more_workers_than_cores_are_not_warned_of(root):
    source = folder(root, crop_size=8, workers=len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else 64)
    assert len(list(source.test_batches(20))) == 2
