"""SyncBatchNorm as the norm of fused modules: two processes with uneven batches are one process with the whole batch."""

import subprocess
import sys

import pytest
import torch


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")
def test_two_gloo_processes_equal_one(tmp_path, pytestconfig):
    command = [sys.executable, "-m", "tests.modules.sync_worker"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "rendezvous")],
            cwd=pytestconfig.rootpath,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, output in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, output
        assert len(output.splitlines()) == 11, output
