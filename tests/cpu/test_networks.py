"""ResNet-164, 1001 and 200 and DenseNet-BC run natively, layers and whole units; what does not is refused in a sentence."""

from itertools import product

import pytest
import torch

import fused_preact as fp
from fused_preact import PreActBlock, PreActBottleneck, PreActSequential
from fused_preact.backends import cpu
from fused_preact.backends.records import Case, Conv, Layer, Unit
from fused_preact.models import create_model
from fused_preact.models.shapes import LAYER_SHAPES, NETWORKS
from tests.testing.cases import SAME, name_of

_cpu = pytest.importorskip("fused_preact._cpu")

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
BATCHES = (1, 64)


def densenet(blocks, growth, width, size):
    """(in channels, out channels, kernel, pixels) of all BN -> ReLU -> conv of a DenseNet-BC from its first block on."""
    for i, layers in enumerate(blocks):
        for _ in range(layers):
            yield width, 4 * growth, 1, size
            yield 4 * growth, growth, 3, size
            width += growth
        if i + 1 < len(blocks):
            yield width, width // 2, 1, size
            width, size = width // 2, size // 2


DENSENETS = {
    "DenseNet-BC-100 k=12": sorted(set(densenet((16, 16, 16), 12, 24, 32))),
    "DenseNet-121 k=32": sorted(set(densenet((6, 12, 24, 16), 32, 64, 56))),
}


def same(value):
    return (value, value)


def refusals(shapes):
    """Why not, for shapes (in, out, kernel, stride, padding, pixels) in every dtype and batch."""
    for (c, k, kernel, stride, padding, size), dtype, n in product(shapes, DTYPES, BATCHES):
        case = Case("cpu", dtype, (n, c, size, size), (k, c, kernel, kernel), dtype, Conv(same(stride), same(padding)))
        yield case, cpu.why_not(case)


@pytest.mark.parametrize("shape", LAYER_SHAPES, ids=lambda shape: shape.id)
def test_every_layer_of_the_resnets(shape):
    c, k, kernel, stride, size = shape.layer
    for case, reason in refusals([(c, k, kernel, stride, shape.layer.padding, size)]):
        assert reason is None, case


