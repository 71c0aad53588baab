"""A batch of data timed beside the training step that it is for."""

import pytest
import torch

from fused_preact.bench import data
from fused_preact.bench.timing import Quartiles
from fused_preact.bench.variants import Config

CONFIG = Config("preact_resnet20", 4, seed=2)


@pytest.fixture
def measured(monkeypatch):
    """The functions that would have been timed, and the report."""
    timed = {}

    def interleaved(functions, rounds, *, device):
        timed.update(functions)
        return {"step": Quartiles(400.0, 390.0, 420.0), "batch": Quartiles(2.0, 1.5, 2.25)}

    monkeypatch.setattr(data, "interleaved", interleaved)
    monkeypatch.setattr(data, "IMAGES", 10)
    return timed, data.measure(CONFIG, 7)


def test_what_is_timed_is_a_step_and_one_augmented_batch_after_the_other(measured):
    timed, _ = measured
    batches = [timed["batch"]() for _ in range(5)]
    assert {batch.images.shape for batch in batches} == {(4, 3, 32, 32)}
    assert not any(torch.equal(batch.images, batches[0].images) for batch in batches[1:])
    # Of an image moved into the edge some rows or columns are zero: in five batches that is seen.
    assert any((batch.images == 0).all(dim=3).any() for batch in batches)
    assert timed["step"]() is None


def test_the_table_has_both_and_their_ratio(measured):
    _, report = measured
    assert report["share"] == 0.005
    lines = data.table(report).splitlines()
    assert lines[0] == "preact_resnet20: eager training step of 4 images of 32x32, float32, cpu; median of 7 interleaved rounds"
    assert lines[1] == "batch: as many images of 10 held on the device, moved by up to 4 pixels and mirrored at random"
    assert report["machine"]["torch"] in lines[2]
    assert [line.split() for line in lines[-2:]] == [
        ["step", "400.000", "390.000", "..", "420.000"],
        ["batch", "2.000", "1.500", "..", "2.250", "0.50%"],
    ]
