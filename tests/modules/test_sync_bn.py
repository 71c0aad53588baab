"""SyncBatchNorm as the norm of fused modules: two processes with uneven batches are one process with the whole batch."""

import pytest
import torch

from tests.testing.workers import two_processes


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")
def test_two_gloo_processes_equal_one(tmp_path, pytestconfig):
    for output in two_processes("tests.modules.sync_worker", tmp_path / "rendezvous", pytestconfig.rootpath):
        assert len(output.splitlines()) == 11, output
