"""benchmarks/gpu_report without a GPU: all of it with tiny sizes, and everything that may go wrong beside a measurement."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_report import primitives, rows
from benchmarks.gpu_report.__main__ import main
from benchmarks.gpu_report.child import Options
from benchmarks.gpu_report.parts import NAMES, PARTS
from benchmarks.gpu_report.runner import Runner
from fused_preact.backends import eager

EVERY_PART = [name for name in NAMES if name not in ("tests", "profile")]

# Backends that fail in every way that a GPU has.
FAKES = """
import os
import time
from types import SimpleNamespace

import torch

from fused_preact.backends import eager, register

def bn_relu(x, bn, relu):
    if x.dtype == torch.bfloat16 and x.size(1) == 64 and not relu:
        os._exit(3)
    return eager.bn_relu(x, bn, relu)

def bn_bwd(g, x, coeffs, residual_grad):
    if g.dtype == torch.float16 and g.size(1) == 16 and x is None:
        time.sleep(1000)
    return eager.bn_bwd(g, x, coeffs, residual_grad)

def bn_stats(x):
    if x.dtype == torch.float16 and x.size(1) == 16:
        raise RuntimeError("no such kernel\\n  and a long story")
    return eager.bn_stats(x)

def bn_relu_bwd(dz, x, bn, relu):
    if dz.dtype == torch.float16:
        dz.mul_(2)
    return eager.bn_relu_bwd(dz, x, bn, relu)

def bn_merge(stats):
    return eager.bn_merge(stats) * (1.01 if stats.size(2) == 64 else 1)

def wrong_weight_gradient(*args):
    out, sums, dweight, *rest = eager.bn_relu_conv2d_bwd(*args)
    return out, sums, None if dweight is None else dweight * 2, *rest

def no_forward(*args):
    raise RuntimeError("no forward")

def asleep(*args):
    time.sleep(1000)

def fake(**functions):
    return SimpleNamespace(**vars(eager) | functions)

register("broken", fake(bn_relu=bn_relu, bn_bwd=bn_bwd, bn_stats=bn_stats, bn_merge=bn_merge, bn_relu_bwd=bn_relu_bwd))
register("wrong", fake(bn_relu_conv2d_bwd=wrong_weight_gradient))
register("asleep", fake(bn_relu_conv2d_fwd=asleep))
register("raising", fake(bn_relu_conv2d_fwd=no_forward))
"""


@pytest.fixture
def fakes(tmp_path):
    path = tmp_path / "fakes.py"
    path.write_text(FAKES)
    return str(path)


def report(out, *arguments):
    """The report of a dry run with `arguments`."""
    # Where a test doesn't say how long, a busy machine should not be what ends a part.
    assert main(["--dry-run", "--device", "cpu", "--out", str(out), "--minutes", "30", *arguments]) == 0
    return json.loads((out / "gpu_report.json").read_text())


def failures(found):
    return {row["name"]: row["error"] for row in found["rows"] if not row["ok"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every part once: the folder, and the report."""
    out = tmp_path_factory.mktemp("gpu_report")
    return out, report(out)


def test_every_part_has_rows_in_the_documented_order(whole):
    _, found = whole
    assert list(dict.fromkeys(row["part"] for row in found["rows"])) == EVERY_PART == list(found["seconds"])


def test_only_what_this_machine_lacks_is_not_ok(whole):
    allowed = {"clocks": "nvidia-smi", "memcheck": "compute-sanitizer", "racecheck": "compute-sanitizer"}
    for name, error in failures(whole[1]).items():
        assert allowed[name] in error


def test_rows_have_one_form_and_say_that_the_run_was_dry(whole):
    for row in whole[1]["rows"]:
        assert row.keys() >= {"part", "name", "ok", "seconds"}
        assert row["dry"] is True
        assert row["ok"] is ("error" not in row)


def test_names_are_unique_within_a_part(whole):
    names = [(row["part"], row["name"]) for row in whole[1]["rows"]]
    assert len(names) == len(set(names))


def test_few_files_and_the_raw_rows_are_those_of_the_report(whole):
    out, found = whole
    assert {path.name for path in out.iterdir()} <= {"gpu_report.json", "rows.jsonl", "summary.txt", "log.txt"}
    raw = [row for line in (out / "rows.jsonl").read_text().splitlines() if "ok" in (row := json.loads(line))]
    assert raw == found["rows"]


def test_the_summary_has_every_section(whole):
    text = (whole[0] / "summary.txt").read_text()
    wanted = (
        "DRY RUN",
        "ceilings: copy",
        "correctness: eager bfloat16",
        "eager: conv",
        "eager: norm",
        "training step of",
        "compile graph",
        "memory ",
    )
    for words in wanted:
        assert words in text
    assert max(map(len, text.splitlines())) < 300


def test_correctness_covers_every_primitive_emit_and_dtype(whole):
    checked = [row for row in whole[1]["rows"] if row["part"] == "correctness"]
    assert {row["primitive"] for row in checked} == {name for name in vars(eager) if name.startswith("bn_")}
    assert {row["dtype"] for row in checked} == {"float32", "bfloat16", "float16", "tf32"}
    for emit in ("dz", "g", "sums", "dx", "dx_sums", "none"):
        assert any(f"bwd {emit}" in row["name"] for row in checked)


