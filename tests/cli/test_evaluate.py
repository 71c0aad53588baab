import json

import pytest
import torch

from fused_preact.cli import main
from fused_preact.models import create_model
from tests.data import cifar_files
from tests.data.pictures import ramp, save

TRAIN = ["train", "--model", "preact_resnet20", "--data", "cifar10", "--epochs", "1", "--batch-size", "20", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """CIFAR-10 and -100, a folder of images, and a run on the first."""
    place = tmp_path_factory.mktemp("eval")
    cifar_files.write(place, "binary", train=40, test=15)
    cifar_files.write(place, "binary", classes=100, train=40, test=15)
    for split in ("train", "val"):
        for i in range(4):
            save(ramp(60, 48, blue=20 * i), place / "images" / split / "ab"[i % 2] / f"{i}.png")
    assert main([*TRAIN, "--data-dir", str(place), "--out", str(place / "run")]) == 0
    return place


def found(capsys, *arguments):
    capsys.readouterr()
    assert main(["eval", *map(str, arguments), "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_is_enough(place, capsys):
    scores = found(capsys, place / "run")
    last = json.loads((place / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert scores["images"] == 15
    assert scores["loss"] == pytest.approx(last["test_loss"], rel=1e-5)
    assert scores["top1_error"] == pytest.approx(1 - last["test_accuracy"])
    assert scores["top5_error"] == pytest.approx(1 - last["test_top5"])


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.pt"])
def test_so_is_a_file_with_the_names(place, capsys, name):
    options = ["--model", "preact_resnet20", "--data", "cifar10", "--data-dir", place]
    assert found(capsys, place / "run" / name, *options) == found(capsys, place / "run")


def test_a_run_that_is_not_at_its_end_has_a_checkpoint(place, capsys, tmp_path):
    for name in ("config.json", "checkpoint.pt"):
        (tmp_path / name).write_bytes((place / "run" / name).read_bytes())
    assert main(["eval", str(tmp_path), "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("preact_resnet20: top-1 error ")
    assert "is not at its end; these are the weights of its last checkpoint" in captured.err
    (tmp_path / "checkpoint.pt").unlink()
    assert main(["eval", str(tmp_path)]) == 2
    assert "expected a run with model.safetensors or checkpoint.pt" in capsys.readouterr().err


def test_crops_of_folders_are_other_views(place, capsys, tmp_path):
    torch.save(create_model("preact_resnet18", num_classes=2).state_dict(), tmp_path / "weights.pt")
    more = ["--model", "preact_resnet18", "--data", "folder", "--data-dir", place / "images", "--workers", "0"]

    def loss(*options):
        scores = found(capsys, tmp_path / "weights.pt", *more, *options)
        assert scores["images"] == 4
        return scores["loss"]

    plain = loss()
    assert plain == loss("--crop", "224", "--resize", "256")
    assert loss("--crop", "320") == loss("--crop", "320", "--resize", "320")
    others = [loss("--crop", "40"), loss("--crop", "320"), loss("--resize", "300"), loss("--ten-crop")]
    assert len({plain, *others}) == 5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "argument PATH: expected the folder of a run or a file of weights, got 'nowhere', which is not there"),
        (["."], "argument PATH: expected the folder of a run, got '.', which has no config.json"),
        (["run/checkpoint.pt"], "argument --model: expected the name of the network, which a file of weights does not tell"),
        (["run/checkpoint.pt", "--model", "preact_resnet20"], "argument --data: expected the name of a data set"),
        (["run/config.json", "--model", "preact_resnet20", "--data", "digits"], "argument PATH: expected a file that torch.load"),
        (
            ["run", "--model", "preact_resnet29"],
            "argument PATH: expected weights of preact_resnet29 with 10 classes in 'run/model.safetensors'",
        ),
        (
            ["run", "--data", "cifar100", "--data-dir", "."],
            "argument PATH: expected weights of preact_resnet20 with 100 classes in 'run/model",
        ),
        (["run", "--data-dir", "nowhere"], "argument --data-dir: expected a folder with cifar-10-batches-py/"),
        (
            ["run", "--data", "folder", "--data-dir", "images", "--resize", "100"],
            "argument --resize: expected at least the crop, which is 224, got 100",
        ),
        (["run", "--ten-crop"], "argument --ten-crop: expected --data folder with it, got cifar10, whose images are looked at whole"),
        (["run", "--crop", "24"], "argument --crop: expected --data folder with it, got cifar10, whose images are looked at whole"),
        (["run", "--resize", "24"], "argument --resize: expected --data folder with it, got cifar10, whose images are looked at whole"),
        (["run", "--dtype", "float16", "--device", "cpu"], "argument --dtype: expected float32 or bfloat16 on the cpu, got 'float16'"),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, list) else "",
)
def test_impossible_values_are_one_sentence(place, capsys, monkeypatch, arguments, sentence):
    monkeypatch.chdir(place)
    capsys.readouterr()
    assert main(["eval", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"fused-preact: {sentence}")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 600
