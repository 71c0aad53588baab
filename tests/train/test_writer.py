import csv
import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fused_preact._extras import MissingExtraError
from fused_preact.train.record import EpochRecord, History, StepRecord
from fused_preact.train.writer import RunWriter
from tests.train.histories import cut, history

RECORDS = {"metrics.csv", "metrics.jsonl", "events.out.tfevents.fused_preact"}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_table_has_every_epoch_and_all_digits_of_what_is_not_measured(tmp_path):
    record = EpochRecord(2, 123456789, 0.1, 1 / 3, 0.5, math.nan, 0.25, 1.0, 12.3456789, 1e6 / 3, 1234.5678, 1700000000.123456)
    RunWriter(tmp_path).records(History([], [record]))
    with open(tmp_path / "metrics.csv", newline="") as file:
        header, row = csv.reader(file)
    assert tuple(header) == EpochRecord._fields
    assert row == ["2", "123456789", "0.1", "0.333333", "0.5", "nan", "0.25", "1", "12.3457", "333333", "1234.57", "1700000000.123456"]


def test_the_lines_are_all_records_in_order_exactly(tmp_path):
    whole = history(3)
    RunWriter(tmp_path).records(whole)
    lines = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {next(iter(line)) for line in lines} == {"kind"}
    read = {"step": (StepRecord, []), "epoch": (EpochRecord, [])}
    for line in lines:
        kind, records = read[line.pop("kind")]
        records.append(kind(**line))
    assert History(read["step"][1], read["epoch"][1]) == whole
    # The steps of an epoch come before it.
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 20, 25, 30, 35, 40, 40, 45, 50, 55, 60, 60]
    assert ["test_loss" in line for line in lines] == [False, False, False, False, True] * 3


def test_json_has_null_for_what_is_not_finite(tmp_path):
    writer = RunWriter(tmp_path)
    writer.records(history(2, lost_after=30))
    lines = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in lines if line["kind"] == "step"] == [False] * 6 + [True] * 2
    writer.config({"lr": math.inf, "steps": (1, math.nan), "inner": {"a": -math.inf}, "name": "ä", "epochs": 2})
    assert strict((tmp_path / "config.json").read_text(encoding="utf-8")) == {
        "lr": None,
        "steps": [1, None],
        "inner": {"a": None},
        "name": "ä",
        "epochs": 2,
    }


def test_writing_again_changes_nothing(tmp_path):
    writer = RunWriter(tmp_path)
    writer.records(history(2))
    before = contents(tmp_path)
    writer.records(history(2))
    RunWriter(tmp_path).records(history(2))
    assert contents(tmp_path) == before
    assert set(before) == RECORDS


@pytest.mark.parametrize("killed", [pytest.param(33, id="within-an-epoch"), pytest.param(60, id="at-the-end")])
@pytest.mark.parametrize(
    "checkpoint", [pytest.param(0, id="none"), pytest.param(20, id="of-an-epoch"), pytest.param(25, id="within-an-epoch")]
)
@pytest.mark.parametrize("next_step", [pytest.param(0, id="at-once"), pytest.param(10, id="at-the-next-checkpoint")])
def test_a_run_that_goes_on_from_an_earlier_checkpoint_forgets_what_came_after(tmp_path, killed, checkpoint, next_step):
    first, again = history(3), history(3, seed=1)
    began = cut(first, checkpoint)

    def resumed(step):
        new = cut(again, step)
        return History(began.steps + new.steps[len(began.steps) :], began.epochs + new.epochs[len(began.epochs) :])

    old, fresh = tmp_path / "old", tmp_path / "fresh"
    RunWriter(old).records(cut(first, killed))
    writer, never_killed = RunWriter(old), RunWriter(fresh)
    never_killed.records(began)
    for step in (checkpoint + next_step, 60):
        writer.records(resumed(step))
        never_killed.records(resumed(step))
        assert contents(old) == contents(fresh)


