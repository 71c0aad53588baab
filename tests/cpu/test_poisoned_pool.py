"""Every element of an output is written: blocks of the pool and the workspace hold NaN before they are used again."""

import pytest
import torch

import fused_preact as fp
from fused_preact.backends.cpu import launch
from fused_preact.ops.library import Operators
from tests.cpu.paths import case
from tests.ops import test_bn_relu_conv2d as shared
from tests.testing.cases import name_of

_cpu = pytest.importorskip("fused_preact._cpu")

CASES = [
    case("1x1", "tails of both sides", (2, 65, 9, 7), 83, 1, residual=True),
    case("3x3", "tails of both sides", (2, 35, 9, 7), 37, 3, padding=1),
    case("3x3-stride2", "left-over inputs", (2, 35, 10, 8), 65, 3, stride=2),
    case("1x1-stride3", "inputs that nobody reads", (2, 33, 12, 9), 17, 1, stride=3),
    case("padding4", "outputs that see no input", (2, 17, 6, 5), 19, 3, padding=4),
    case("columns", "cut rows", (1, 33, 3, 301), 33, 3, padding=1),
    case("wide", "rows of dweight shared out", (1, 80, 5, 4), 150, 3, padding=1),
    case("groups", "group after group", (2, 48, 5, 6), 48, 3, padding=1, groups=2),
]
LARGE = [case("streamed", "past the caches", (2, 64, 96, 128), 64, 1)]
PARAMS = [pytest.param(c, d, id=f"{c.id}-{name_of(d)}") for c in CASES for d in (torch.float32, torch.bfloat16, torch.float64)]
PARAMS += [pytest.param(c, torch.float32, id=c.id) for c in LARGE]


@pytest.fixture
def poisoned(monkeypatch):
    """All activations come from the pool, filled with NaN; their shapes."""
    given, own = [], launch.empty_nhwc

    def empty_nhwc(shape, dtype):
        given.append(shape)
        return own(shape, dtype).fill_(float("nan"))

    monkeypatch.setattr(launch, "empty_nhwc", empty_nhwc)
    monkeypatch.setattr(launch, "POOLED_BYTES", 1)
    # The workspace grows, and is NaN then (tests/conftest.py).
    launch._workspace.__init__()
    return given


@pytest.mark.parametrize(("case", "dtype"), PARAMS)
def test_layer(case, dtype, poisoned):
    layer, run = shared.Layer(case, dtype, torch.channels_last), Operators("cpu")
    bn, conv = shared.vectors(run, layer, True), shared.geometry(layer)
    y, stats = run.bn_relu_conv2d_fwd(layer.x, bn, layer.weight, None, layer.residual, *conv, True, None)
    dy = (layer.dy, layer.dy_x, layer.dy_coeffs, layer.dy_add)
    outputs = {"y": y, "stats": stats, "z": run.bn_relu(layer.x, bn, True)}
    coeffs = torch.ones(4, layer.x.size(1), dtype=bn.dtype)
    for emit in ("dz", "g", "sums", "dx", "dx_sums", "none"):
        results = run.bn_relu_conv2d_bwd(
            *dy, layer.x, bn, layer.weight, *conv, layer.add_dz, emit, coeffs, layer.residual_grad, True, True, True
        )
        outputs |= {f"{name} of {emit}": t for name, t in zip(("out", "sums", "dw", "db", "dy"), results, strict=True) if t is not None}
    outputs["dx"] = run.bn_bwd(layer.x, layer.x, coeffs, None)
    outputs["g"], outputs["sums"] = run.bn_relu_bwd(layer.add_dz, layer.x, bn, True)
    assert len(poisoned) == 14
    for name, t in outputs.items():
        assert t.isfinite().all(), name


@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
def test_unit(memory, poisoned):
    chain = fp.PreActSequential(fp.PreActBottleneck(33, 17, 2, preact="shared", memory=memory), fp.PreActBottleneck(68, 17, memory=memory))
    for _ in range(2):
        x = torch.randn(3, 33, 9, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
        with fp.use_backend("cpu"):
            y = chain(x)
            y.sum().backward()
        assert y.isfinite().all()
        assert x.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in chain.parameters())
    assert poisoned
