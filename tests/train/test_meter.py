import math

import pytest
import torch

from fused_preact.train.meter import Meter, Sums
from fused_preact.train.world import World


def test_sums_do_not_depend_on_when_they_are_read():
    generator = torch.Generator().manual_seed(0)
    losses, hits = torch.rand(50, generator=generator), torch.randint(8, (50,), generator=generator)
    results = []
    for every in (1, 7, 50):
        meter, sums = Meter(World()), Sums()
        for step, (loss, hit) in enumerate(zip(losses, hits, strict=True), 1):
            meter.add(loss, hit, 8)
            if step % every == 0 or step == 50:
                for read in meter.read():
                    sums.add(*read)
        results.append(sums)
    assert results[0] == results[1] == results[2]
    assert results[0].mean_loss == pytest.approx(losses.mean().item())
    assert results[0].accuracy == hits.sum().item() / 400


def test_reads_are_step_by_step_so_that_the_first_bad_one_is_known():
    meter = Meter(World())
    for loss in (1.0, math.nan, 2.0):
        meter.add(torch.tensor(loss), torch.tensor(3), 4)
    assert [(n, hit) for n, _, hit in meter.read()] == [(4, 3)] * 3
    assert meter.read() == []
    meter.add(torch.tensor(1.5), torch.tensor(0), 4)
    assert meter.read() == [(4, 6.0, 0)]


def test_sums_begin_anew_and_hand_out_what_they_were():
    sums = Sums(2, 3.0, 1, 0.5)
    assert sums.clear() == Sums(2, 3.0, 1, 0.5)
    assert sums == Sums()
    assert math.isnan(sums.mean_loss)
    assert math.isnan(sums.accuracy)
