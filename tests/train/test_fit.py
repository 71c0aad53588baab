import csv
import json
import math
import os
import signal
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fused_preact import data
from fused_preact._extras import MissingExtraError
from fused_preact.convert import is_fused
from fused_preact.data.source import View
from fused_preact.models import create_model
from fused_preact.train import checkpoint, loop
from fused_preact.train.checkpoint import CheckpointError
from fused_preact.train.config import TrainConfig
from fused_preact.train.evaluate import Scores, evaluate
from fused_preact.train.lock import FolderInUse, locked
from fused_preact.train.loop import fit
from fused_preact.train.meter import DivergedError
from fused_preact.train.record import EpochRecord
from fused_preact.train.trainer import Trainer
from fused_preact.train.world import World
from fused_preact.train.writer import CHECKPOINT, CONFIG, CSV, CURVES, EVENTS, JSONL, MODEL

FILES = {CONFIG, CSV, JSONL, EVENTS, CHECKPOINT, MODEL, CURVES, ".lock"}


@pytest.fixture(autouse=True)
def small_data(monkeypatch, no_drawing):
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=130, test=40))


@pytest.fixture
def config(tmp_path):
    return TrainConfig(out=tmp_path / "run", model="preact_resnet20", data="synthetic", epochs=1, batch_size=32, log_every=3)


_WHOLE = []


@pytest.fixture
def whole(config, tmp_path_factory):
    """A run of two epochs that nothing disturbs, done once."""
    if not _WHOLE:
        _WHOLE.append(fit(replace(config, epochs=2, out=tmp_path_factory.mktemp("whole") / "run")))
    return _WHOLE[0]


def names(folder):
    return {path.name for path in folder.iterdir()}


def weights(folder):
    return load_file(folder / MODEL)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_the_loss_falls(config):
    first, *_, last = fit(replace(config, epochs=4, batch_size=16)).history.epochs
    assert first.train_loss > 2.0
    assert last.train_loss < 1.0
    assert last.train_accuracy > 0.7
    assert last.test_accuracy > 0.5


@pytest.mark.slow
def test_three_epochs_read_handwriting(config):
    assert fit(replace(config, data="digits", epochs=3)).test_accuracy > 0.95