@pytest.mark.parametrize("name", DENSENETS)
def test_every_layer_of_a_densenet(name):
    for case, reason in refusals([(c, k, kernel, 1, kernel // 2, size) for c, k, kernel, size in DENSENETS[name]]):
        assert reason is None, case


def test_the_densenets_are_those_of_the_paper():
    assert [len(list(densenet(*a))) for a in (((16, 16, 16), 12, 24, 32), ((6, 12, 24, 16), 32, 64, 56))] == [98, 119]
    assert (342, 48, 1, 8) not in DENSENETS["DenseNet-BC-100 k=12"]
    assert (330, 48, 1, 8) in DENSENETS["DenseNet-BC-100 k=12"]
    assert (1024, 512, 1, 14) in DENSENETS["DenseNet-121 k=32"]


@pytest.fixture
def asked(monkeypatch):
    """What the cpu backend is asked to run, by function; the eager backend's primitives may not be called."""
    calls = []
    for name in [n for n in vars(cpu) if n.startswith(("unit_", "bn_"))]:
        own = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *args, name=name, own=own: (calls.append(name), own(*args))[1])
    for name in [n for n in vars(fp.backends.eager) if n.startswith("bn_")]:
        monkeypatch.setattr(fp.backends.eager, name, lambda *args, name=name: pytest.fail(f"eager {name}"))
    return calls


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_of_the_resnets(name, dtype):
    with torch.device("meta"):
        model = create_model(name)
    units = [m for m in model.modules() if isinstance(m, PreActBottleneck)]
    assert len(units) == {"preact_resnet164": 54, "preact_resnet1001": 333, "preact_resnet200": 66}[name]
    for m in units:
        weight = tuple(m.conv1.weight.shape)
        unit = Unit(
            tuple(Layer(Conv(c.stride, c.padding, c.dilation, c.groups), norm=bn is not None) for bn, c in m.layers()),
            m.shortcut,
            m.preact == "shared",
            Conv(same(m.stride)) if m.shortcut == "projection" else None,
        )
        for n in BATCHES:
            case = Case("cpu", dtype, (n, weight[1], 8, 8), weight, dtype, unit.layers[0].conv)
            assert cpu.why_not_unit(unit, case) is None


@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_units_are_one_call_each_way(memory, dtype, asked):
    chain = PreActSequential(
        PreActBottleneck(16, 8, 2, stride_at="1x1", preact="shared", memory=memory),
        PreActBottleneck(32, 8, memory=memory),
        PreActBlock(32, 48, 2, shortcut="projection", memory=memory),
        PreActBlock(48, 48, preact="shared", memory=memory),
    ).to(dtype)
    x = torch.randn(2, 16, 9, 9, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    chain(x).sum().backward()
    assert (asked.count("unit_fwd"), asked.count("unit_bwd")) == (4, 4)
    assert {name for name in asked if not name.startswith("unit_")} <= {"bn_stats"}
    assert all(p.grad.isfinite().all() for p in chain.parameters())


@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
def test_kernels_of_a_chain(memory):
    """Inner gradients are deferred into the convolutions: bn_bwd runs once a unit. Only the entry of the chain reads statistics."""
    n = 5
    chain = PreActSequential(*(PreActBottleneck(32, 8, memory=memory) for _ in range(n)))
    x = torch.randn(2, 32, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    before = _cpu.unit_launches()
    chain(x).sum().backward()
    launched = {name: count - before[name] for name, count in _cpu.unit_launches().items()}
    # A segment of isqrt(5) units recomputes the units but its last; what lies inside a unit is recomputed by all but "layer".
    recomputed = {"layer": 0, "unit": 2 * n, "segment": 2 * n + 3 * 2}[memory]
    fwd = 3 * n + recomputed
    assert launched == {"bn_stats": 1, "bn_relu": 0, "bn_relu_conv2d_fwd": fwd, "bn_relu_conv2d_bwd": 3 * n, "bn_bwd": n}


@pytest.mark.parametrize("name", ["preact_resnet164", "preact_resnet50"])
def test_a_network_runs_natively(name, asked):
    model = create_model(name, num_classes=3)
    size = 16 if name == "preact_resnet164" else 64
    model(torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last)).sum().backward()
    units = {"preact_resnet164": 54, "preact_resnet50": 16}[name]
    assert (asked.count("unit_fwd"), asked.count("unit_bwd")) == (units, units)


def refused(device="cpu", dtype=torch.float32, weight_dtype=None, c=16, k=16, conv=SAME):
    return cpu.why_not(Case(device, dtype, (2, c, 8, 8), (k, c // conv.groups, 3, 3), weight_dtype or dtype, conv))


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (refused(dtype=torch.float16), "not float16"),
        (refused(weight_dtype=torch.float16), "not float16"),
        (refused(device="cuda"), "not on cuda tensors"),
        (refused(device="meta"), "not on meta tensors"),
        (refused(dtype=torch.float64, weight_dtype=torch.float32), "float64 weights only"),
        (refused(dtype=torch.float32, weight_dtype=torch.float64), "float64 weights only"),
        (refused(conv=Conv((1, 1), (1, 1), (1, 1), 8)), "not of 2"),
        (refused(c=64, conv=Conv((1, 1), (1, 1), (1, 1), 8)), "not of 2"),
        (refused(k=64, conv=Conv((1, 1), (1, 1), (1, 1), 8)), "not of 2"),
        (cpu.why_not(Case("cpu", torch.float16, (2, 3, 4, 4))), "not float16"),
    ],
)
def test_refusals_are_sentences(reason, words):
    assert reason.startswith(("the cpu backend takes ", "the cpu backend runs on "))
    assert words in reason


def test_what_is_taken():
    assert refused(dtype=torch.float32, weight_dtype=torch.bfloat16) is None
    assert refused(dtype=torch.bfloat16, weight_dtype=torch.float32) is None
    assert refused(conv=Conv((1, 1), (1, 1), (1, 1), 2)) is None
    assert cpu.why_not(Case("cpu", torch.float64, (0, 3, 0, 4))) is None


def test_a_refusal_is_raised_where_the_backend_is_insisted_on():
    layer = fp.PreActConv2d(6, 6, 3, padding=1, groups=3)
    with fp.use_backend("cpu"), pytest.raises(ValueError, match="can't run this layer: the cpu backend takes groups of 8"):
        layer(torch.randn(2, 6, 4, 4))


@pytest.mark.parametrize(
    ("unit", "case", "words"),
    [
        (Unit((Layer(SAME), Layer(SAME)), "pad"), {}, "pad their shortcut"),
        (Unit((Layer(SAME), Layer(Conv((1, 1), (1, 1), (1, 1), 2)))), {}, "grouped convolutions"),
        (Unit((Layer(SAME), Layer(SAME))), {"weight_dtype": torch.bfloat16}, "differ in dtype"),
        (Unit((Layer(SAME), Layer(SAME))), {"x": (0, 16, 8, 8)}, "empty activations"),
        (Unit((Layer(SAME), Layer(SAME))), {"dtype": torch.float16, "weight_dtype": torch.float16}, "not float16"),
    ],
    ids=["pad", "groups", "mixed", "empty", "float16"],
)
def test_units_are_refused_in_sentences(unit, case, words):
    options = {"device": "cpu", "dtype": torch.float32, "x": (2, 16, 8, 8), "weight": (16, 16, 3, 3), "weight_dtype": torch.float32}
    reason = cpu.why_not_unit(unit, Case(**{**options, **case}, conv=SAME))
    assert reason.startswith("the cpu backend ")
    assert words in reason
