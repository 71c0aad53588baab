"""Runs that go on with other options than they began with, or from files that are not theirs."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from fused_preact import data
from fused_preact.models import create_model
from fused_preact.train import checkpoint
from fused_preact.train.checkpoint import CheckpointError
from fused_preact.train.config import TrainConfig
from fused_preact.train.loop import fit
from fused_preact.train.trainer import Trainer
from fused_preact.train.writer import CHECKPOINT, MODEL


@pytest.fixture(autouse=True)
def small_data(monkeypatch, no_drawing):
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=130, test=40))


@pytest.fixture
def config(tmp_path):
    return TrainConfig(out=tmp_path / "run", model="preact_resnet20", data="synthetic", epochs=1, batch_size=32, log_every=3)


class Stopped(Exception):
    """Stands for a kill: nothing of the run's own handles it."""


def test_a_run_that_goes_on_with_other_options_learns_by_them(config):
    """torch's own load_state_dict would have put the old ones back, in silence."""
    fit(config)
    momenta = torch.load(config.out / CHECKPOINT, weights_only=True)["optimizer"]["state"]
    more = replace(config, epochs=2, momentum=0.5, nesterov=False, weight_decay=0.25)
    fit(more, resume=True)
    (group,) = torch.load(config.out / CHECKPOINT, weights_only=True)["optimizer"]["param_groups"]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.5, False, 0.25)
    assert len(momenta) == len(group["params"])


def test_momenta_find_their_parameters_in_other_groups(config):
    """With `decay` of convolutions alone, the parameters have another order."""
    fit(config)
    saved = torch.load(config.out / CHECKPOINT, weights_only=True)
    momenta = [state["momentum_buffer"] for state in saved["optimizer"]["state"].values()]
    model = create_model(config.model, num_classes=10)
    trainer = Trainer(model, replace(config, decay="conv"))
    checkpoint.unpack(saved, trainer, saved["per_epoch"])
    found = [trainer.optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(found, momenta, strict=True))
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [config.weight_decay, 0.0]


def test_a_scaler_begins_anew_where_there_was_none(config):
    fit(config)
    saved = torch.load(config.out / CHECKPOINT, weights_only=True)
    trainer = Trainer(create_model(config.model, num_classes=10), replace(config, dtype="float16"))
    checkpoint.unpack(saved, trainer, saved["per_epoch"])
    assert trainer.scaler.is_enabled()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda saved: saved.pop("per_epoch"), "with other contents: KeyError: 'per_epoch'"),
        (lambda saved: saved["history"].update(steps=[(1, 2)]), "with other contents: TypeError"),
        (lambda saved: saved["sums"].update(epoch={"more": 1}), "with other contents: TypeError"),
        (
            lambda saved: saved["model"].pop("fc.bias"),
            "expected a checkpoint of preact_resnet20 with as many classes as the data, got one of",
        ),
    ],
    ids=["no epochs", "short records", "other sums", "another network"],
)
def test_a_checkpoint_of_something_else_is_refused_and_nothing_is_written(config, spoil, words):
    fit(config)
    saved = torch.load(config.out / CHECKPOINT, weights_only=True)
    spoil(saved)
    torch.save(saved, config.out / CHECKPOINT)
    before = {path: path.read_bytes() for path in config.out.iterdir()}
    with pytest.raises(CheckpointError, match=words):
        fit(replace(config, epochs=2), resume=True)
    assert {path: path.read_bytes() for path in config.out.iterdir()} == before


def killed(self, batch):
    raise Stopped


def test_weights_of_an_end_go_when_the_run_goes_on(config, monkeypatch):
    """Else `eval` would take them for those of the longer run."""
    fit(config)
    assert (config.out / MODEL).exists()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(Stopped):
            fit(replace(config, epochs=2), resume=True)
    assert not (config.out / MODEL).exists()


def test_an_epoch_that_an_end_cut_short_has_one_record_when_the_run_goes_on(config, tmp_path):
    steps = replace(config, epochs=None, schedule="steps", lr=0.05)
    whole = fit(replace(steps, iterations=8, out=tmp_path / "whole"))
    fit(replace(steps, iterations=6))
    result = fit(replace(steps, iterations=8), resume=True)
    ours, theirs = (load_file(run.out / MODEL) for run in (result, whole))
    assert [(record.epoch, record.step) for record in result.history.epochs] == [(1, 4), (2, 8)]
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert result.history.epochs[-1][:8] == pytest.approx(whole.history.epochs[-1][:8])
