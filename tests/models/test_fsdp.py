"""FSDP2 over units of the package's own networks: two gloo processes learn what one does."""

import json

import pytest
import torch

from tests.testing.workers import two_processes

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")


@pytest.fixture(scope="module")
def differences(tmp_path_factory, pytestconfig):
    folder = tmp_path_factory.mktemp("gloo")
    two_processes("tests.models.fsdp_worker", folder, pytestconfig.rootpath)
    return [json.loads((folder / f"differences{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
@pytest.mark.parametrize("name", ["preact_resnet20", "preact_resnet29"], ids=["blocks", "bottlenecks"])
def test_sharded_units_learn_as_whole_ones(differences, name, memory):
    assert [found[f"{name} {memory}"] for found in differences] == [pytest.approx(0.0, abs=1e-12)] * 2
