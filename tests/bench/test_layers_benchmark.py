"""`python -m benchmarks.layers`: what it measures, and what it makes of the times."""

import json
import sys

import pytest
import torch

from benchmarks import layers
from fused_preact.bench.timing import Quartiles
from fused_preact.models.shapes import Layer

LAYER = Layer(16, 64, 1, 1, 6)


def test_speed_and_fractions_by_hand(monkeypatch):
    times = {name: Quartiles(ms, ms, ms) for name, ms in {"fused": 2.0, "eager": 3.0, "fwd": 0.5, "bwd": 4.0}.items()}

    def interleaved(functions, rounds, each_round):
        assert set(functions) == set(times)
        for _ in range(rounds):
            each_round()
        return times

    monkeypatch.setattr(layers, "interleaved", interleaved)
    monkeypatch.setattr(layers, "fma_probe", lambda device, dtype: lambda: 0.5)
    result = layers.measure(LAYER, 2, torch.float32, 3)
    flops = 2 * 2 * 36 * 16 * 64
    assert result["speed"] == 1.5
    assert result["of_fma_peak"]["fwd"] == pytest.approx(flops / 0.5e-3 / 0.5e9)
    assert result["of_fma_peak"]["bwd"] == pytest.approx(2 * flops / 4e-3 / 0.5e9)
    monkeypatch.setattr(layers, "interleaved", lambda functions, rounds, each_round: times)
    monkeypatch.setattr(layers, "fma_probe", lambda device, dtype: None)
    assert layers.measure(LAYER, 2, torch.float32, 3)["of_fma_peak"] == {"fwd": None, "bwd": None}


@pytest.mark.parametrize("layer", [LAYER, Layer(16, 8, 3, 2, 6)], ids=str)
def test_both_sides_compute_the_same_and_every_call_runs(layer, monkeypatch):
    given = []
    grad = torch.autograd.grad
    monkeypatch.setattr(layers, "COLD_BYTES", 0)
    monkeypatch.setattr(torch.autograd, "grad", lambda *args: given.append(grad(*args)))
    calls = layers.functions(layer, 2, torch.float32)
    # Two sets take turns, and the kernels' vectors took one already.
    calls["fused"]()
    calls["fwd"]()
    calls["eager"]()
    calls["bwd"]()
    for ours, theirs in zip(*given, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_command_writes_what_it_prints(monkeypatch, tmp_path, capsys):
    file = tmp_path / "layers.json"
    monkeypatch.setattr(layers, "COLD_BYTES", 0)
    monkeypatch.setattr(sys, "argv", ["layers", "--only", "16x16-1x1", "--rounds", "1", "--cifar-batch", "1", "--json", str(file)])
    layers.main()
    report = json.loads(file.read_text())
    assert list(report["layers"]) == ["16x16-1x1-s1-32px"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == layers.row("16x16-1x1-s1-32px", report["layers"]["16x16-1x1-s1-32px"])
