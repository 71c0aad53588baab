import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from fused_preact import data
from fused_preact.models.paper_rows import ROWS
from fused_preact.paper import ablate
from fused_preact.paper.ablate import ASKED, OUTCOME, PAPER_SEEDS, Ablation, AblationError, network, prepare, share, train
from fused_preact.paper.ablate_report import collect, fields, markdown, text, write
from fused_preact.train import loop
from fused_preact.train.loop import fit
from fused_preact.train.trainer import Trainer
from fused_preact.train.writer import JSONL

NAMES = ("1-original", "1-scale-shortcut")


@pytest.fixture(autouse=True)
def small_data(monkeypatch, no_drawing):
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=64, test=20))


def ablation(out, names=NAMES, seeds=(0, 1), **given):
    """Six steps, an epoch and a half, of 16 images each."""
    given = {"data": "synthetic", "iterations": 6, "batch_size": 16, "depths": (20,), "threads": 1} | given
    return Ablation.of([ROWS[name] for name in names], seeds, out=out, **given)


def trained(asked, rank=0, world=1):
    """What is left of it, done; which runs these were."""
    runs = asked.runs()
    prepare(asked, runs)
    return [run if isinstance(run, str) else (run.row.id, run.seed) for run in train(share(runs, rank, world))]


def report(asked):
    return fields(asked, collect(asked.runs()))


def stamps(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An ablation that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=64, test=20))
        asked = ablation(tmp_path_factory.mktemp("whole"))
        trained(asked)
        write(asked, collect(asked.runs()))
    return asked


def test_the_report_has_the_numbers_of_the_runs(whole, tmp_path):
    rows = report(whole)["rows"]
    assert [row["row"] for row in rows] == list(NAMES)
    for row in rows:
        runs = [run for run in whole.runs() if run.row.id == row["row"]]
        own = [fit(replace(run.config, out=tmp_path / run.row.id / str(run.seed))).history.epochs[-1] for run in runs]
        for name, values in (
            ("train_loss", [last.train_loss for last in own]),
            ("test_error", [100 * (1 - last.test_accuracy) for last in own]),
        ):
            assert row[name] == {"median": sum(values) / 2, "min": min(values), "max": max(values)}
            assert [run[name][-1] for run in row["runs"]] == values
        assert [run["steps"] for run in row["runs"]] == [[4, 6], [4, 6]]
    assert rows[0]["train_loss"] != rows[1]["train_loss"]
    assert json.loads((whole.out / "report.json").read_text()) == json.loads(json.dumps(report(whole)))


class Stopped(Exception):
    """Stands for a kill: nothing of the run's own handles it."""


def at_step(monkeypatch, number, do):
    """Let `do` happen after step `number` (from 1) of all that follow."""
    step, count = Trainer.step, iter(range(1, 10_000))

    def counted(self, batch):
        result = step(self, batch)
        if next(count) == number:
            do()
        return result

    monkeypatch.setattr(Trainer, "step", counted)


def killed():
    raise Stopped


@pytest.mark.parametrize(
    ("step", "finished", "left"), [(7, 1, 3), (11, 1, 3), (2, 0, 4)], ids=["after one run", "in a run after its checkpoint", "at once"]
)
def test_a_killed_ablation_goes_on_and_ends_the_same(whole, tmp_path, monkeypatch, step, finished, left):
    asked = ablation(tmp_path)
    with monkeypatch.context() as patch:
        at_step(patch, step, killed)
        with pytest.raises(Stopped):
            trained(asked)
    done = [run.config.out for run in asked.runs() if run.done]
    assert len(done) == finished
    before = [stamps(folder) for folder in done]
    assert len(trained(asked)) == left
    assert [stamps(folder) for folder in done] == before
    assert report(asked) == report(whole)


