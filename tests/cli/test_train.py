import json
import sys
from functools import partial

import pytest
import torch

from fused_preact.cli import main
from fused_preact.train import data

SMALL = ["train", "--model", "preact_resnet20", "--data", "synthetic", "--epochs", "1", "--batch-size", "32"]


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=64, test=20))


def test_a_run_says_how_well_and_where(tmp_path, capsys):
    assert main([*SMALL, "--out", "a/b"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("test accuracy ")
    assert out.count("\n") == 1
    assert out.rstrip().endswith("are in a/b")
    assert {path.name for path in (tmp_path / "a/b").iterdir()} == {"config.json", "metrics.csv", "model.safetensors"}


def test_every_option_reaches_the_run(tmp_path):
    options = {"memory": "segment", "dtype": "bfloat16", "lr": 0.05, "weight_decay": 0.0, "seed": 3, "threads": 1, "device": "cpu"}
    arguments = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert main([*SMALL, *arguments, "--out", "a"]) == 0
    written = json.loads((tmp_path / "a/config.json").read_text())
    assert (options | {"epochs": 1, "batch_size": 32, "out": "a"}).items() <= written.items()


def test_cuda_graph_says_that_it_has_no_effect_on_a_cpu(tmp_path, capsys):
    assert main([*SMALL, "--device", "cpu", "--cuda-graph", "--out", "a"]) == 0
    first, *epochs = capsys.readouterr().err.splitlines()
    assert first == "fused-preact: --cuda-graph has no effect on the cpu, which has no CUDA graphs"
    assert [line.split(":")[0] for line in epochs] == ["epoch 1/1"]
    assert json.loads((tmp_path / "a/config.json").read_text())["cuda_graph"] is True
    assert main([*SMALL, "--device", "cpu", "--out", "b"]) == 0
    assert "cuda-graph" not in capsys.readouterr().err
    assert json.loads((tmp_path / "b/config.json").read_text())["cuda_graph"] is False


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_cuda_graph_on_a_gpu(capsys, dtype):
    assert main([*SMALL, "--device", "cuda", "--cuda-graph", "--dtype", dtype, "--epochs", "4", "--out", "a"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [f"epoch {i}/4" for i in range(1, 5)]


def test_without_out_the_folder_is_named_after_the_run(tmp_path):
    assert main(SMALL) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("preact_resnet20-synthetic-2")


def test_an_empty_folder_will_do(tmp_path):
    (tmp_path / "empty").mkdir()
    assert main([*SMALL, "--out", "empty"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "preact_resnet165"], "argument --model: unknown model 'preact_resnet165'; did you mean 'preact_resnet164'?"),
        (["--data", "digit"], "argument --data: unknown data set 'digit'; did you mean 'digits'?"),
        (["--epochs", "0"], "argument --epochs: expected a whole number of at least 1, got 0"),
        (["--epochs", "1.5"], "argument --epochs: expected a whole number of at least 1, got '1.5'"),
        (["--batch-size", "1"], "argument --batch-size: expected a whole number from 2 to 1000000, got 1"),
        (["--lr", "0"], "argument --lr: expected a number above 0, got 0"),
        (["--lr", "nan"], "argument --lr: expected a number above 0, got nan"),
        (["--weight-decay", "-1"], "argument --weight-decay: expected a number of at least 0, got -1"),
        (["--dtype", "float8"], "argument --dtype: unknown dtype 'float8'; did you mean 'float"),
        (["--dtype", "float16", "--device", "cpu"], "argument --dtype: expected float32 or bfloat16 on the cpu, got 'float16'"),
        (["--device", "gpu"], "argument --device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--device", "meta"], "argument --device: expected auto, cpu, cuda or cuda:N, got 'meta'"),
        (["--device", "cuda:99"], "argument --device: expected a device of this machine"),
        (["--memory", "units"], "argument --memory: unknown memory mode 'units'; did you mean 'unit'?"),
        (["--seed", "-1"], "argument --seed: expected a whole number from 0 to"),
        (["--threads", "0"], "argument --threads: expected a whole number from 1 to"),
        (["--steps", "3"], "unrecognized arguments: --steps 3"),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, list) else "",
)
def test_impossible_values_are_one_sentence_and_nothing_is_written(tmp_path, capsys, arguments, sentence):
    assert main([*SMALL, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"fused-preact: {sentence}")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/metrics.csv").write_text("precious")
    assert main([*SMALL, "--out", "old"]) == 2
    assert capsys.readouterr().err == "fused-preact: argument --out: expected a new or empty folder, got 'old', which has files in it\n"
    assert (tmp_path / "old/metrics.csv").read_text() == "precious"
    assert len(list((tmp_path / "old").iterdir())) == 1


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_is_not_a_folder(tmp_path, capsys, out):
    (tmp_path / "file").write_text("precious")
    assert main([*SMALL, "--out", out]) == 2
    assert f"argument --out: expected a folder that can be made and written, got '{out}': " in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "precious"


def test_a_missing_package_is_one_sentence_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert main(SMALL) == 2
    assert capsys.readouterr().err.endswith("which is not installed; pip install 'fused-preact[train]'\n")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_diverges_fails_with_a_sentence(tmp_path, capsys):
    assert main([*SMALL, "--lr", "1e20", "--out", "a"]) == 1
    assert capsys.readouterr().err.startswith("fused-preact: training diverged: the loss became")
    assert not (tmp_path / "a/model.safetensors").exists()
