"""What a step computes, and the peak it is compared with."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fused_preact import backends
from fused_preact.bench import probe
from fused_preact.bench.probe import fma_probe, step_flops
from fused_preact.bench.variants import Config
from fused_preact.models import architecture, reference_model

REASON = backends.available_backends()["cpu"]
native = pytest.mark.skipif(REASON is not None, reason=f"cpu: {REASON}")


@pytest.mark.parametrize(
    "config",
    [
        Config("preact_resnet20", 3),
        Config("preact_resnet29", 2, image_size=40),
        Config("preact_resnet50", 2),
        Config("preact_resnet18", 1, 65),
    ],
    ids=lambda config: config.model,
)
def test_flops_are_those_that_torch_counts_in_a_step(config):
    with torch.device("meta"):
        model = reference_model(config.model).eval()
        images = torch.empty(config.batch_size, 3, config.pixels, config.pixels)
        labels = torch.zeros(config.batch_size, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            F.cross_entropy(model(images), labels).backward()
    assert step_flops(config) == counter.get_total_flops()


def test_flops_of_resnet20_by_hand():
    stem = 32**2 * 16 * 3 * 9
    stages = 6 * 32**2 * 16 * 16 * 9
    for channels, size in ((32, 16), (64, 8)):
        stages += size**2 * channels * (channels // 2 + 5 * channels) * 9
    assert architecture("preact_resnet20").num_classes == 10
    assert step_flops(Config("preact_resnet20", 1)) == 2 * (2 * stem + 3 * (stages + 64 * 10))


@native
def test_the_peak_is_twice_the_multiply_adds_on_all_threads(monkeypatch):
    from fused_preact import _cpu

    asked = []
    monkeypatch.setattr(_cpu, "probe", lambda *args: asked.append(args) or 50e9)
    assert fma_probe("cpu", torch.float32)() == pytest.approx(100)
    assert fma_probe("cpu", torch.bfloat16)() == pytest.approx(100)
    threads = torch.get_num_threads()
    assert asked == [(_cpu.Dtype.float32, threads, probe.SECONDS), (_cpu.Dtype.bfloat16, threads, probe.SECONDS)]


def test_there_is_no_probe_where_nobody_can_tell(monkeypatch):
    assert fma_probe("cuda", torch.float32) is None
    assert fma_probe("cpu", torch.float16) is None
    monkeypatch.setattr(probe, "backend", lambda name: "it is not built")
    assert fma_probe("cpu", torch.float32) is None