def test_the_files_hold_what_fit_returns(config):
    result = fit(replace(config, epochs=2))
    assert names(result.out) == FILES
    with open(result.out / CSV, newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == EpochRecord._fields
    assert [pytest.approx(record, rel=1e-5) for record in result.history.epochs] == [tuple(map(float, row)) for row in rows]
    assert [(record.epoch, record.step) for record in result.history.epochs] == [(1, 4), (2, 8)]
    lines = [json.loads(line) for line in (result.out / JSONL).read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("step", 3), ("epoch", 4), ("step", 6), ("step", 8), ("epoch", 8)]
    written = json.loads((result.out / CONFIG).read_text())
    expected = {"model": "preact_resnet20", "epochs": 2, "lr": 0.1, "num_classes": 10, "steps_per_epoch": 4, "processes": 1}
    assert (expected | {"torch": torch.__version__}).items() <= written.items()

    model = create_model(config.model, num_classes=10).to(memory_format=torch.channels_last)
    model.load_state_dict(load_file(result.out / MODEL))
    scores = evaluate(model, data.load("synthetic").test_batches(32), config)
    assert scores.accuracy == result.test_accuracy
    assert scores.loss == pytest.approx(result.history.epochs[-1].test_loss)


def test_evaluation_uses_running_statistics_and_leaves_them(config):
    torch.manual_seed(0)
    model = create_model(config.model, num_classes=10).to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    few, many = (evaluate(model, data.load("synthetic").test_batches(size), config) for size in (7, 40))
    assert few == pytest.approx(many, rel=1e-5)
    assert same(model.state_dict(), before)


class Table(nn.Module):
    """Logits by the number that an image is filled with."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, images):
        return self.logits[images[:, 0, 0, 0].long()]


def test_views_average_their_probabilities(config):
    """One image seen twice and another seen twice; sums of logits would get the first wrong."""
    logits = [[0.0, 2.0, -9.0], [0.0, 2.0, -9.0], [30.0, 0.0, 0.0], [0.0, 0.0, 30.0]]
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    labels = torch.tensor([1, 2])
    scores = evaluate(Table(logits), [data.source.Batch(images, labels)], config)
    p = torch.tensor(logits).softmax(1).view(2, 2, 3).mean(1)
    assert scores.loss == pytest.approx(-p[[0, 1], labels].log().mean().item(), rel=1e-5)
    assert scores == Scores(scores.loss, 0.5 if p[1].argmax() == 0 else 1.0, 1.0)


def test_images_in_memory_have_no_crops(config):
    with pytest.raises(data.source.DataError, match="view"):
        next(iter(data.load("synthetic").test_batches(8, view=View(ten=True))))


def test_the_seed_decides_the_weights(config, tmp_path):
    first, again, other = (weights(fit(replace(config, seed=seed, out=tmp_path / out)).out) for seed, out in ((0, "a"), (0, "b"), (1, "c")))
    assert same(first, again)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize("iterations", [3, 6], ids=["less than an epoch", "one epoch and a half"])
def test_a_length_in_iterations(config, iterations):
    result = fit(replace(config, epochs=None, iterations=iterations))
    assert result.history.epochs[-1].step == iterations
    assert torch.load(result.out / CHECKPOINT, weights_only=True)["step"] == iterations


class Stopped(Exception):
    """Stands for a kill: nothing of the run's own handles it."""


def stop_at(monkeypatch, step, do):
    """Let `do` happen after step number `step` (from 1) of the next runs."""
    update, count = Trainer.step, iter(range(1, 10_000))

    def counted(self, batch):
        result = update(self, batch)
        if next(count) == step:
            do()
        return result

    monkeypatch.setattr(Trainer, "step", counted)


def killed():
    raise Stopped


@pytest.mark.parametrize("every", [None, 1, 3], ids=["after epochs", "every step", "every third step"])
@pytest.mark.parametrize("step", [1, 4, 5, 7], ids=lambda step: f"killed at {step}")
def test_a_killed_run_goes_on_and_ends_the_same(config, whole, monkeypatch, every, step):
    config = replace(config, epochs=2, checkpoint_every=every)
    with monkeypatch.context() as patch:
        stop_at(patch, step, killed)
        with pytest.raises(Stopped):
            fit(config)
    resumed = fit(config, resume=True)
    assert same(weights(whole.out), weights(resumed.out))
    assert names(resumed.out) == FILES
    saved, wanted = (torch.load(run.out / CHECKPOINT, weights_only=True) for run in (resumed, whole))
    momenta = [[state["momentum_buffer"] for state in s["optimizer"]["state"].values()] for s in (saved, wanted)]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))
    assert learnt(resumed.history) == learnt(whole.history)
    assert lines(resumed.out) == lines(whole.out)


def learnt(history):
    """What a history says, but for times and memory."""
    return [r[:5] for r in history.steps], [r[:8] for r in history.epochs]


def lines(out):
    return [
        {key: value for key, value in json.loads(line).items() if key not in ("seconds", "images_per_s", "peak_mb", "time")}
        for line in (out / JSONL).read_text().splitlines()
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [2, 4], ids=["in an epoch", "at its end"])
def test_a_signal_saves_and_the_run_goes_on(config, whole, monkeypatch, number, step):
    config = replace(config, epochs=2)
    with monkeypatch.context() as patch:
        stop_at(patch, step, lambda: os.kill(os.getpid(), number))
        result = fit(config)
    assert result.interrupted == number.name
    assert torch.load(config.out / CHECKPOINT, weights_only=True)["step"] == step
    assert names(config.out) == FILES - {MODEL}
    resumed = fit(config, resume=True)
    assert resumed.interrupted is None
    assert same(weights(whole.out), weights(resumed.out))
    assert lines(resumed.out) == lines(whole.out)


