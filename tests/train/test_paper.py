"""Training the paper's networks: every row of its tables, and runs that go on."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from fused_preact import data
from fused_preact.data.source import Batch
from fused_preact.models import create_model
from fused_preact.models.paper_rows import ROWS
from fused_preact.train import checkpoint, fit
from fused_preact.train.checkpoint import State
from fused_preact.train.config import TrainConfig
from fused_preact.train.trainer import Trainer
from fused_preact.train.writer import CHECKPOINT, MODEL

# Shallow networks of the same units.
SHALLOW = {"resnet110": "resnet20", "resnet164": "resnet29", "resnet1001": "resnet29"}


def trainer(config, num_classes):
    model = create_model(config.model, num_classes=num_classes, **config.model_options)
    return Trainer(model.to(memory_format=torch.channels_last), config)


def batches(count, num_classes):
    for _ in range(count):
        images = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
        yield Batch(images, torch.randint(num_classes, (4,)))


@pytest.mark.parametrize("depth", ["shallow", pytest.param("the paper's", marks=pytest.mark.slow)])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_row_trains_and_reloads(row, depth, tmp_path):
    """20 steps of finite loss; from the checkpoint a new network with the same bits in its weights, statistics and logits."""
    classes = {"cifar10": 10, "cifar100": 100}[row.data]
    model = SHALLOW[row.model] if depth == "shallow" else row.model
    config = TrainConfig(out=tmp_path, model=model, model_options=dict(row.options), lr=0.01)
    learner = trainer(config, classes)
    begin = {key: value.clone() for key, value in learner.model.state_dict().items()}
    losses = torch.stack([learner.step(batch)[0] for batch in batches(20, classes)])
    assert losses.isfinite().all()
    assert not any(torch.equal(p, begin[name]) for name, p in learner.model.named_parameters() if name.endswith("conv1.weight"))
    torch.save(checkpoint.pack(config, State(step=20), learner, 20), tmp_path / CHECKPOINT)

    saved = checkpoint.read(tmp_path / CHECKPOINT)
    again = trainer(TrainConfig.from_json(saved["config"]), classes)
    assert checkpoint.unpack(saved, again, 20).step == 20
    state = learner.model.state_dict()
    assert again.model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in again.model.state_dict().items())
    (batch,) = batches(1, classes)
    assert torch.equal(again.model.eval()(batch.images), learner.model.eval()(batch.images))


def test_the_table_has_what_the_paper_prints():
    """Rows of each table, those that failed, and what stands in several tables, once each."""
    assert {table: sum(row.table == table for row in ROWS.values()) for table in (1, 2, 3)} == {1: 11, 2: 10, 3: 12}
    assert sum(row.error is None for row in ROWS.values()) == 4
    seen = {}
    for row in ROWS.values():
        options = {"shortcut": "identity", **row.options}
        assert seen.setdefault((row.data, row.model, tuple(sorted(options.items()))), row.error) == row.error


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=40, test=20))
    options = {"shortcut": "dropout", "dropout": 0.5}
    return TrainConfig(out=tmp_path / "run", model="resnet20", model_options=options, data="synthetic", epochs=2, batch_size=8)


def weights(result):
    return torch.load(result.out / CHECKPOINT, weights_only=True)["model"]


def test_dropout_goes_on_where_it_was(config, tmp_path, monkeypatch):
    """Its masks are a function of the seed and the step: a run that was killed ends with the same bits."""
    whole = fit(replace(config, out=tmp_path / "whole"))

    class Killed(Exception):
        pass

    steps, step = [], Trainer.step

    def killed(self, batch):
        steps.append(batch)
        if len(steps) == 8:
            raise Killed
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(Killed):
            fit(config)
    resumed = fit(config, resume=True)
    wanted = weights(whole)
    assert all(torch.equal(value, wanted[key]) for key, value in weights(resumed).items())


def test_masks_differ_between_steps(config, monkeypatch):
    drawn, step = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, batch: (drawn.append(torch.rand(()).item()), step(self, batch))[1])
    fit(replace(config, epochs=1))
    assert len(set(drawn)) == len(drawn) == 5


def test_the_weights_at_the_end_are_those_of_a_network_with_the_same_options(config):
    load_file = pytest.importorskip("safetensors.torch", reason="needs safetensors").load_file
    result = fit(
        replace(config, epochs=1, model_options={"shortcut": "exclusive_gating", "gate_bias": -3, "activation": "relu_only_preact"})
    )
    model = create_model("resnet20", shortcut="exclusive_gating", activation="relu_only_preact")
    model.load_state_dict(load_file(result.out / MODEL))
    assert model.layer1[0].join.gate.bias.mean().item() == pytest.approx(-3, abs=0.2)
