import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from fused_preact import data
from fused_preact.cli import main, paper_ablate
from fused_preact.models import paper_rows
from fused_preact.paper import ablate
from fused_preact.train.lock import locked
from fused_preact.train.trainer import Trainer

ROWS = ["1-original", "1-dropout"]
SMALL = ["paper", "ablate", "--data", "synthetic", "--depth", "20", "--iterations", "3", "--batch-size", "16", "--threads", "1"]
TWO = [*SMALL, "--rows", ",".join(ROWS), "--seeds", "2", "--device", "cpu", "--out", "a"]
REPORT = {"ablation.json", "report.json", "report.md", "curves.png"}


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path, no_drawing):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(data.DATASETS, "synthetic", partial(data.synthetic, train=64, test=20))


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_table_beside_the_papers_numbers(tmp_path, capsys):
    assert main(TWO) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("Not the paper's setting, so not comparable with its numbers: resnet20 on synthetic, 3 iterations of")
    assert [line.split()[0] for line in lines[2:5]] == ["row", *ROWS]
    assert ["6.61" in lines[3], " fail " in lines[4]] == [True, True]
    assert names(tmp_path / "a") == REPORT | set(ROWS)
    report = json.loads((tmp_path / "a/report.json").read_text())
    assert (report["seeds"], [row["row"] for row in report["rows"]]) == ([0, 1], ROWS)
    assert (tmp_path / "a/report.md").read_text().startswith(lines[0] + "\n\n| row |")
    started = [line for line in captured.err.splitlines() if line.startswith("run ")]
    assert started == [f"run {2 * seed + i} of 4: {row}, seed {seed}" for seed in (0, 1) for i, row in enumerate(ROWS, 1)]


def test_the_small_version_says_so_first(tmp_path, capsys):
    assert (
        main(["paper", "ablate", "--small", "--data", "synthetic", "--iterations", "1", "--seeds", "1", "--threads", "1", "--out", "a"])
        == 0
    )
    first = "A small version for two CPU cores, not a reproduction of the paper's tables: resnet20 on synthetic, 1 iteration of"
    assert capsys.readouterr().out.startswith(first)
    assert (tmp_path / "a/report.md").read_text().startswith(first)
    assert json.loads((tmp_path / "a/report.json").read_text())["headline"].startswith(first)


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
def test_an_interrupted_ablation_goes_on_by_the_same_command(tmp_path, capsys, monkeypatch, number, code):
    with monkeypatch.context() as patch:
        interrupt(patch, number)
        assert main(TWO) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last == f"fused-preact: interrupted by {number.name}, 4 of 4 runs are left; the same command goes on"
    assert names(tmp_path / "a") == {"ablation.json", ROWS[0]}
    assert main(TWO) == 0
    assert names(tmp_path / "a") >= REPORT


def test_other_options_are_refused(capsys):
    assert main([*TWO, "--seeds", "1"]) == 0
    capsys.readouterr()
    assert main([*TWO, "--lr", "0.2"]) == 2
    error = capsys.readouterr().err
    assert (
        error == "fused-preact: argument --out: expected a new folder, or the options that 'a' began with, got others: lr 0.1 (now 0.2)\n"
    )


def test_a_run_that_diverges_is_a_row_of_the_table(capsys):
    assert main([*TWO, "--lr", "1e20"]) == 0
    assert "fail, diverged" in capsys.readouterr().out


