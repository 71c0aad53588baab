"""Two gloo processes with fused models: what they do with unfused ones."""

import json

import pytest
import torch

from tests.testing.workers import two_processes

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")

WHY = {
    "ddp": "gradients arrive in buckets while backward goes on",
    "ddp-static": "the order of the first backward is kept, and gradients are views of buckets",
    "ddp-unused": "the graph is searched from the result",
    "fsdp-whole": "weights are sharded, and whole in forward and backward only",
    "fsdp-whole-resharded": "the network gives its weights back, and its result is that of a fused convolution",
    "fsdp-units": "units give their weights back after forward",
    "fsdp-units-kept": "units keep their weights; results get hooks and go through torch's Functions",
    "sync": "SyncBatchNorm, fused: statistics of both processes",
    "sync-uneven": "batches of different sizes",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, pytestconfig):
    folder = tmp_path_factory.mktemp("gloo")
    two_processes("tests.convert.distributed_worker", folder, pytestconfig.rootpath)
    return [json.loads((folder / f"outcomes{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.parametrize("name", WHY)
def test_as_unfused(name, outcomes):
    assert [outcome[name] for outcome in outcomes] == ["", ""]
