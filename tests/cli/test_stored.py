"""What `train --resume` and `eval` make of a folder that a hand has changed, and of odd names and weights."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from fused_preact import data
from fused_preact.cli import main
from fused_preact.models import create_model
from fused_preact.train.config import TrainConfig

SMALL = ["train", "--model", "preact_resnet20", "--data", "synthetic", "--epochs", "1", "--batch-size", "32", "--device", "cpu"]


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path, no_drawing):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=64, test=20))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model", "nope", "model: unknown model 'nope'"),
        ("data", None, "data: unknown data set 'None'"),
        ("epochs", "x", "epochs: expected a whole number of at least 1, got 'x'"),
        ("epochs", None, "expected one of epochs and iterations"),
        ("iterations", 4, "expected one of epochs and iterations"),
        ("batch_size", "32", "batch_size: expected int, got '32'"),
        ("lr", float("nan"), "lr: expected a number above 0, got nan"),
        ("nesterov", "yes", "nesterov: expected true or false, got 'yes'"),
        ("threads", 0, "threads: expected a whole number from 1 to 1024, got 0"),
        ("seed", True, "seed: expected a whole number from 0 to 4294967295, got 'True'"),
    ],
    ids=lambda value: str(value).split(":")[0],
)
def test_a_config_that_was_edited_is_checked_as_options_are(tmp_path, capsys, field, value, words):
    (tmp_path / "a").mkdir()
    fields = TrainConfig(out=Path("a"), data="synthetic").as_json() | {field: value}
    (tmp_path / "a/config.json").write_text(json.dumps(fields))
    before = contents(tmp_path / "a")
    for command, argument in ((["train", "--resume", "--out", "a"], "--resume"), (["eval", "a"], "PATH")):
        assert main(command) == 2
        expected = f"fused-preact: argument {argument}: expected the config of a run in 'a/config.json', got something else: {words}"
        assert capsys.readouterr().err.startswith(expected)
    assert contents(tmp_path / "a") == before


def test_two_lengths_are_refused_when_a_run_goes_on(capsys):
    assert main([*SMALL, "--out", "a"]) == 0
    capsys.readouterr()
    assert main(["train", "--out", "a", "--resume", "--epochs", "2", "--iterations", "9", "--accept-changes"]) == 2
    assert capsys.readouterr().err == "fused-preact: argument --iterations: expected one of --epochs and --iterations, got both\n"


@pytest.mark.parametrize("command", [["train", "--resume", "--out"], ["eval"]], ids=["train", "eval"])
def test_a_name_that_no_file_can_have_is_a_sentence(capsys, command):
    assert main([*command, "a" * 300]) == 2
    assert "File name too long" in capsys.readouterr().err


def test_eval_prints_json_even_of_weights_that_are_not_finite(tmp_path, capsys):
    model = create_model("preact_resnet20", num_classes=10)
    torch.nn.init.constant_(model.fc.bias, float("nan"))
    torch.save(model.state_dict(), "nan.pt")
    assert main(["eval", "nan.pt", "--model", "preact_resnet20", "--data", "synthetic", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] is None