PROCESS = """
import sys
from functools import partial
from fused_preact import data
data.DATASETS["synthetic"] = partial(data.synthetic, train=64, test=20)
from fused_preact.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_do_each_run_once_and_the_first_reports(tmp_path, pytestconfig, capsys):
    def process(rank):
        env = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "PYTHONPATH": str(pytestconfig.rootpath), "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", PROCESS, *TWO], cwd=tmp_path, env=env, **pipes)

    first, second = [process(rank) for rank in (0, 1)]
    try:
        (out, err), (silent, others) = (worker.communicate(timeout=240) for worker in (first, second))
    finally:
        first.kill()
        second.kill()
    assert (first.returncode, second.returncode) == (0, 0), err + others
    done = [[line for line in text.splitlines() if line.startswith("run ")] for text in (err, others)]
    assert done == [[f"run {i} of 2: {row}, seed {i - 1}" for i in (1, 2)] for row in ROWS]
    assert silent == ""
    assert main([*TWO[:-1], "alone"]) == 0
    alone = capsys.readouterr().out
    assert out.replace("files: a", "files: alone") == alone


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "argument --rows: expected rows of the tables, --table, or --small, got none of them"),
        (["--rows", "1-dropuot"], "argument --rows: unknown row '1-dropuot'; did you mean '1-dropout'?"),
        (["--rows", "1-dropout,"], "argument --rows: unknown row ''; "),
        (["--table", "4"], "argument --table: expected 1, 2 or 3, got 4"),
        (["--table", "0"], "argument --table: expected a whole number of at least 1, got 0"),
        (["--table", "1", "--rows", "all"], "argument --rows: not allowed with argument --table"),
        (["--table", "2"], "argument --depth: expected 29, 164, 1001 for row 2-original-164, whose units are bottlenecks (9n+2), got 20"),
        (
            ["--rows", "1-dropout", "--depth", "26"],
            "argument --depth: expected 20, 56, 110 for row 1-dropout, whose units are of 3x3",
        ),
        (["--rows", "1-dropout", "--seeds", "0"], "argument --seeds: expected a whole number from 1 to 1000, got 0"),
        (["--rows", "1-dropout", "--seeds", "0,x"], "argument --seeds: expected a whole number from 0 to 4294967295, got 'x'"),
        (["--rows", "1-dropout", "--epochs", "1"], "argument --iterations: expected one of --epochs and --iterations, got both"),
        (["--rows", "1-dropout", "--data", "folder"], "argument --data: unknown data set 'folder'; "),
        (["--rows", "1-dropout", "--data", "cifar10"], "argument --data-dir: expected the folder or file that it is read from"),
        (["--rows", "1-dropout", "--dtype", "float16", "--device", "cpu"], "argument --dtype: expected float32 or bfloat16 on the cpu"),
        (
            ["--rows", "1-dropout", "--recipe", "one-cycle", "--warmup-iterations", "1"],
            "argument --warmup-iterations: expected a ",
        ),
        (["--rows", "1-dropout", "--out", "file/a"], "argument --out: expected a folder that can be made and written, got 'file/a'"),
        (["--rows", "all", "--paper-setting"], "argument --depth: expected none with --paper-setting, which has its own, got 20"),
        (["--small", "--paper-setting"], "argument --paper-setting: not allowed with argument --small"),
    ],
    ids=lambda value: "-".join(value).replace("--", "").replace("/", "-") if isinstance(value, list) else "",
)
def test_impossible_values_are_one_sentence_and_nothing_is_written(tmp_path, capsys, arguments, sentence):
    (tmp_path / "file").write_text("mine")
    assert main([*SMALL, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"fused-preact: {sentence}")
    assert captured.err.count("\n") == 1
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("depth", "20"),
        ("seeds", "3"),
        ("iterations", "5"),
        ("lr", "0.05"),
        ("recipe", "one-cycle"),
        ("data", "digits"),
        ("dtype", "bfloat16"),
    ],
    ids=lambda text: text.replace(".", "-"),
)
def test_the_paper_setting_has_no_other_options(tmp_path, capsys, option, value):
    assert main(["paper", "ablate", "--table", "1", "--paper-setting", f"--{option}", value]) == 2
    assert capsys.readouterr().err.startswith(
        f"fused-preact: argument --{option}: expected none with --paper-setting, which has its own, got "
    )
    assert names(tmp_path) == set()


def test_the_paper_setting_is_the_papers(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ablate, "load_data", lambda config: data.synthetic())
    monkeypatch.setattr(paper_ablate, "_trained", lambda runs, rank, world: asked.extend(runs) or 143)
    command = ["paper", "ablate", "--table", "1,3", "--paper-setting", "--cuda-graph", "--data-dir", ".", "--threads", "1"]
    assert main([*command, "--out", "a"]) == 143
    rows = [row for row in paper_rows.ROWS.values() if row.table in (1, 3)]
    assert [(run.row, run.seed) for run in asked] == [(row, seed) for seed in range(5) for row in rows]
    assert {(run.config.iterations, run.config.warmup_iterations, run.config.lr) for run in asked} == {(64_000, 400, 0.1)}


def test_a_length_takes_the_place_of_the_small_versions_own(tmp_path, capsys):
    small = ["paper", "ablate", "--small", "--rows", "1-original", "--data", "synthetic", "--seeds", "1", "--threads", "1"]
    assert main([*small, "--epochs", "1", "--out", "a"]) == 0
    assert ": resnet20 on synthetic, 1 epoch of batches of 32, 1 seed." in capsys.readouterr().out


def test_rows_and_seeds_that_come_twice_are_trained_once(capsys):
    assert main([*SMALL, "--rows", "1-original,1-original", "--seeds", "3,3", "--iterations", "1", "--device", "cpu", "--out", "a"]) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("run ")] == ["run 1 of 1: 1-original, seed 3"]


def test_a_run_that_another_process_trains_and_a_spoilt_checkpoint_are_sentences(tmp_path, capsys):
    one = [*SMALL, "--rows", "1-original", "--seeds", "1", "--device", "cpu", "--out", "a"]
    run = tmp_path / "a/1-original/seed0"
    assert main(one) == 0
    (run / "outcome.json").unlink()
    (run / "checkpoint.pt").write_bytes(b"half")
    assert main(one) == 2
    assert "fused-preact: expected a checkpoint in 'a/1-original/seed0/checkpoint.pt', got" in capsys.readouterr().err
    with locked(run):
        assert main(one) == 2
    assert "expected a folder that no other run writes to, got 'a/1-original/seed0'" in capsys.readouterr().err


def test_the_rows_own_depths_are_the_papers(capsys):
    assert main(["paper", "ablate", "--table", "1", "--paper-setting", "--depth", "none"]) == 2
    assert capsys.readouterr().err.startswith("fused-preact: argument --data-dir: expected the folder or file")
