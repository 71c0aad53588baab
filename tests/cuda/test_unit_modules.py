"""Modules run as whole units of the cuda backend: which do, in every memory mode, as accurately as plain ones."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fused_preact as fp
from fused_preact import PreActBlock, PreActBottleneck, PreActSequential
from fused_preact.backends import register
from fused_preact.backends.cuda.tiles import LIBRARY_CHANNELS
from fused_preact.backends.records import Case, Conv, Layer, Unit
from fused_preact.models import create_model
from fused_preact.models.architectures import UnitPlan
from tests.cuda.kernels import needs_simulator
from tests.cuda.test_unit import FLOAT32
from tests.modules.test_units import Kind, assert_same, pair, randomise, results
from tests.testing.cases import name_of
from tests.testing.numerics import assert_as_accurate

pytestmark = needs_simulator
memories = pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, FLOAT32], ids=name_of)


@pytest.fixture
def asked() -> list[str]:
    """The names of what the cuda backend is asked for under `use_backend("cuda, asked")`."""
    from fused_preact.backends import cuda

    calls: list[str] = []

    def asking(name, function):
        return lambda *args: (calls.append(name), function(*args))[1]

    own = {name: asking(name, f) for name, f in vars(cuda).items() if name.startswith(("bn_", "unit_")) and callable(f)}
    choosing = {name: getattr(cuda, name) for name in ("unavailable", "why_not", "why_not_unit", "TWO_DGRADS")}
    register("cuda, asked", SimpleNamespace(**own, **choosing))
    return calls


def chain(memory: str) -> PreActSequential:
    torch.manual_seed(0)
    units = [
        PreActBottleneck(16, 8, 2, stride_at="1x1", preact="shared", memory=memory),
        PreActBottleneck(32, 8, memory=memory),
        PreActBlock(32, 48, 2, shortcut="projection", memory=memory),
        PreActBlock(48, 48, preact="shared", memory=memory),
    ]
    return randomise(PreActSequential(*units))


def image(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(2, 16, 9, 9, dtype=dtype).contiguous(memory_format=torch.channels_last)


@dtypes
@memories
def test_units_are_one_call_each_way(memory, dtype, asked):
    net, x = chain(memory).to(dtype), image(dtype).requires_grad_()
    with fp.use_backend("cuda, asked"):
        net(x).sum().backward()
    assert (asked.count("unit_fwd"), asked.count("unit_bwd")) == (4, 4)
    assert not [name for name in asked if name.startswith("bn_")]
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
@pytest.mark.parametrize("train", [True, False])
def test_memory_modes_give_the_same_bits(train, dtype):
    x, wanted = image(dtype), None
    for memory in ("layer", "unit", "segment"):
        net = chain(memory).to(dtype).train(train)
        with fp.use_backend("cuda"):
            got = results(net, x)
        wanted = wanted or got
        assert_same(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["preact_resnet164", "preact_resnet1001", "preact_resnet50", "preact_resnet200"])
def test_every_unit_of_the_resnets(name):
    """But those with a 3x3 convolution that goes through torch's library."""
    from fused_preact.backends import cuda

    with torch.device("meta"):
        model = create_model(name)
    units = [m for m in model.modules() if isinstance(m, PreActBottleneck)]
    assert units
    for m in units:
        weights = [tuple(conv.weight.shape) for _, conv in m.layers()]
        layers = tuple(Layer(Conv(c.stride, c.padding, c.dilation, c.groups), norm=bn is not None) for bn, c in m.layers())
        projected = m.shortcut == "projection"
        projection = Conv((m.stride, m.stride) if isinstance(m.stride, int) else m.stride) if projected else None
        shapes = (*weights, (weights[-1][0], weights[0][1], 1, 1)) if projected else tuple(weights)
        unit = Unit(layers, m.shortcut, m.preact == "shared", projection)
        for n in (1, 128):
            case = Case("cpu", torch.bfloat16, (n, weights[0][1], 8, 8), weights[0], torch.bfloat16, layers[0].conv, shapes)
            reason = cuda.why_not_unit(unit, case)
            assert reason is None if weights[1][0] < LIBRARY_CHANNELS else reason.endswith("no kernel for, such as layer 2")


ACCURATE = [
    Kind("bottleneck", "the unit of ResNets", PreActBottleneck, UnitPlan(32, 8, 1, "branch", "identity")),
    Kind("transition", "stride on the 3x3", PreActBottleneck, UnitPlan(16, 8, 2, "shared", "projection")),
    Kind("block", "the basic unit", PreActBlock, UnitPlan(16, 16, 1, "branch", "identity")),
    Kind("block-none", "no activation in front", PreActBlock, UnitPlan(16, 16, 1, "none", "identity")),
]


@dtypes
@pytest.mark.parametrize("kind", ACCURATE, ids=lambda kind: kind.id)
def test_is_as_accurate_as_the_plain_unit(kind, dtype, asked):
    m, p = pair(kind, torch.float32)
    t = copy.deepcopy(p).double()
    drawn: dict[str, list] = {}
    for net in (m, p, t):
        for conv in (c for c in net.modules() if isinstance(c, nn.Conv2d)):
            conv.to(dtype).to(torch.float64 if net is t else dtype)
    for _ in range(3):
        x = torch.randn(4, kind.plan.in_channels, 6, 5).to(dtype).contiguous(memory_format=torch.channels_last)
        with fp.use_backend("cuda, asked"):
            got = results(m, x)
        eager, truth = results(p, x), results(t, x.double())
        for name in truth:
            drawn.setdefault(name, []).append((got[name].clone(), eager[name].clone(), truth[name].clone()))
    assert {"unit_fwd", "unit_bwd"} == set(asked)
    for name, found in drawn.items():
        if "tracked" not in name:
            assert_as_accurate(name, *map(torch.stack, zip(*found, strict=True)), kinds=("RMS",))
