"""What the processes of benchmarks/gpu_report agree on: jobs, rows, bytes, order and the summary."""

import time

import pytest
import torch

from benchmarks.gpu_report import calls, primitives, rows, table
from benchmarks.gpu_report.child import Job, Options
from fused_preact.backends import eager
from fused_preact.bench.accuracy import objection
from fused_preact.models.shapes import Layer


def job(path, **changes):
    return Job("part", "module", str(path / "rows.jsonl"), 1, time.monotonic() + 60, Options("cpu", True)._asdict(), **changes)


def test_the_last_to_take_turns_is_blamed(tmp_path):
    mine = job(tmp_path)
    sick = iter(["well"])
    functions = {"well": lambda: None, "ill": lambda: next(sick), "well too": lambda: None}
    times = mine.take_turns(functions, lambda name: {"form": name}, rounds=3, warmup=1, sample_ms=0.0)
    assert times.keys() == {"well"}
    found = {row["name"]: row for row in rows.Tail(mine.file).read() if "ok" in row}
    assert found.keys() == {"ill", "well too"}
    assert found["ill"]["form"] == "ill"


def test_a_new_process_leaves_out_what_is_written(tmp_path):
    job(tmp_path).measure("done", lambda: {"n": 1})
    mine = job(tmp_path)
    assert mine.skip == {"done"}
    assert mine.attempt("done", lambda: pytest.fail("measured again")) is None


def test_without_time_a_job_only_says_so(tmp_path):
    mine = job(tmp_path)
    mine.end = time.monotonic() - 1
    assert mine.attempt("late", lambda: pytest.fail("started")) is None
    assert rows.Tail(mine.file).read()[0]["error"] == rows.NO_TIME


def test_rows_survive_half_a_line_and_numbers_that_json_has_not(tmp_path):
    path = tmp_path / "rows.jsonl"
    tail = rows.Tail(path)
    assert tail.read() == []
    rows.append(path, {"name": "a", "ms": float("nan"), "shape": torch.Size([1, 2])})
    with open(path, "a") as file:
        file.write('{"name": "b"')
    assert tail.read() == [{"name": "a", "ms": "nan", "shape": [1, 2]}]
    with open(path, "a") as file:
        file.write("}\n")
    assert tail.read() == [{"name": "b"}]


def test_an_error_becomes_one_line():
    assert rows.sentence(ValueError("first\nsecond")) == "ValueError: first"
    assert rows.sentence(ValueError()) == "ValueError"
    assert rows.sentence(RuntimeError("at 12:4:\n  x = tl.dot(a, b)\nshapes differ")) == "RuntimeError: shapes differ"


def test_bytes_and_operations_by_hand():
    inputs = calls.Inputs(Layer(8, 16, 3, 2, 6), 2, torch.bfloat16, "cpu")
    x, y, weight, vectors = 2 * 8 * 36 * 2, 2 * 16 * 9 * 2, 16 * 8 * 9 * 2, 5 * 8 * 4
    call = inputs.fwd(residual=True)
    assert calls.minimal_bytes(call, call(eager)) == x + 2 * y + weight + vectors + 3 * 16 * 4
    assert calls.operations(call) == 2 * 2 * 9 * 16 * 8 * 9
    call = inputs.bwd("g", deferred=True)
    # dy, dy_x and its coeffs, x, bn and weight in; g, sums and dweight out.
    assert calls.minimal_bytes(call, call(eager)) == 2 * y + 4 * 16 * 4 + 2 * x + vectors + 2 * weight + 2 * 8 * 4
    assert calls.operations(call) == 2 * calls.operations(inputs.fwd())
    call = inputs.torch_bwd()
    assert calls.minimal_bytes(call, call(torch.ops.aten)) == y + 2 * x + 2 * weight
    assert calls.operations(call) == calls.operations(inputs.bwd("g"))
    assert calls.operations(inputs.bwd("dx", want_dw=False)) == calls.operations(inputs.fwd())
    assert calls.operations(inputs.norms()["bn_stats"]) == 0


def test_a_strided_1x1_convolution_need_not_read_what_it_skips():
    inputs = calls.Inputs(Layer(8, 16, 1, 2, 6), 2, torch.bfloat16, "cpu")
    x, y, weight, vectors = 2 * 8 * 36 * 2, 2 * 16 * 9 * 2, 16 * 8 * 2, 5 * 8 * 4
    call = inputs.fwd(want_stats=False)
    assert calls.minimal_bytes(call, call(eager)) == x // 4 + y + weight + vectors
    call = inputs.bwd("dx", want_dw=False)
    assert calls.minimal_bytes(call, call(eager)) == 3 * x + y + weight + vectors + 4 * 8 * 4


def test_shapes_come_most_valuable_first():
    ids = [shape.id for shape in primitives.ordered({})]
    assert len(ids) == 35
    # Nearly all of ResNet-1001's time is in its 333 units' layers, most of the bytes at 32 pixels.
    assert set(ids[:2]) == {"16x64-1x1-s1-32px", "64x16-1x1-s1-32px"}
    assert {"16x16-1x1-s1-32px", "64x32-1x1-s2-32px"} <= set(ids[-12:])


def test_rates_are_fractions_of_measured_ceilings_only():
    counted = {"bytes": 4_000_000, "flops": 8_000_000}
    assert primitives.rates(counted, 2.0, {}) == {"gb_per_s": 2.0, "tflop_per_s": 0.004}
    found = primitives.rates(counted, 2.0, {"copy": 4e9, "matmul bfloat16": 4e10})
    assert found["of_copy"] == found["of_floor"] == 0.5
    assert found["of_matmul"] == 0.1


def test_tf32_has_a_floor_of_its_own():
    truth, eager_result = torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, 2.0])
    got = torch.tensor([1.0, 2.001])
    assert "largest error" in objection("y", got, eager_result, truth)
    assert objection("y", got, eager_result, truth, 2.0**-10) is None


def test_the_summary_does_with_whatever_rows_there_are():
    found = {"options": {"dry": False}, "seconds": {"primitives": 1.0}, "rows": []}
    assert table.summary(found) == "seconds: primitives 1"
    found["rows"] = [
        {"part": "primitives", "name": "a", "ok": False, "error": "no", "shape": "a", "backend": "triton", "form": "fwd"},
        {"part": "resnet164", "name": "eager", "ok": False, "error": "out of memory"},
        {"part": "memory", "name": "x", "ok": False, "error": "out of memory"},
    ]
    assert "3 rows are not ok" in table.summary(found)
