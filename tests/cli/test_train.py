import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch

from fused_preact import data
from fused_preact.cli import main
from fused_preact.train.trainer import Trainer
from tests.data import cifar_files

SMALL = ["train", "--model", "preact_resnet20", "--data", "synthetic", "--epochs", "1", "--batch-size", "32", "--device", "cpu"]
FILES = {
    "config.json",
    "metrics.csv",
    "metrics.jsonl",
    "events.out.tfevents.fused_preact",
    "checkpoint.pt",
    "model.safetensors",
    "curves.png",
}


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path, no_drawing):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=64, test=20))


def names(folder):
    return {path.name for path in folder.iterdir()} - {".lock"}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_run_says_what_it_does_and_what_came_of_it(tmp_path, capsys):
    assert main([*SMALL, "--out", "a/b"]) == 0
    captured = capsys.readouterr()
    rows = dict(line.split(maxsplit=1) for line in captured.out.splitlines())
    assert {"model", "data", "trained", "files"} <= rows.keys()
    assert rows["files"] == "a/b"
    assert [line.split()[0] for line in captured.err.splitlines()] == ["recipe", "length", "learning", "SGD", "epoch"]
    assert names(tmp_path / "a/b") == FILES


def test_every_option_reaches_the_run(tmp_path):
    options = {
        "memory": "segment",
        "dtype": "bfloat16",
        "schedule": "steps",
        "lr": 0.05,
        "milestones": "1,3",
        "warmup-iterations": 1,
        "warmup-lr": 0.02,
        "momentum": 0.8,
        "weight-decay": 0.0,
        "decay": "conv",
        "seed": 3,
        "threads": 1,
        "checkpoint-every": 1,
        "log-every": 2,
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main([*SMALL, *arguments, "--no-nesterov", "--out", "a"]) == 0
    written = json.loads((tmp_path / "a/config.json").read_text())
    expected = {name.replace("-", "_"): value for name, value in options.items()} | {"milestones": [1, 3], "nesterov": False}
    assert (expected | {"epochs": 1, "batch_size": 32, "out": "a"}).items() <= written.items()


def test_a_recipe_decides_what_is_not_given(tmp_path):
    assert main([*SMALL, "--recipe", "paper-cifar", "--out", "a"]) == 0
    written = json.loads((tmp_path / "a/config.json").read_text())
    given = {"data": "synthetic", "epochs": 1, "iterations": None, "batch_size": 32}
    assert (given | {"recipe": "paper-cifar", "decay": "conv", "nesterov": False, "warmup_iterations": 400}).items() <= written.items()


@pytest.mark.parametrize("recipe", ["one-cycle", "paper-cifar", "released-cifar", "paper-imagenet"])
def test_a_recipe_prints_itself_and_nothing_happens(tmp_path, capsys, recipe):
    assert main(["train", "--recipe", recipe, "--print-recipe"]) == 0
    assert capsys.readouterr().out.startswith(f"recipe         {recipe} (")
    assert list(tmp_path.iterdir()) == []


def test_cuda_graph_says_that_it_has_no_effect_on_a_cpu(tmp_path, capsys):
    assert main([*SMALL, "--cuda-graph", "--out", "a"]) == 0
    assert capsys.readouterr().err.startswith("fused-preact: --cuda-graph has no effect on the cpu, which has no CUDA graphs\nrecipe")
    assert json.loads((tmp_path / "a/config.json").read_text())["cuda_graph"] is True
    assert main([*SMALL, "--out", "b"]) == 0
    assert "cuda-graph" not in capsys.readouterr().err


def test_sync_bn_says_that_it_has_no_effect_alone(capsys):
    assert main([*SMALL, "--sync-bn", "--out", "a"]) == 0
    assert capsys.readouterr().err.startswith("fused-preact: --sync-bn has no effect in one process\n")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_cuda_graph_on_a_gpu(capsys, dtype):
    assert main([*SMALL, "--device", "cuda", "--cuda-graph", "--dtype", dtype, "--epochs", "4", "--out", "a"]) == 0
    epochs = [line.split(":")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    assert epochs == [f"epoch {i}/4" for i in range(1, 5)]


def test_without_out_the_folder_is_named_after_the_run(tmp_path):
    assert main(SMALL) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("preact_resnet20-synthetic-2")


def test_an_empty_folder_will_do(tmp_path):
    (tmp_path / "empty").mkdir()
    assert main([*SMALL, "--out", "empty"]) == 0


@pytest.mark.parametrize("layout", cifar_files.LAYOUTS)
def test_cifar_from_every_layout(tmp_path, layout):
    cifar_files.write(tmp_path, layout, train=60, test=20)
    assert main([*SMALL, "--data", "cifar10", "--data-dir", ".", "--out", "a"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "preact_resnet165"], "argument --model: unknown model 'preact_resnet165'; did you mean 'preact_resnet164'?"),
        (["--model", "resnet100"], "argument --model: unknown model 'resnet100'; did you mean 'resnet110'? expected a depth of 20, "),
        (["--data", "digit"], "argument --data: unknown data set 'digit'; did you mean 'digits'?"),
        (["--data", "cifar10"], "argument --data-dir: expected the folder or file that it is read from"),
        (["--data-dir", "x"], "argument --data-dir: expected nothing, because it is read from no file"),
        (["--data", "cifar10", "--data-dir", "nowhere"], "argument --data-dir: expected "),
        (["--data", "folder", "--data-dir", "nowhere"], "argument --data-dir: expected images in nowhere/train/<class>/"),
        (["--recipe", "paper"], "argument --recipe: unknown recipe 'paper'; did you mean 'paper-"),
        (["--epochs", "0"], "argument --epochs: expected a whole number of at least 1, got 0"),
        (["--epochs", "1.5"], "argument --epochs: expected a whole number of at least 1, got '1.5'"),
        (["--iterations", "5"], "argument --iterations: expected one of --epochs and --iterations, got both"),
        (["--batch-size", "1"], "argument --batch-size: expected a whole number from 2 to 1000000, got 1"),
        (["--lr", "0"], "argument --lr: expected a number above 0, got 0"),
        (["--lr", "nan"], "argument --lr: expected a number above 0, got nan"),
        (["--momentum", "1"], "argument --momentum: expected a number of at least 0 and below 1, got 1"),
        (["--momentum", "0"], "argument --nesterov: expected a momentum above 0 with it, got 0; --no-nesterov leaves it out"),
        (["--milestones", "3,2"], "argument --milestones: expected rising numbers, got '3,2'"),
        (["--milestones", "1"], "argument --milestones: expected --schedule steps with it, got one-cycle, which has none"),
        (["--warmup-iterations", "1"], "argument --warmup-iterations: expected --schedule steps with it, got one-cycle"),
        (["--schedule", "cosine"], "argument --schedule: unknown schedule 'cosine'; did you mean 'one-cycle'?"),
        (["--decay", "conf"], "argument --decay: unknown decay 'conf'; did you mean 'conv'?"),
        (["--weight-decay", "-1"], "argument --weight-decay: expected a number of at least 0, got -1"),
        (["--dtype", "float8"], "argument --dtype: unknown dtype 'float8'; did you mean 'float"),
        (["--dtype", "float16"], "argument --dtype: expected float32 or bfloat16 on the cpu, got 'float16'"),
        (["--device", "gpu"], "argument --device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--device", "meta"], "argument --device: expected auto, cpu, cuda or cuda:N, got 'meta'"),
        (["--device", "cuda:99"], "argument --device: expected a device of this machine"),
        (["--memory", "units"], "argument --memory: unknown memory mode 'units'; did you mean 'unit'?"),
        (["--compile", "--memory", "segment"], "argument --compile: expected --memory layer or unit, got segment"),
        (["--seed", "-1"], "argument --seed: expected a whole number from 0 to"),
        (["--threads", "0"], "argument --threads: expected a whole number from 1 to"),
        (["--workers", "-1"], "argument --workers: expected a whole number from 0 to"),
        (["--resume"], "argument --resume: expected --out too, which names the folder of the run"),
        (["--overwrite"], "argument --overwrite: expected --out too, which names the folder of the run"),
        (["--resume", "--out", "nowhere"], "argument --resume: expected the folder of a run, got 'nowhere', which is not there"),
        (["--resume", "--overwrite", "--out", "x"], "argument --overwrite: expected one of --resume and --overwrite, got both"),
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
    for arguments, words in (
        ([], "argument --out: expected a new or empty folder, got 'old', which has files in it; --resume goes on with a run, --overwrite"),
        (["--resume"], "argument --resume: expected the folder of a run, got 'old', which has files but no config.json"),
    ):
        assert main([*SMALL, "--out", "old", *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"fused-preact: {words}")
        assert contents(tmp_path / "old") == {"metrics.csv": b"precious"}


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
    assert capsys.readouterr().err.splitlines()[-1].startswith("fused-preact: training diverged: ")
    assert not (tmp_path / "a/model.safetensors").exists()


def interrupt(monkeypatch, number):
    """A signal after the first step of the next run."""
    step, left = Trainer.step, iter([number])

    def interrupted(self, batch):
        result = step(self, batch)
        if number := next(left, None):
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(Trainer, "step", interrupted)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on_and_goes_on(tmp_path, capsys, monkeypatch, number, code):
    with monkeypatch.context() as patch:
        interrupt(patch, number)
        assert main([*SMALL, "--out", "a"]) == code
    out = capsys.readouterr().out
    assert f"by {signal.Signals(number).name}" in out
    command = next(line for line in out.splitlines() if "--resume" in line).split()
    assert command[:2] == ["fused-preact", "train"]
    assert main(command[1:]) == 0
    assert names(tmp_path / "a") == FILES


def test_a_run_goes_on_with_its_own_options_alone(tmp_path, capsys):
    assert main([*SMALL, "--out", "a", "--lr", "0.05"]) == 0
    before = contents(tmp_path / "a")
    capsys.readouterr()
    for arguments, words in (
        (["--lr", "0.1"], "lr 0.05 (now 0.1)"),
        (["--iterations", "9"], "epochs 1 (now none); iterations none (now 9)"),
        (["--recipe", "paper-cifar", "--data", "synthetic", "--epochs", "1"], "recipe one-cycle (now paper-cifar)"),
    ):
        assert main(["train", "--out", "a", "--resume", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("fused-preact: argument --resume: expected the options that the run in 'a' began with, got others: ")
        assert words in error
        assert error.endswith("; --accept-changes goes on with them\n")
        assert contents(tmp_path / "a") == before
    assert main([*SMALL, "--out", "a", "--lr", "0.05", "--threads", str(torch.get_num_threads()), "--resume"]) == 0
    assert main(["train", "--out", "a", "--resume", "--epochs", "2", "--accept-changes"]) == 0
    assert json.loads((tmp_path / "a/config.json").read_text())["epochs"] == 2
    assert len((tmp_path / "a/metrics.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"out": 1', '{"model": 1}'], ids=["empty", "list", "no out", "half", "no config"])
def test_a_damaged_config_is_a_sentence(tmp_path, capsys, text):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/config.json").write_text(text)
    assert main(["train", "--out", "a", "--resume"]) == 2
    assert "argument --resume: expected the config of a run in 'a/config.json', got something else" in capsys.readouterr().err


def test_resume_begins_where_nothing_was_written_yet(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/.lock").touch()
    assert main([*SMALL, "--out", "a", "--resume"]) == 0
    assert names(tmp_path / "a") == FILES


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path, capsys):
    assert main([*SMALL, "--out", "a"]) == 0
    (tmp_path / "a/notes.txt").write_text("mine")
    before = contents(tmp_path / "a")
    assert main([*SMALL, "--data", "cifar10", "--data-dir", "nowhere", "--out", "a", "--overwrite"]) == 2
    assert contents(tmp_path / "a") == before
    assert main([*SMALL, "--seed", "1", "--out", "a", "--overwrite"]) == 0
    after = contents(tmp_path / "a")
    assert after["notes.txt"] == b"mine"
    assert after["model.safetensors"] != before["model.safetensors"]


def test_another_run_in_the_folder_is_a_sentence(tmp_path, capsys):
    from fused_preact.train.lock import locked

    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a"):
        assert main([*SMALL, "--out", "a"]) == 2
    assert "expected a folder that no other run writes to, got 'a', where one is at work" in capsys.readouterr().err


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from fused_preact.cli import main
sys.exit(main(sys.argv[1:]))
"""


def limited(limit, arguments, cwd, root):
    return subprocess.run(
        [sys.executable, "-c", LIMITED.format(limit=limit), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_limit_on_the_size_of_files_is_a_sentence_and_the_checkpoint_stays(tmp_path, pytestconfig):
    pytest.importorskip("resource", reason="there are no such limits on Windows")
    # The other process has data of its own.
    cifar_files.write(tmp_path, "binary", train=60, test=20)
    assert main([*SMALL, "--data", "cifar10", "--data-dir", ".", "--out", "a"]) == 0
    before = (tmp_path / "a/checkpoint.pt").read_bytes()
    more = ["train", "--out", "a", "--resume", "--epochs", "2", "--accept-changes"]
    result = limited(100_000, more, tmp_path, pytestconfig.rootpath)
    assert result.returncode == 1
    words = "fused-preact: [Errno 27] File too large: 'a/checkpoint.pt'; the last good checkpoint is a/checkpoint.pt"
    assert result.stderr.splitlines()[-1] == words
    assert "Traceback" not in result.stderr
    assert (tmp_path / "a/checkpoint.pt").read_bytes() == before
    assert main(more) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_output_is_a_failure_and_the_checkpoint_stays(tmp_path, pytestconfig, stream):
    cifar_files.write(tmp_path, "binary", train=60, test=20)
    with open("/dev/full", "w") as full:
        other = {"stdout": "stderr", "stderr": "stdout"}[stream]
        result = subprocess.run(
            [sys.executable, "-m", "fused_preact", *SMALL, "--data", "cifar10", "--data-dir", ".", "--out", "a"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(pytestconfig.rootpath)},
            **{stream: full, other: subprocess.PIPE},
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert "Traceback" not in (getattr(result, other) or "")
