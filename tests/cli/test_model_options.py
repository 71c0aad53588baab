"""--model-option of `fused-preact train` and `eval`, and which command takes which networks."""

import json
from functools import partial

import pytest

from fused_preact import data
from fused_preact.cli import main

SMALL = ["train", "--model", "resnet20", "--data", "synthetic", "--epochs", "1", "--batch-size", "32", "--device", "cpu"]
GATED = ["--model-option", "shortcut=exclusive_gating", "--model-option", "gate_bias=-6", "--model-option", "activation=full_preact"]
OPTIONS = {"shortcut": "exclusive_gating", "gate_bias": -6, "activation": "full_preact"}


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path, no_drawing):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=64, test=20))


def error_of(capsys, arguments):
    assert main(arguments) == 2
    return capsys.readouterr().err.removeprefix("fused-preact: ")


def test_a_run_keeps_its_options(tmp_path, capsys):
    assert main([*SMALL, *GATED, "--out", "a"]) == 0
    assert json.loads((tmp_path / "a/config.json").read_text())["model_options"] == OPTIONS
    capsys.readouterr()
    assert main(["eval", "a", "--device", "cpu", "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    given = ["eval", "a/model.safetensors", "--model", "resnet20", *GATED, "--data", "synthetic", "--device", "cpu", "--json"]
    assert main(given) == 0
    assert json.loads(capsys.readouterr().out) == own


def test_going_on_with_other_options_is_refused(capsys):
    assert main([*SMALL, *GATED, "--out", "a"]) == 0
    capsys.readouterr()
    sentence = error_of(capsys, ["train", "--out", "a", "--resume", "--device", "cpu", "--model-option", "shortcut=dropout"])
    assert "model_options activation=full_preact,gate_bias=-6,shortcut=exclusive_gating (now shortcut=dropout)" in sentence


def test_synchronised_norms_are_fused_again():
    """Converted ones are not fused any more, and alone would be refused on a CPU."""
    assert main([*SMALL, *GATED, "--sync-bn", "--out", "a"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["--model-option", "shortcut"], "argument --model-option: expected NAME=VALUE, got 'shortcut'", id="no-value"),
        pytest.param(
            ["--model-option", "gate_bias=-6"],
            "argument --model-option: gate_bias: expected only with shortcut 'exclusive_gating'",
            id="use",
        ),
        pytest.param(["--model-option", "shortcut=gate"], "argument --model-option: unknown shortcut 'gate'; did you mean", id="word"),
        pytest.param(["--model-option", "gates=1"], "argument --model-option: unknown option of resnet20 'gates'", id="name"),
        pytest.param(
            ["--model-option", "memory=unit"], "argument --model-option: expected an option of the units, got 'memory'", id="place"
        ),
        pytest.param(["--memory", "unit"], "argument --memory: expected 'layer', the one mode", id="memory"),
        pytest.param(
            ["--model", "preact_resnet20", "--model-option", "shortcut=dropout"],
            "argument --model-option: unknown option of preact_resnet20 'shortcut'",
            id="fixed-units",
        ),
    ],
)
def test_impossible_options_are_one_sentence(tmp_path, capsys, arguments, sentence):
    assert error_of(capsys, [*SMALL, *arguments]).startswith(sentence)
    assert not list(tmp_path.iterdir())


def test_bench_takes_networks_with_memory_modes(capsys):
    sentence = error_of(capsys, ["bench", "--model", "resnet110"])
    assert sentence.startswith("argument --model: unknown model 'resnet110'; did you mean 'preact_resnet110'? known: preact_resnet1001")
    assert " resnet" not in sentence.partition("known:")[2]