def test_a_signal_ends_it_and_it_goes_on(whole, tmp_path, monkeypatch):
    asked = ablation(tmp_path)
    with monkeypatch.context() as patch:
        at_step(patch, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert trained(asked) == [("1-original", 0), ("1-scale-shortcut", 0), "SIGTERM"]
    assert trained(asked) == [("1-scale-shortcut", 0), ("1-original", 1), ("1-scale-shortcut", 1)]
    assert report(asked) == report(whole)


@pytest.mark.parametrize("lr", [0.1, 1e20], ids=["to its end", "diverged"])
def test_a_signal_during_the_last_evaluation_of_a_run_ends_what_follows_it(tmp_path, monkeypatch, lr):
    asked = ablation(tmp_path, NAMES[:1], lr=lr, iterations=1)
    evaluate = loop.evaluate

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", interrupted)
        assert trained(asked) == [("1-original", 0), "SIGTERM"]
    assert [run.done for run in asked.runs()] == [True, False]
    assert trained(asked) == [("1-original", 1)]


def test_nothing_is_done_twice(whole):
    before = [stamps(run.config.out) for run in whole.runs()]
    assert trained(whole) == []
    assert [stamps(run.config.out) for run in whole.runs()] == before


def test_processes_share_the_runs(whole, tmp_path):
    asked = ablation(tmp_path)
    shares = [trained(asked, rank, 2) for rank in (0, 1)]
    assert shares == [[("1-original", 0), ("1-original", 1)], [("1-scale-shortcut", 0), ("1-scale-shortcut", 1)]]
    assert report(asked) == report(whole)


def test_rows_of_the_same_network_are_trained_once(tmp_path):
    """In the folder that is there, or else that of the first row; with shortcuts named or not."""
    same = ("1-original", "1-dropout", "2-original-110", "3-cifar10-110-original")
    assert trained(ablation(tmp_path, same[2:3], seeds=(1,))) == [("2-original-110", 1)]
    asked = ablation(tmp_path, same)
    assert trained(asked, rank=0, world=2) == [("1-original", 0)]
    assert trained(asked, rank=1, world=2) == [("1-dropout", 0), ("1-dropout", 1)]
    assert trained(asked) == []
    assert {path.name for path in tmp_path.iterdir()} - {ASKED} == {"1-original", "1-dropout", "2-original-110"}
    found = {row["row"]: row["runs"] for row in report(asked)["rows"]}
    assert tuple(found) == same
    assert found["1-original"] == found["2-original-110"] == found["3-cifar10-110-original"] != found["1-dropout"]


def test_on_one_data_set_nine_rows_are_networks_of_rows_before_them():
    asked = Ablation.of(tuple(ROWS.values()), (0,), out=Path("runs"), data="synthetic")
    folders = {run.row.id: run.config.out.parent.name for run in asked.runs()}
    assert {row for row, folder in folders.items() if row != folder} == {
        "2-original-110", "3-cifar10-110-original", "3-cifar10-110-preact", "3-cifar10-164-original", "3-cifar10-164-preact",
        "3-cifar100-164-original", "3-cifar100-164-preact", "3-cifar100-1001-original", "3-cifar100-1001-preact",
    }  # fmt: skip
    assert len(share(asked.runs(), 0, 1)) == len(ROWS) - 9


def test_rows_and_seeds_may_be_added(whole, tmp_path):
    assert trained(ablation(tmp_path, NAMES[:1], seeds=(1,))) == [("1-original", 1)]
    assert trained(ablation(tmp_path)) == [("1-original", 0), ("1-scale-shortcut", 0), ("1-scale-shortcut", 1)]
    assert report(ablation(tmp_path)) == report(whole)


def test_a_loss_that_diverges_is_a_failure_of_the_row_and_not_of_the_ablation(tmp_path):
    asked = ablation(tmp_path, NAMES[:1], lr=1e20)
    assert len(trained(asked)) == 2
    (row,) = report(asked)["rows"]
    assert row["fail"] is True
    assert row["test_error"] == row["train_loss"] == {"median": None, "min": None, "max": None}
    assert all(run["diverged"].startswith("training diverged: ") for run in row["runs"])
    assert "| fail, diverged | diverged |" in markdown(asked, collect(asked.runs()))
    assert trained(asked) == []
    write(asked, collect(asked.runs()))
    json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_the_median_decides_whether_a_row_failed(whole):
    result, _ = collect(whole.runs())
    low, high = (result.curves[0]._replace(test_error=[error], train_loss=[1.0], steps=[6]) for error in (20.0, 20.1))
    lost = low._replace(diverged="training diverged")
    for curves, failed in (
        ([low, low, high], False),
        ([low, high, high], True),
        ([low, low, lost], False),
        ([low, lost, lost], True),
    ):
        assert result._replace(curves=curves).failed is failed


@pytest.mark.parametrize(
    ("name", "content"),
    [(OUTCOME, "{"), (OUTCOME, "[]"), (OUTCOME, "{}"), (JSONL, ""), (JSONL, '{"kind": "epoch"}\n'), (JSONL, "half of")],
    ids=["half-an-outcome", "list", "no-outcome", "no-epoch", "no-numbers", "half-a-line"],
)
def test_damaged_files_of_a_run_are_a_sentence(whole, tmp_path, name, content):
    (run, *_) = whole.runs()
    folder = shutil.copytree(run.config.out, tmp_path / "run")
    (folder / name).write_text(content)
    words = r"^argument --out: expected the outcome.json and metrics.jsonl of a run in .*run', got something else: "
    with pytest.raises(AblationError, match=words):
        collect([run._replace(config=replace(run.config, out=folder))])


def test_a_report_takes_no_file_from_a_process_that_begins_late(whole):
    """Under torchrun it may be writing what was asked for while the first process, whose runs are done, reports already."""
    late, killed = (whole.out / f".{name}" for name in ("ablation-0123abcd.json", "report-0123abcd.json"))
    for path in (late, killed):
        path.write_text("{")
    write(whole, collect(whole.runs()))
    assert (late.exists(), killed.exists()) == (True, False)
    late.unlink()


def test_a_row_is_compared_with_the_original_of_its_network(whole):
    original, scaled = collect(whole.runs())
    better, worse = (
        scaled._replace(curves=[c._replace(test_error=[c.test_error[-1] + by]) for c in original.curves]) for by in (-5.0, 2.5)
    )
    same = scaled._replace(curves=original.curves)
    asked = {"-5.00, higher with 0 of 2 seeds": better, "+2.50, higher with 2 of 2 seeds": worse, "+0.00, higher with 0 of 2 seeds": same}
    for words, row in asked.items():
        assert text(whole, [original, row]).splitlines()[4].endswith(words)
    own, other = fields(whole, [original, worse])["rows"]
    assert (own["baseline"], own["higher_error_with_seeds"], own["paper_test_error"]) == (None, None, 6.61)
    assert (other["baseline"], other["higher_error_with_seeds"], other["paper_test_error"]) == ("1-original", 2, None)


@pytest.mark.parametrize(
    ("row", "changed", "found"),
    [
        ("2-full-preact-110", {}, "1-original"),
        ("1-dropout", {"model": "resnet56"}, None),
        ("1-dropout", {"data": "digits"}, None),
        ("3-cifar10-110-1layer-preact", {}, None),
    ],
    ids=["order", "other-depth", "other-data", "one-layer"],
)
def test_the_original_is_that_of_the_network_and_the_data(whole, row, changed, found):
    original, _ = collect(whole.runs())
    other = original._replace(row=ROWS[row], config=replace(original.config, **changed))
    # In this order: the first that fits is taken.
    assert fields(whole, [other, original])["rows"][0]["baseline"] == found


def test_the_paper_setting_is_the_papers(tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "load_data", lambda config: data.synthetic())
    asked = Ablation.of(list(ROWS.values()), PAPER_SEEDS, out=tmp_path, data_dir=tmp_path, device="cpu", threads=1)
    assert asked.paper_setting
    assert replace(asked, settings=replace(asked.settings, cuda_graph=True)).paper_setting
    runs = asked.runs()
    assert len(runs) == 5 * len(ROWS)
    for run in runs:
        c = run.config
        # Of a network that several rows have, the options are those of the first.
        assert (c.model, {"shortcut": "identity"} | c.model_options, c.data) == (
            run.row.model,
            {"shortcut": "identity"} | run.row.options,
            run.row.data,
        )
        assert (c.iterations, c.epochs, c.batch_size, c.dtype) == (64_000, None, 128, "float32")
        assert (c.schedule, c.lr, c.milestones, c.warmup_iterations, c.warmup_lr) == ("steps", 0.1, (32_000, 48_000), 400, 0.01)
        assert (c.momentum, c.nesterov, c.weight_decay, c.decay) == (0.9, False, 1e-4, "conv")
        assert c.out.name == f"seed{run.seed}"
    assert {run.seed for run in runs} == {0, 1, 2, 3, 4}
    # Five rows of Tables 2 and 3 are rows before them.
    assert len(share(runs, 0, 1)) == 5 * (len(ROWS) - 5)


@pytest.mark.parametrize(
    "other",
    [{"lr": 0.05}, {"iterations": 32_000}, {"depths": (20, 29)}, {"data": "cifar10"}, {"batch_size": 64}, {"seeds": (0, 1, 2)}],
    ids=lambda other: next(iter(other)),
)
def test_anything_else_is_not_the_papers(tmp_path, other):
    given = {"seeds": PAPER_SEEDS, "out": tmp_path} | other
    assert not Ablation.of([ROWS["1-original"]], **given).paper_setting


@pytest.mark.parametrize(
    ("given", "milestones", "warmup"),
    [
        ({"iterations": 640}, (320, 480), 4),
        ({"iterations": None, "epochs": 160}, (80, 120), 4),
        ({"iterations": 640, "warmup_iterations": 7}, (320, 480), 7),
        ({"iterations": 640, "recipe": "one-cycle"}, (), 0),
    ],
    ids=["iterations", "epochs", "given", "one-cycle"],
)
def test_milestones_and_warmup_keep_their_place(tmp_path, given, milestones, warmup):
    config = ablation(tmp_path, **given).runs()[0].config
    assert (config.milestones, config.warmup_iterations) == (milestones, warmup)


@pytest.mark.parametrize(
    ("row", "depths", "model"),
    [
        ("1-dropout", (), "resnet110"),
        ("1-dropout", (56,), "resnet56"),
        ("2-full-preact-164", (20, 29), "resnet29"),
        ("3-cifar10-110-1layer-preact", (20, 29), "resnet20"),
    ],
)
def test_a_depth_is_that_of_the_rows_kind(row, depths, model):
    assert network(ROWS[row], depths) == model


@pytest.mark.parametrize(
    ("row", "depths", "words"),
    [
        (
            "1-dropout",
            (26,),
            r"expected 20, 56, 110 for row .*, whose units are of 3x3 layers \(6n\+2\), got 26; the nearest is 20$",
        ),
        ("2-full-preact-164", (110,), r"expected 29, 164, 1001 for row .* bottlenecks \(9n\+2\), got 110; the nearest is 164$"),
    ],
    ids=["basic", "bottleneck"],
)
def test_a_depth_that_does_not_fit_is_a_sentence(row, depths, words):
    with pytest.raises(AblationError, match=f"^argument --depth: {words}"):
        network(ROWS[row], depths)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr": 0.2}, r"lr 0.1 \(now 0.2\)"),
        ({"depths": (56,)}, r"depth 20 \(now 56\)"),
        ({"small": True}, r"small False \(now True\)"),
        ({"data": "digits"}, r"data synthetic \(now digits\)"),
    ],
    ids=["lr", "depth", "small", "data"],
)
def test_a_folder_of_other_options_is_refused_and_left_alone(whole, given, words):
    before = stamps(whole.out / "1-original" / "seed0"), (whole.out / ASKED).read_bytes()
    with pytest.raises(AblationError, match=rf"^argument --out: expected a new folder, or the options that .* began with, .*: {words}$"):
        trained(ablation(whole.out, **given))
    assert (stamps(whole.out / "1-original" / "seed0"), (whole.out / ASKED).read_bytes()) == before


def test_a_run_of_other_options_is_refused(tmp_path):
    asked = ablation(tmp_path, NAMES[:1], seeds=(0,))
    run = asked.runs()[0]
    fit(replace(run.config, iterations=1, epochs=None))
    (run.config.out.parent.parent / ASKED).write_text(json.dumps({"depth": [20], "small": False, "data": "synthetic"} | settings(asked)))
    with pytest.raises(AblationError, match=r"seed0' began with, got others: iterations 1 \(now 6\)$"):
        trained(asked)
    assert not (run.config.out / OUTCOME).exists()


def settings(asked):
    return {"settings": asked.settings.as_json()}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", "mine", "expected a new or empty folder or that of an ablation, got .* which has no ablation.json"),
        (ASKED, "[]", "expected an ablation in .*ablation.json', got something else"),
        (ASKED, '{"rows": []}', "expected an ablation in .*ablation.json', got something else"),
        (ASKED, "{", "expected an ablation in .*ablation.json', got something else"),
    ],
    ids=["other files", "list", "no settings", "half"],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(AblationError, match=f"^argument --out: {words}"):
        trained(ablation(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content