def test_primitives_have_times_bytes_and_rates(whole):
    timed = [row for row in whole[1]["rows"] if row["part"] == "primitives"]
    forms = {row["form"] for row in timed}
    assert forms == {"fwd", "bwd g", "bwd sums", "bwd dx", "conv fwd", "conv bwd", *primitives.TIMED_NORMS}
    for row in timed:
        assert row["ms"].keys() == row["call_ms"].keys() == {"median", "q1", "q3"}
        assert row["bytes"] > 0
        assert row["of_floor"] == max(row["of_copy"], row["of_matmul"])
        assert ("over_conv" in row) == (row["form"] in ("fwd", "bwd g"))


@pytest.mark.parametrize("part", ["resnet1001", "resnet164", "resnet200"])
def test_steps_compare_eager_fused_graphs_and_compile(whole, part):
    steps = {row["name"]: row for row in whole[1]["rows"] if row["part"] == part}
    assert list(steps) == [
        "agreement fused", "eager", "fused", "eager graph", "fused graph", "compile", "compile graph", "agreement compile",
    ]  # fmt: skip
    assert steps["eager"]["beside"].keys() == {"fused"}
    assert steps["fused graph"]["beside"].keys() == {"eager graph"}
    assert steps["compile"]["beside"].keys() == {"eager", "fused"}
    assert steps["fused"]["agrees"] is True


def test_memory_of_every_network_and_mode(whole):
    weighed = {row["name"] for row in whole[1]["rows"] if row["part"] == "memory" and row["saved_bytes"] > 0 and row["peak_bytes"] > 0}
    modes = ("eager", "fused layer", "fused unit", "fused segment")
    assert weighed == {f"{network} {mode}" for network in ("resnet1001", "resnet164", "resnet200") for mode in modes}


def test_a_backend_that_raises_exits_hangs_or_is_wrong_costs_its_rows_only(tmp_path, fakes):
    found = report(tmp_path / "out", "--only", "correctness", "--load", fakes, "--backend", "broken", "--patience", "2")
    failed = failures(found)
    exited, hung = "bfloat16 64x16-1x1-s1-32px broken bn_relu no relu", "float16 16x16-3x3-s1-32px broken bn_bwd no x"
    assert failed.pop(exited).startswith("the process died with exit code 3")
    assert failed.pop(hung) == "killed: no answer for 2 s"
    assert failed.pop("float16 16x16-3x3-s1-32px broken bn_stats") == "RuntimeError: no such kernel"
    assert failed.pop("float16 16x16-3x3-s1-32px broken bn_relu_bwd") == "AssertionError: bn_relu_bwd wrote to its input dz"
    assert failed.pop("bfloat16 64x16-1x1-s1-32px broken bn_merge").startswith("count: largest error 1.00e-02")
    assert failed == {}
    assert len(found["rows"]) == 4 * 24 + 10
    # Where it hung is in the log.
    assert "in bn_bwd" in (tmp_path / "out" / "log.txt").read_text()


def test_eager_is_timed_beside_backends_that_fail_or_disagree(tmp_path, fakes):
    found = report(tmp_path / "out", "--only", "resnet164", "--load", fakes, "--backend", "wrong,raising")
    by_name = {row["name"]: row for row in found["rows"]}
    assert failures(found).keys() == {"agreement fused wrong", "agreement fused raising", "fused raising"}
    assert by_name["agreement fused wrong"]["error"].startswith(
        "fused wrong does not agree with eager PyTorch: the relative error of its gradients"
    )
    assert by_name["fused wrong"]["agrees"] is False
    assert by_name["eager"]["beside"].keys() == {"fused wrong"}
    assert "NO" in (tmp_path / "out" / "summary.txt").read_text()


def test_what_finds_no_time_is_a_row(tmp_path):
    found = report(tmp_path / "out", "--minutes", "0.05")
    assert [(row["part"], row["error"]) for row in found["rows"]] == [(name, rows.NO_TIME) for name in EVERY_PART]


def test_a_part_that_hangs_ends_with_its_time(tmp_path, fakes):
    """The last part may use all that is left; its process is killed then, and the row says so."""
    start = time.monotonic()
    found = report(tmp_path / "out", "--only", "correctness", "--load", fakes, "--backend", "asleep", "--minutes", "0.14")
    assert time.monotonic() - start < 12
    assert failures(found) == {"bfloat16 16x16-3x3-s1-32px asleep fwd": "killed: the time of this part was up"}


@pytest.mark.slow
def test_several_processes_share_a_part_and_warming_up_writes_failures_only(tmp_path, fakes):
    part = next(part for part in PARTS if part.name == "primitives")
    runner = Runner(tmp_path, Options("cpu", True, ("raising",), fakes)._asdict(), time.monotonic() + 60, None, print)
    runner._children(part, 2, time.monotonic() + 50, warm=True)
    warmed = list(runner.rows)
    assert {row["error"] for row in warmed} == {"RuntimeError: no forward"}
    runner._children(part, 1, time.monotonic() + 50, warm=False)
    runner.close()
    timed = runner.rows[len(warmed) :]
    assert all(row["ok"] for row in timed)
    assert len(timed) == len({row["name"] for row in timed}) == 16


