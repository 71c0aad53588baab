import json
import sys

import pytest
import torch
from matplotlib import image

from fused_preact.cli import main
from fused_preact.models import create_model

SMALL = ["paper", "propagate", "--model", "resnet20", "--batch-size", "2", "--dtype", "float64", "--device", "cpu"]


def test_a_table_json_and_a_picture(tmp_path, capsys):
    written = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    assert main([*SMALL, "--shortcut", "constant_scaling", "--model-option", "shortcut_scale=0.25", *written]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "a.json").read_text())
    (network,) = found["networks"]
    assert network["options"] == {"shortcut": "constant_scaling", "activation": "full_preact", "shortcut_scale": 0.25}
    assert [unit["scale"] for unit in network["units"]] == [0.25] * 9
    assert [small["name"] for small in found["small"]] == ["identity", "0.5 scaling", "plain"]
    (row,) = [line.split() for line in out.splitlines() if line.split()[:2] == ["1", "1"]]
    assert row[7:9] == ["0.0625", "0.0625"]
    assert image.imread(tmp_path / "a.png").std() > 0.01


@pytest.mark.parametrize(("option", "rows"), [([], 12), (["--all-units"], 27)], ids=["a-selection", "all-units"])
def test_a_deep_network_has_four_rows_a_stage_unless_asked(capsys, option, rows):
    assert main([*SMALL, "--model", "resnet56", *option]) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if line.split()[2:3] in (["identity"], ["pad"])]
    assert len(found) == rows


def test_weights_of_a_file_on_digits(tmp_path, capsys):
    model = create_model("resnet20", activation="original", shortcut="dropout")
    with torch.no_grad():
        model.conv1.weight.zero_()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    arguments = [*SMALL, "--activation", "original", "--shortcut", "dropout", "--data", "digits", "--json", str(tmp_path / "a.json")]
    assert main([*arguments, "--weights", str(tmp_path / "w.pt")]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["networks"][0]["units"][0]["signal"] == 0
    assert found["config"]["data"] == "digits"
    assert "small" not in found
    assert "weights of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "resnet111"], "argument --model: unknown model 'resnet111'; did you mean 'resnet110'?"),
        (["--model", "preact_resnet200"], "got 'preact_resnet200', which is no network for CIFAR"),
        (["--model", "preact_resnet110"], "its units are those of resnet110 with --activation full_preact"),
        (["--shortcut", "highway"], "argument --shortcut: unknown shortcut 'highway'"),
        (["--activation", "relu"], "argument --activation: unknown activation 'relu'"),
        (["--model-option", "gate=1"], "argument --model-option: unknown option of resnet20 'gate'; did you mean 'gate_bias'?"),
        (["--model-option", "gate_bias=1"], "argument --model-option: gate_bias: expected only with shortcut"),
        (["--model-option", "num_classes=7"], "expected an option of the units, got 'num_classes'"),
        (
            ["--shortcut", "dropout", "--model-option", "shortcut=identity"],
            "expected one of --shortcut and --model-option shortcut=..., got",
        ),
        (["--weights", "no.pt"], "argument --weights: expected a file of weights, got 'no.pt', which is not there"),
        (["--data", "cifar10"], "argument --data: unknown data 'cifar10'"),
        (["--dtype", "bfloat16"], "argument --dtype: unknown dtype 'bfloat16'"),
        (["--batch-size", "1"], "argument --batch-size: expected a whole number from 2"),
        (["--json", "no/a.json"], "argument --json: expected a file in an existing folder, got 'no/a.json'"),
        (["--json", "."], "argument --json: expected a file, got the folder '.'"),
        (["--plot", "a.pdf"], "argument --plot: expected a file name that ends in .png, got 'a.pdf'"),
        (["--figure", "a.png"], "argument --figure: expected no --model with it, got both"),
        (["--figure", "."], "argument --figure: expected a file name that ends in .png, got '.'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_impossible_is_one_sentence_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, *arguments]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")
    assert not list(tmp_path.iterdir())


def test_weights_of_another_network_are_refused(tmp_path, capsys):
    torch.save(create_model("resnet20", shortcut="conv1x1").state_dict(), tmp_path / "w.pt")
    assert main([*SMALL, "--weights", str(tmp_path / "w.pt")]) == 2
    assert capsys.readouterr().err.startswith("fused-preact: argument --weights: expected weights of resnet20 with 10 classes and these")


def test_weights_that_are_not_finite_are_refused(tmp_path, capsys):
    state = create_model("resnet20", activation="full_preact").state_dict()
    torch.save(state | {"fc.bias": state["fc.bias"] * torch.nan}, tmp_path / "w.pt")
    assert main([*SMALL, "--weights", str(tmp_path / "w.pt"), "--json", str(tmp_path / "a.json")]) == 2
    captured = capsys.readouterr()
    assert "argument --weights: expected weights with which loss, signals and gradients are finite in float64, got" in captured.err
    assert captured.out == ""
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("dtype", "scale", "sentence"),
    [
        ("float32", "1e30", "argument --dtype: expected float64 with this network, whose signals or gradients overflow it, got 'float32'"),
        ("float64", "1e38", "argument --model-option: expected options with which loss, signals and gradients are finite, got shortcut"),
    ],
)
def test_numbers_that_overflow_are_refused(tmp_path, monkeypatch, capsys, dtype, scale, sentence):
    monkeypatch.chdir(tmp_path)
    options = ["--dtype", dtype, "--shortcut", "constant_scaling", "--model-option", f"shortcut_scale={scale}"]
    assert main([*SMALL, *options, "--json", "a.json", "--plot", "a.png"]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith(f"fused-preact: {sentence}")
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("matplotlib", ["--plot", "a.png"]), ("sklearn.datasets", ["--data", "digits"])],
    ids=["matplotlib", "scikit-learn"],
)
def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch, capsys, module, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    assert main([*SMALL, *arguments]) == 2
    assert capsys.readouterr().err.endswith("which is not installed; pip install 'fused-preact[train]'\n")


def test_a_subcommand_is_needed(capsys):
    assert main(["paper"]) == 2
    assert "propagate" in capsys.readouterr().err