KILLED = """
import os, signal, sys
from pathlib import Path
from fused_preact.train.writer import RunWriter
from tests.train.histories import cut, history

def run(out, flushes):
    writer = RunWriter(out)
    writer.records(cut(history(2), 20))
    writer.checkpoint({"step": 20})
    fsync = os.fsync

    def deadly(descriptor):
        nonlocal flushes
        flushes -= 1
        if flushes < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = deadly
    writer.records(history(2))
    writer.checkpoint({"step": 40})

for flushes in range(int(sys.argv[2])):
    if (child := os.fork()) == 0:
        run(Path(sys.argv[1]) / str(flushes), flushes)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_wherever_a_run_is_killed_its_checkpoint_and_its_records_agree_after_the_resume(tmp_path):
    # Two for each file, one for the event file.
    flushes = 7
    run = subprocess.run([sys.executable, "-c", KILLED, tmp_path, str(flushes + 1)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(-signal.SIGKILL)] * flushes + ["0"]
    steps = []
    for i in range(flushes + 1):
        killed, fresh = tmp_path / str(i), tmp_path / f"fresh{i}"
        steps.append(torch.load(killed / "checkpoint.pt", weights_only=True)["step"])
        for folder in (killed, fresh):
            RunWriter(folder).records(cut(history(2), steps[-1]))
        (killed / "checkpoint.pt").unlink()
        assert contents(killed) == contents(fresh)
    # The last flush but one is that of the checkpoint itself, before its rename.
    assert steps == [20] * 6 + [40] * 2


def test_the_model_is_its_state_dict(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    RunWriter(tmp_path).model(model)
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(read[key], value) for key, value in model.state_dict().items())


def test_the_checkpoint_loads_without_trust(tmp_path):
    whole = history(1)
    state = {"model": {"w": torch.arange(3.0)}, "step": 20, "name": "a", "none": None, "steps": [tuple(record) for record in whole.steps]}
    RunWriter(tmp_path).checkpoint(state)
    read = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert torch.equal(read.pop("model")["w"], state.pop("model")["w"])
    assert read == state
    assert [StepRecord(*record) for record in read["steps"]] == whole.steps


def test_what_killed_runs_left_is_removed(tmp_path):
    (tmp_path / ".checkpoint-0123abcd.pt").write_text("half of it")
    (tmp_path / "notes.txt").write_text("somebody's")
    RunWriter(tmp_path)
    assert set(contents(tmp_path)) == {"notes.txt"}


@pytest.mark.parametrize("module", ["matplotlib", "safetensors.torch"])
def test_a_missing_package_is_told_before_anything_is_written(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"^training needs {module.split('.')[0]}, .*pip install 'fused-preact\[train\]'$"):
        RunWriter(tmp_path / "run")
    assert not (tmp_path / "run").exists()


WRITES = {
    "config.json": "writer.config({'a': 'b' * 400_000})",
    "metrics.csv": "writer.records(History([], history(3).epochs * 2000))",
    "metrics.jsonl": "writer.records(History(history(3).steps * 2000, []))",
    "events.out.tfevents.fused_preact": "limit(3_000); writer.records(history(1)); writer.records(history(3))",
    "model.safetensors": "writer.model(nn.Linear(1000, 200))",
    "checkpoint.pt": "writer.checkpoint({'a': torch.zeros(100_000), 'b': torch.zeros(100_000)})",
    "curves.png": "limit(20_000); writer.curves(history(3), 'title')",
}

FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
import torch
from torch import nn
from fused_preact.train.record import History
from fused_preact.train.writer import RunWriter
from tests.train.histories import history

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
told = {}
for name, code in json.loads(sys.argv[2]).items():
    writer = RunWriter(Path(sys.argv[1]) / name)
    limit(100_000)
    try:
        exec(code)
    except OSError as error:
        told[name] = str(error)
    limit(resource.RLIM_INFINITY)
print(json.dumps(told))
"""


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX")
def test_a_full_disk_is_an_oserror_that_names_the_file_and_leaves_no_half(tmp_path):
    run = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path, json.dumps(WRITES)], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == {name: f"[Errno 27] File too large: '{tmp_path / name / name}'" for name in WRITES}
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")}
    # The event file grows in place, and its test tells how it recovers; the records before it are whole.
    events = "events.out.tfevents.fused_preact"
    assert left == {f"{events}/{name}" for name in RECORDS} | {"metrics.jsonl/metrics.csv"}
