"""Runs of several gloo processes under torchrun, and of processes that get signals."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from fused_preact.cli import main, train
from fused_preact.cli.arguments import UsageError
from fused_preact.data.source import DataError, Shard
from fused_preact.train.config import TrainConfig
from fused_preact.train.world import World
from fused_preact.train.writer import CHECKPOINT, CONFIG, CSV, JSONL, MODEL
from tests.data import cifar_files
from tests.data.pictures import ramp, save

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")

# Three epochs of three steps; 23 test images, which two processes can't share evenly.
OPTIONS = ["--model", "preact_resnet20", "--data", "cifar10", "--epochs", "3", "--batch-size", "20", "--log-every", "1", "--device", "cpu"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fused_preact"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    cifar_files.write(folder, "binary", train=60, test=23)
    return folder


def options(place, out, *more):
    return ["train", *OPTIONS, "--data-dir", str(place), "--out", str(place / out), *more]


def start(root, command, **more):
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **more
    )


def finished(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out, err


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def lines(out):
    found = [json.loads(line) for line in (out / JSONL).read_text().splitlines()]
    return [{key: line[key] for key in line if key not in ("seconds", "images_per_s", "peak_mb", "time")} for line in found]


@pytest.fixture(scope="module")
def whole(place, pytestconfig):
    """A run of two processes that nothing disturbs, and what it printed."""
    return place / "whole", finished(start(pytestconfig.rootpath, [*TORCHRUN, *options(place, "whole")]))


@pytest.fixture(scope="module")
def stopped(place, whole, pytestconfig):
    """The same run, whose torchrun is told to end after the first step."""
    process = start(pytestconfig.rootpath, [*TORCHRUN, *options(place, "stopped", "--checkpoint-every", "1")])
    wait_for(place / "stopped" / CHECKPOINT, process)
    process.terminate()
    process.communicate(timeout=120)
    return place / "stopped"


def test_one_process_writes_and_speaks(whole):
    out, (said, told) = whole
    assert said.count("trained  ") == 1
    assert [told.count(f"epoch {i}/3: ") for i in (1, 2, 3)] == [1, 1, 1]
    assert json.loads((out / CONFIG).read_text())["processes"] == 2
    assert [line["step"] for line in lines(out) if line["kind"] == "step"] == list(range(1, 10))


def test_no_test_image_is_counted_twice(whole, capsys):
    """What both processes found of their halves is what one finds of the whole."""
    out, _ = whole
    assert main(["eval", str(out), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = lines(out)[-1]
    assert 1 - found["top1_error"] == pytest.approx(last["test_accuracy"], abs=1e-12)
    assert found["loss"] == pytest.approx(last["test_loss"], rel=1e-5)


def test_a_signal_ends_all_processes_after_the_same_step_and_they_go_on(place, whole, stopped, pytestconfig):
    saved = torch.load(stopped / CHECKPOINT, weights_only=True)
    assert 1 <= saved["step"] < 9
    again = place / "again"
    shutil.copytree(stopped, again)
    finished(start(pytestconfig.rootpath, [*TORCHRUN, *options(place, "again", "--resume")]))
    ours, theirs = (load_file(out / MODEL) for out in (again, whole[0]))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert lines(again) == lines(whole[0])


def test_one_process_goes_on_where_two_were(place, whole, stopped):
    alone = place / "alone"
    shutil.copytree(stopped, alone)
    assert main(options(place, "alone", "--resume")) == 0
    assert json.loads((alone / CONFIG).read_text())["processes"] == 1
    assert [line["step"] for line in lines(alone)] == [line["step"] for line in lines(whole[0])]
    first, second = (next(line for line in lines(out) if line["step"] == 1) for out in (alone, whole[0]))
    assert first == second


def test_processes_that_share_statistics_are_one(place, pytestconfig):
    """Steps from the same weights: later ones would tell of rounding, which early training amplifies."""
    more = ["--sync-bn", "--lr", "1e-9"]
    finished(start(pytestconfig.rootpath, [*TORCHRUN, *options(place, "shared", *more)]))
    assert main(options(place, "one", *more[1:])) == 0
    losses = [[line["loss"] for line in lines(place / out) if line["kind"] == "step"] for out in ("shared", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    ours, theirs = (load_file(place / out / MODEL) for out in ("shared", "one"))
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-5)


def test_usage_is_explained_by_one_process(monkeypatch, capsys, place):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["train", "--lr", "0"]) == 2
    assert capsys.readouterr().err == ""


def test_a_batch_that_two_processes_cannot_share(monkeypatch, place):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    train._refuse_impossible(TrainConfig(out=place, batch_size=20))
    with pytest.raises(UsageError, match=r"^argument --batch-size: expected a multiple of the 2 processes, got 21$"):
        train._refuse_impossible(TrainConfig(out=place, batch_size=21))


def test_a_file_that_one_process_alone_cannot_read_is_explained_by_it(monkeypatch, capsys, place):
    """A damaged image is met by whoever decodes it."""

    def fail(*args, **kwargs):
        raise DataError("root: expected an image, got none")

    monkeypatch.setattr(train, "fit", fail)
    monkeypatch.setattr(train, "_agreed", lambda args, world: TrainConfig(out=place))
    for rank, said in ((0, ""), (1, "fused-preact: process 1: argument --data-dir: expected an image, got none\n")):
        with pytest.raises(DataError):
            train._train(argparse.Namespace(resume=False, overwrite=False), World(Shard(rank, 2)))
        assert capsys.readouterr().err == said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_lets_workers_finish_the_step(tmp_path, pytestconfig, number):
    """Ctrl-C on a terminal, or a scheduler's notice, reaches the processes that decode images too."""
    for split, images in (("train", 12), ("val", 2)):
        for i in range(images):
            save(ramp(40, 40, blue=10 * i), tmp_path / split / "ab"[i % 2] / f"{i}.png")
    command = [sys.executable, "-m", "fused_preact", "train", "--model", "preact_resnet18", "--data", "folder", "--data-dir", str(tmp_path)]
    command += ["--crop-size", "32", "--workers", "2", "--batch-size", "4", "--epochs", "200", "--checkpoint-every", "1", "--device", "cpu"]
    process = start(pytestconfig.rootpath, [*command, "--out", str(tmp_path / "out")])
    try:
        wait_for(tmp_path / "out" / CHECKPOINT, process)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number, err
    assert f"by {number.name}" in out
    assert "Traceback" not in err
    assert (tmp_path / "out" / CSV).exists()
