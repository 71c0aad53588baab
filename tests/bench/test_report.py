"""The report: the JSON that other tools read, the table and the picture."""

import json
import sys

import pytest

from fused_preact._files import write_json
from fused_preact.bench.machine import machine
from fused_preact.bench.plot import write_plot
from fused_preact.bench.report import Measurement, report, table
from fused_preact.bench.timing import Quartiles

CONFIG = {
    "model": "preact_resnet164",
    "batch_size": 64,
    "image_size": 32,
    "device": "cpu",
    "dtype": "float32",
    "memory": "layer",
    "backend": None,
    "rounds": 5,
}


SHARES = {"cpu": 0.925, "eager": 0.0, "torch": 0.075}


@pytest.fixture(params=["probed", "not probed"])
def example(request):
    variants = {
        "fused": Measurement(Quartiles(200.0, 190.0, 230.0), 64, 500_000_000, 800_000_000),
        "eager": Measurement(Quartiles(300.0, 290.0, 310.0), 64, 1_000_000_000, 1_200_000_000),
        "compile": Measurement(Quartiles(250.0, 240.0, 260.0), 64, 1_000_000_000, 1_000_000_000),
    }
    known = (Quartiles(50.0, 40.0, 60.0), SHARES) if request.param == "probed" else (None, None)
    return report(machine(), CONFIG, variants, 3_000_000_000, *known)


probed = pytest.mark.parametrize("example", ["probed"], indirect=True)
not_probed = pytest.mark.parametrize("example", ["not probed"], indirect=True)


def test_json_has_the_documented_form(example, tmp_path):
    write_json(tmp_path / "report.json", example)
    read = json.loads((tmp_path / "report.json").read_text())
    assert read == example
    assert set(read) == {"machine", "config", "step_flops", "fma_peak_gflop_per_s", "shares", "variants", "ratios"}
    assert set(read["variants"]) == {"fused", "eager", "compile"}
    for variant in read["variants"].values():
        assert set(variant) == {"step_ms", "images_per_s", "of_fma_peak", "saved_bytes", "peak_bytes"}
        assert set(variant["step_ms"]) == {"median", "q1", "q3"}
        assert isinstance(variant["saved_bytes"], int)
        assert isinstance(variant["peak_bytes"], int)
    assert set(read["ratios"]) == {"step", "saved", "peak"}
    assert set(read["ratios"]["step"]) == {"eager", "compile"}


def test_ratios_point_the_documented_way(example):
    ratios = example["ratios"]
    assert ratios["step"] == {"eager": 1.5, "compile": 1.25}
    assert ratios["saved"]["eager"] == 0.5
    assert ratios["peak"] == {"eager": pytest.approx(2 / 3), "compile": 0.8}
    assert example["variants"]["fused"]["images_per_s"] == 320.0


@probed
def test_fractions_of_the_peak(example):
    assert example["fma_peak_gflop_per_s"] == {"median": 50.0, "q1": 40.0, "q3": 60.0}
    # 3 GFLOP in 200 ms are 15 GFLOP/s.
    fractions = {name: variant["of_fma_peak"] for name, variant in example["variants"].items()}
    assert fractions == {"fused": pytest.approx(0.3), "eager": pytest.approx(0.2), "compile": pytest.approx(0.24)}


@probed
def test_table_has_peak_and_shares(example):
    lines = table(example).splitlines()
    assert lines[2:5] == [
        "FMA peak, probed in every round: 50.0 GFLOP/s (40.0 .. 60.0)",
        "time of a fused step: cpu 92.5%, eager 0.0%, torch 7.5%",
        "",
    ]
    header, fused, eager, compiled = lines[5:]
    assert header.endswith("images/s  of FMA peak  saved MB  peak MB  fused speed  fused saved  fused peak")
    assert fused.split()[5:7] == ["320.0", "30.0%"]
    assert eager.split()[5:7] == ["213.3", "20.0%"]
    assert len(header) == len(eager) == len(compiled)


@not_probed
def test_without_peak_and_shares_they_are_null_and_not_printed(example):
    assert example["fma_peak_gflop_per_s"] is example["shares"] is None
    assert all(variant["of_fma_peak"] is None for variant in example["variants"].values())
    text = table(example)
    assert len(text.splitlines()) == 3 + 4
    assert "FMA" not in text
    older = {key: value for key, value in example.items() if key not in ("step_flops", "fma_peak_gflop_per_s", "shares")}
    assert table(older) == text


@not_probed
def test_table_names_machine_and_versions_and_aligns(example):
    lines = table(example).splitlines()
    assert "preact_resnet164" in lines[0]
    assert example["machine"]["torch"] in lines[1]
    assert example["machine"]["cpu"] in lines[1]
    header, fused, eager, compiled = lines[-4:]
    assert len(header) == len(eager) == len(compiled)
    assert eager.split() == ["eager", "300.0", "290.0", "..", "310.0", "213.3", "1000.0", "1200.0", "1.50x", "0.500x", "0.667x"]
    assert fused.split()[-1] == "800.0"


def test_a_report_that_is_no_json_leaves_the_old_file(example, tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    example["ratios"]["step"]["eager"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, example)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_plot_is_a_png(example, tmp_path):
    pytest.importorskip("matplotlib")
    write_plot(example, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_plot_without_matplotlib_says_what_to_install(example, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'fused-preact\[train\]'"):
        write_plot(example, tmp_path / "report.png")
    assert not list(tmp_path.iterdir())
