"""A run that is killed with SIGKILL at ten random moments ends bitwise as one that never was."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from fused_preact.train.writer import CHECKPOINT, CSV, JSONL, MODEL
from tests.data.cifar_files import write

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

KILLS = 10


def train(root, out, kills, span, arguments):
    command = [sys.executable, "-m", "tests.train.kills_worker", str(out), "20160316", str(kills), str(span), *arguments]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def stable(out):
    lines = [json.loads(line) for line in (out / JSONL).read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == list(range(1, 1 + len((out / CSV).read_text().splitlines()[1:])))
    return [{key: line[key] for key in line if key not in ("seconds", "images_per_s", "peak_mb", "time")} for line in lines]


def test_ten_kills(tmp_path, pytestconfig):
    root = pytestconfig.rootpath
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", "binary", train=200, test=40)
    options = ["--model", "preact_resnet20", "--recipe", "paper-cifar", "--data-dir", str(tmp_path / "data"), "--epochs", "4"]
    options += ["--batch-size", "20", "--checkpoint-every", "3", "--log-every", "3", "--threads", "1", "--warmup-iterations", "5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    train(root, whole, 0, 0.0, options)
    # Half of it on average, ten times, of which a part is done again: the run is killed from its beginning to near its end.
    said = train(root, killed, KILLS, 1.2 * (time.monotonic() - began) / KILLS, options)
    assert said.count("killed, ") == KILLS, "the run ended before it was killed often enough"
    assert "killed, a checkpoint" in said
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())
    ours, theirs = (load_file(out / MODEL) for out in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    saved = [torch.load(out / CHECKPOINT, weights_only=True) for out in (killed, whole)]
    momenta = [[state["momentum_buffer"] for state in s["optimizer"]["state"].values()] for s in saved]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))
    assert stable(killed) == stable(whole)