def test_a_run_that_has_ended_stays_as_it_is(config):
    first = fit(config)
    before = weights(config.out)
    (config.out / MODEL).unlink()
    again = fit(config, resume=True)
    assert again.history == first.history
    assert same(before, weights(config.out))


def test_checkpoints_are_of_plain_values_and_say_where_they_are(config):
    fit(config)
    saved = torch.load(config.out / CHECKPOINT, weights_only=True)
    assert saved["step"] == 4
    assert TrainConfig.from_json(saved["config"]) == config
    assert same(saved["model"], weights(config.out))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "expected a checkpoint in '.*', got a file that torch can't read"),
        (lambda path: torch.save({"a": 1}, path), "expected a checkpoint of `fused-preact train` in '.*', got something else"),
        (lambda path: torch.save([1], path), "expected a checkpoint of `fused-preact train` in '.*', got something else"),
    ],
    ids=["truncated", "another dict", "no dict"],
)
def test_what_is_no_checkpoint_is_refused_and_kept(config, spoil, words):
    fit(config)
    spoil(config.out / CHECKPOINT)
    before = (config.out / CHECKPOINT).read_bytes()
    with pytest.raises(CheckpointError, match=words):
        fit(config, resume=True)
    assert (config.out / CHECKPOINT).read_bytes() == before


def test_other_data_than_the_checkpoints_are_refused(config, monkeypatch):
    fit(config)
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=230, test=40))
    with pytest.raises(CheckpointError, match="expected data of 4 batches an epoch, as the checkpoint had, got 7"):
        fit(config, resume=True)


def test_a_folder_with_a_run_is_kept_unless_told(config):
    fit(config)
    before = {path: path.read_bytes() for path in config.out.iterdir()}
    with pytest.raises(FileExistsError, match="expected a folder without a run in it"):
        fit(config)
    assert {path: path.read_bytes() for path in config.out.iterdir()} == before
    (config.out / "notes.txt").write_text("mine")
    result = fit(replace(config, seed=1), overwrite=True)
    assert names(config.out) == FILES | {"notes.txt"}
    assert len(result.history.epochs) == 1
    assert json.loads((config.out / CONFIG).read_text())["seed"] == 1


def test_two_runs_cannot_share_a_folder(config):
    config.out.mkdir()
    with locked(config.out), pytest.raises(FolderInUse):
        fit(config)
    assert names(config.out) == {".lock"}


@pytest.mark.parametrize(("epochs", "step"), [(1, 3), (2, 6)], ids=["before a checkpoint", "after one"])
def test_a_loss_that_is_not_finite_stops_with_the_step_the_rate_and_the_checkpoint(config, monkeypatch, epochs, step):
    update = Trainer.step
    count = iter(range(1, 100))

    def spoilt(self, batch):
        loss, hits = update(self, batch)
        return (loss * math.nan if next(count) == step else loss), hits

    monkeypatch.setattr(Trainer, "step", spoilt)
    config = replace(config, epochs=epochs, schedule="steps", lr=0.05)
    kept = f"the last good checkpoint, of step 4, is {config.out / CHECKPOINT}" if epochs == 2 else "there is no checkpoint yet"
    with pytest.raises(DivergedError) as error:
        fit(config)
    sentence = f"training diverged: the loss of step {step} became nan at a learning rate of 0.05; {kept}; a lower --lr may help"
    assert str(error.value) == sentence
    if epochs == 2:
        saved = torch.load(config.out / CHECKPOINT, weights_only=True)
        assert saved["step"] == 4
        assert checkpoint.finite(saved)


