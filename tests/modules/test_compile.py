"""torch.compile(fullgraph=True) of layers, units and chains: the same results as uncompiled."""

import copy
import shutil

import pytest
import torch
from torch import nn

import fused_preact as fp
from fused_preact import PreActBlock, PreActBottleneck, PreActConv2d, PreActSequential
from fused_preact.bench.memory import saved_bytes
from tests.modules.test_units import assert_same, randomise, results
from tests.testing.spies import register_spy

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler, and there is no g++")
BACKENDS = ["aot_eager", pytest.param("inductor", marks=needs_compiler)]

pytestmark = pytest.mark.compile


def net(memory: str = "layer") -> nn.Module:
    units = PreActSequential(
        PreActBottleneck(8, 2, memory=memory),
        PreActBottleneck(8, 2, memory=memory),
        PreActBottleneck(8, 4, 2, preact="shared", memory=memory),
        PreActBlock(16, 20, preact="shared", shortcut="pad", memory=memory),
    )
    return randomise(nn.Sequential(PreActConv2d(3, 8, 3, padding=1), units))


def image(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, 6, 5).contiguous(memory_format=torch.channels_last)


def compiled_and_plain(m: nn.Module, x: torch.Tensor, **options) -> tuple[dict, dict]:
    twin = copy.deepcopy(m)
    m.compile(fullgraph=True, **options)
    return results(m, x), results(twin, x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_same_results(train, memory, backend):
    got, wanted = compiled_and_plain(net(memory).train(train), image(), backend=backend)
    assert_same(got, wanted, rtol=1e-5, atol=1e-5)


def test_dynamic_batch():
    m = net()
    twin = copy.deepcopy(m)
    m.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 5, 7):
        for p in (*m.parameters(), *twin.parameters()):
            p.grad = None
        x = image(n)
        assert_same(results(m, x), results(twin, x), rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    m, x = net(), image()
    with torch.autocast("cpu", dtype=dtype):
        got, wanted = compiled_and_plain(m, x)
    assert got["y"].dtype == dtype
    assert_same(got, wanted, rtol=1e-2, atol=1e-2)


def test_frozen_norms_and_parameters():
    m = net()
    for i, p in enumerate(m.parameters()):
        p.requires_grad_(i % 3 != 0)
    m[1][0].bn2.eval()
    m[1][1].bn1.momentum = None
    got, wanted = compiled_and_plain(m, image(), backend="aot_eager")
    assert_same(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory", ["layer", "unit"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_compiled_units_save_no_more(train, memory):
    """The partitioner must not keep what backward recomputes."""
    m = PreActSequential(*(PreActBlock(16, 16, memory=memory) for _ in range(2))).train(train)
    x = torch.randn(4, 16, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    plain = saved_bytes(m, lambda: m(x))
    m.compile(fullgraph=True, backend="aot_eager_decomp_partition")
    assert saved_bytes(m, lambda: m(x)) <= plain * 1.01


def test_use_backend_is_recorded_in_the_graph():
    """A graph compiled while insisting replays that backend in its backward, outside the context."""
    calls = register_spy("compiled spy")
    m, x = PreActConv2d(3, 4, 3), image().requires_grad_()
    m.compile(fullgraph=True, backend="aot_eager")
    with fp.use_backend("compiled spy"):
        y = m(x)
    assert "bn_relu_conv2d_fwd" in calls
    y.sum().backward()
    assert "bn_relu_conv2d_bwd" in calls
    calls.clear()
    m(x).sum().backward()
    assert not calls, "outside the context the table chooses again"


@pytest.mark.parametrize("dynamic", [False, True])
def test_export_in_eval_mode(dynamic):
    m, x = net().eval(), image()
    program = torch.export.export(m, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},) if dynamic else None)
    x = image(5 if dynamic else 3)
    torch.testing.assert_close(program.module()(x), m(x))