def fake_tool(folder, name, body):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)


def test_tools_run_the_numerics_and_what_they_say_is_the_row(tmp_path, monkeypatch):
    """Stand-ins for compute-sanitizer and ncu run the command they are given; racecheck finds something instead."""
    sanitizer = """
import subprocess, sys
_, _, tool, _, _, *command = sys.argv
if tool == "memcheck":
    subprocess.run(command, check=True)
    print("========= ERROR SUMMARY: 0 errors")
else:
    print("========= Race reported between Write access at kernel")
    print("========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)")
"""
    ncu = """
import subprocess, sys
subprocess.run(sys.argv[sys.argv.index("off") + 1 :], check=True)
print("Duration us 12")
"""
    fake_tool(tmp_path / "bin", "compute-sanitizer", sanitizer)
    fake_tool(tmp_path / "bin", "ncu", ncu)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    found = report(tmp_path / "out", "--only", "sanitizer,profile", "--backend", "eager")
    by_name = {row["name"]: row for row in found["rows"]}
    assert by_name["memcheck"]["errors"] == 0
    assert failures(found) == {"racecheck": "3 errors, the first: Race reported between Write access at kernel"}
    assert sum(name.startswith("memcheck bfloat16") and row["ok"] for name, row in by_name.items()) == 48
    assert by_name["ncu"]["file"] == "profile.txt"
    assert "Duration us 12" in (tmp_path / "out" / "profile.txt").read_text()


def test_the_projects_own_tests_are_rows(tmp_path):
    found = report(tmp_path / "out", "--only", "tests", "--backend", "eager")
    (row,) = (row for row in found["rows"] if row["part"] == "tests")
    assert row["name"] == "tests eager"
    assert row["passed"] > 0
    assert "failed" not in row


def test_an_interrupted_report_is_written_and_leaves_no_process(tmp_path, fakes, capsys):
    out = tmp_path / "out"

    def interrupt():
        while not (out / "rows.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    assert main(["--dry-run", "--out", str(out), "--only", "correctness", "--load", fakes, "--backend", "asleep"]) == 130
    assert "seconds: " in capsys.readouterr().out
    assert json.loads((out / "gpu_report.json").read_text())["seconds"] == {}
    assert not subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout.split()[1:]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "primitive"], "unknown part 'primitive'; did you mean 'primitives'?"),
        (["--dry-run", "--backend", "tritn"], "unknown backend 'tritn'; did you mean 'triton'?"),
        (["--dry-run", "--load", "nowhere.py"], "expected a Python file, got 'nowhere.py'"),
        (["--minutes", "0"], "argument --minutes: expected a number above 0"),
    ],
)
def test_a_usage_error_is_one_sentence(tmp_path, capsys, arguments, words):
    assert main(["--out", str(tmp_path / "out"), *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_it_says_how_to_try(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path)]) == 2
    assert "this needs a CUDA GPU and torch sees none; --dry-run tries everything" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_refused(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("")
    assert main(["--dry-run", "--out", str(tmp_path)]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
    assert main(["--dry-run", "--out", str(tmp_path / "rows.jsonl" / "below")]) == 2


@pytest.mark.slow
def test_everything_on_a_simulated_gpu(tmp_path, monkeypatch):
    """The code that only a GPU runs: warming up in parallel, spare processes, graphs, a lost device, a GPU without memory."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    simulation = str(Path(__file__).with_name("simulated_gpu.py"))
    out = tmp_path / "out"
    parts = "machine,ceilings,correctness,primitives,resnet164,memory,sanitizer"
    assert main(["--out", str(out), "--only", parts, "--load", simulation, "--backend", "sick", "--workers", "2", "--minutes", "30"]) == 0
    found = json.loads((out / "gpu_report.json").read_text())
    lost = "RuntimeError: CUDA error: an illegal memory access was encountered"
    failed = failures(found)
    for name in ("clocks", "compile", "memcheck", "racecheck"):
        assert failed.pop(name)
    convolutions = {f"{of} sick fwd" for of in ("32x128-1x1-s1-16px", "32x128-1x1-s1-16px batch 2")}
    networks = {f"resnet1001 fused {mode}" for mode in ("layer", "unit", "segment")}
    assert {name for name, error in failed.items() if error == lost} == convolutions | networks
    rest = {error for error in failed.values() if error != lost}
    assert rest == {"OutOfMemoryError: CUDA out of memory"}
    by_name = {row["name"]: row for row in found["rows"]}
    timed = ("32x128-1x1-s1-16px torch conv fwd", "32x128-1x1-s1-16px sick bwd g", "fused sick graph")
    for name in ("matmul tf32", *timed, "resnet164 fused unit"):
        assert by_name[name]["ok"]
    assert by_name["16x16-3x3-s1-32px sick fwd"]["from_memory"] is True
    assert "dry" not in by_name["copy"]
    assert len(by_name) == len(found["rows"])
