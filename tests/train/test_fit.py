import csv
import json
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from fused_preact.models import create_model
from fused_preact.train import data, loop
from fused_preact.train.config import TrainConfig
from fused_preact._extras import MissingExtraError
from fused_preact.train.loop import DivergedError, evaluate, fit


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=130, test=40))


@pytest.fixture
def config(tmp_path):
    return TrainConfig(out=tmp_path / "run", model="preact_resnet20", data="synthetic", epochs=1, batch_size=32)


def test_the_loss_falls(config):
    first, *_, last = fit(replace(config, epochs=4, batch_size=16)).epochs
    assert first.train_loss > 2.0
    assert last.train_loss < 1.0
    assert last.train_accuracy > 0.7
    assert last.test_accuracy > 0.5


@pytest.mark.slow
def test_three_epochs_read_handwriting(config):
    assert fit(replace(config, data="digits", epochs=3)).test_accuracy > 0.95


def test_the_files_hold_what_fit_returns(config):
    result = fit(replace(config, epochs=2))
    assert {path.name for path in result.out.iterdir()} == {"config.json", "metrics.csv", "model.safetensors"}
    with open(result.out / "metrics.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "images_per_s"]
    assert [pytest.approx(record, rel=1e-5) for record in result.epochs] == [tuple(map(float, row)) for row in rows]
    assert [record.epoch for record in result.epochs] == [1, 2]
    written = json.loads((result.out / "config.json").read_text())
    assert {"model": "preact_resnet20", "epochs": 2, "lr": 0.1, "num_classes": 10, "torch": torch.__version__}.items() <= written.items()

    model = create_model(config.model, num_classes=10).to(memory_format=torch.channels_last)
    model.load_state_dict(load_file(result.out / "model.safetensors"))
    loss, accuracy = evaluate(model, data.in_order(data.load("synthetic").test, 32), config)
    assert accuracy == result.test_accuracy
    assert loss == pytest.approx(result.epochs[-1].test_loss)


def test_evaluation_uses_running_statistics_and_leaves_them(config):
    torch.manual_seed(0)
    model = create_model(config.model, num_classes=10).to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    split = data.load("synthetic").test
    few, many = (evaluate(model, data.in_order(split, batch_size), config) for batch_size in (7, 40))
    assert few == pytest.approx(many, rel=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_seed_decides_the_weights(config, tmp_path):
    def weights(seed, out):
        return load_file(fit(replace(config, seed=seed, out=tmp_path / out)).out / "model.safetensors")

    first, again, other = weights(0, "a"), weights(0, "b"), weights(1, "c")
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_an_interrupted_run_keeps_the_epochs_that_are_over(config, monkeypatch):
    calls = iter([True, False])

    def evaluate_once(*args):
        if not next(calls):
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(loop, "evaluate", evaluate_once)
    with pytest.raises(KeyboardInterrupt):
        fit(replace(config, epochs=2))
    assert len((config.out / "metrics.csv").read_text().splitlines()) == 2
    assert {path.name for path in config.out.iterdir()} == {"config.json", "metrics.csv"}


def test_a_loss_that_is_not_finite_stops_with_a_sentence(config):
    with pytest.raises(DivergedError, match=r"^training diverged: the loss became (nan|inf); expected a finite number"):
        fit(replace(config, lr=1e20))
    assert {path.name for path in config.out.iterdir()} == {"config.json"}


def test_the_learning_rate_rises_to_lr_and_falls(config):
    trainer = loop.Trainer(torch.nn.Linear(2, 2), replace(config, epochs=4), steps_per_epoch=5)
    rates = []
    for _ in range(20):
        rates.append(trainer.lr)
        trainer.optimizer.step()
        trainer.schedule.step()
    assert max(rates) == pytest.approx(0.1)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-4 < rates[0] < 0.01


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_keep_float32_weights(config, dtype):
    torch.manual_seed(0)
    model = create_model(config.model, num_classes=10).to(memory_format=torch.channels_last)
    before = model.fc.weight.detach().clone()
    trainer = loop.Trainer(model, replace(config, dtype=dtype), steps_per_epoch=4)
    loss, logits = trainer.step(data.load("synthetic").train.take(torch.arange(32)))
    assert logits.dtype == getattr(torch, dtype)
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert loss.isfinite()
    assert trainer.scaler.is_enabled() == (dtype == "float16")
    assert dtype == "float16" or not torch.equal(before, model.fc.weight)


def test_threads_are_set(config):
    before = torch.get_num_threads()
    try:
        fit(replace(config, threads=before + 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("module", ["tqdm", "safetensors.torch"])
def test_a_missing_package_stops_before_anything_is_written(config, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{module.split('.')[0]}.*pip install 'fused-preact\[train\]'"):
        fit(config)
    assert not config.out.exists()