def test_weights_that_are_not_finite_are_never_saved(config, monkeypatch):
    """A loss is that of the weights before the step, so it may be finite when they no longer are."""

    def spoil(self, batch):
        result = update(self, batch)
        with torch.no_grad():
            self.model.fc.bias[0] = math.inf
        return result

    update = Trainer.step
    monkeypatch.setattr(Trainer, "step", spoil)
    monkeypatch.setattr(loop, "evaluate", lambda *args: Scores(1.0, 0.5, 0.5))
    with pytest.raises(DivergedError, match="a weight is not a finite number after step"):
        fit(replace(config, epochs=None, iterations=1))
    assert not (config.out / CHECKPOINT).exists()


def test_a_rate_that_is_far_too_high_diverges(config):
    with pytest.raises(DivergedError, match=r"^training diverged: .* at a learning rate of .*; there is no checkpoint yet"):
        fit(replace(config, lr=1e20))
    assert names(config.out) & {CHECKPOINT, MODEL} == set()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_keep_float32_weights(config, dtype):
    torch.manual_seed(0)
    model = create_model(config.model, num_classes=10).to(memory_format=torch.channels_last)
    before = model.fc.weight.detach().clone()
    trainer, seen = Trainer(model, replace(config, dtype=dtype)), []
    model.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype))
    loss, _ = trainer.step(next(data.load("synthetic").train_batches(32, seed=0, epoch=0)))
    assert seen == [getattr(torch, dtype)]
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert loss.isfinite()
    assert trainer.scaler.is_enabled() == (dtype == "float16")
    assert dtype == "float16" or not torch.equal(before, model.fc.weight)


@pytest.mark.parametrize("decay", ["all", "conv"])
def test_weight_decay_pulls_at_what_it_should(config, decay):
    """With a learning rate and gradients of zero but for the decay: p becomes p - lr * wd * p."""
    model = create_model(config.model, num_classes=10)
    trainer = Trainer(model, replace(config, decay=decay, weight_decay=0.5, lr=0.1, nesterov=False))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    trainer.optimizer.step()
    convolutions = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    pulled = {name for name, p in model.named_parameters() if not torch.equal(p, torch.ones_like(p))}
    assert pulled == (convolutions if decay == "conv" else {name for name, _ in model.named_parameters()})
    assert all(torch.allclose(p, torch.tensor(0.95)) for name, p in model.named_parameters() if name in pulled)


@pytest.mark.compile
def test_units_are_compiled_when_asked(config, tmp_path):
    plain, compiled = (fit(replace(config, model="preact_resnet29", compile=c, out=tmp_path / str(c))) for c in (False, True))
    assert compiled.history.epochs[-1].train_loss == pytest.approx(plain.history.epochs[-1].train_loss, rel=1e-3)
    assert weights(compiled.out).keys() == weights(plain.out).keys()


@pytest.mark.parametrize(("model", "fused"), [("preact_resnet20", False), ("resnet20", True)])
def test_shared_statistics_leave_the_networks_of_the_paper_fused(config, model, fused):
    config = replace(config, model=model, sync_bn=True)
    net = loop.Run(config, World(), loop.load_data(config)).model
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert is_fused(net) == fused


def test_threads_are_set(config):
    before = torch.get_num_threads()
    try:
        fit(replace(config, threads=before + 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("module", ["tqdm", "safetensors.torch", "matplotlib"])
def test_a_missing_package_stops_before_anything_is_written(config, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{module.split('.')[0]}.*pip install 'fused-preact\[train\]'"):
        fit(config)
    assert not config.out.exists()


def test_without_a_terminal_progress_is_one_plain_line_an_epoch(config, capsys):
    fit(replace(config, epochs=2))
    captured = capsys.readouterr()
    assert captured.out == ""
    *recipe, first, second = captured.err.splitlines()
    assert [line.split()[0] for line in recipe] == ["recipe", "length", "learning", "SGD"]
    assert [line.split(":")[0] for line in (first, second)] == ["epoch 1/2", "epoch 2/2"]
    assert "\r" not in captured.err
    assert "\x1b" not in captured.err
