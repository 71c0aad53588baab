from pathlib import Path

import pytest
import torch

from fused_preact.train.config import TrainConfig
from fused_preact.train.recipes import resolve
from fused_preact.train.schedule import learning_rate


def rates(config, per_epoch):
    return [learning_rate(config, step, per_epoch) for step in range(config.steps(per_epoch))]


@pytest.mark.parametrize(("epochs", "per_epoch"), [(4, 5), (1, 7), (5, 45), (3, 100)])
def test_one_cycle_is_torchs(epochs, per_epoch):
    config = TrainConfig(out=Path(), epochs=epochs, lr=0.3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, epochs * per_epoch, pct_start=0.2, cycle_momentum=False)
    wanted = []
    for _ in range(epochs * per_epoch):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(config, per_epoch) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_a_run_of_few_steps_learns_too(steps):
    config = TrainConfig(out=Path(), epochs=None, iterations=steps)
    assert 0.09 < max(rates(config, 100)) <= 0.1
    assert min(rates(config, 100)) > 0


def test_the_papers_iterations():
    config = TrainConfig(**resolve("paper-cifar", {"out": Path()}))
    found = rates(config, 390)
    assert len(found) == 64_000
    where = [0] + [step for step in range(1, len(found)) if found[step] != found[step - 1]]
    assert [(step, pytest.approx(found[step])) for step in where] == [(0, 0.01), (400, 0.1), (32_000, 0.01), (48_000, 0.001)]


@pytest.mark.parametrize(
    ("recipe", "per_epoch", "changes"),
    [
        ("released-cifar", 781, {1: 0.1, 81: 0.01, 122: 0.001}),
        ("paper-imagenet", 5004, {1: 0.1, 31: 0.01, 61: 0.001}),
    ],
    ids=["epochs 81 and 122 of the authors' CIFAR code", "every 30 epochs of the authors' ImageNet code"],
)
def test_epochs_whose_first_step_changes_the_rate(recipe, per_epoch, changes):
    config = TrainConfig(**resolve(recipe, {"out": Path()}))
    found = rates(config, per_epoch)
    steps = [0] + [step for step in range(1, len(found)) if found[step] != found[step - 1]]
    assert {step // per_epoch + 1: pytest.approx(found[step]) for step in steps} == changes
    assert all(step % per_epoch == 0 for step in steps)
