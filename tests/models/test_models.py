"""The networks: counts, wiring and initialisation of the authors' codes, and the plain reference beside them."""

import copy

import pytest
import torch
from torch import nn

from fused_preact import models
from fused_preact.models import architecture, create_model, list_models, reference_model
from tests.modules.test_units import assert_same, randomise, results

PARAMETERS = {
    "preact_resnet110": 1_727_962,
    "preact_resnet164": 1_703_258,
    "preact_resnet1001": 10_327_706,
    "preact_resnet18": 11_687_720,
    "preact_resnet34": 21_795_880,
    "preact_resnet50": 25_549_352,
    "preact_resnet101": 44_541_480,
    "preact_resnet152": 60_185_128,
    "preact_resnet200": 64_666_152,
}


def test_list_models():
    own = sorted(f"preact_resnet{d}" for d in (20, 29, 56, 110, 164, 1001, 18, 34, 50, 101, 152, 200))
    assert list_models(paper=False) == own
    assert list_models() == sorted([*own, *(f"resnet{d}" for d in (20, 29, 56, 110, 164, 1001))])


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    with torch.device("meta"):
        assert sum(p.numel() for p in create_model(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(("name", "count"), [("preact_resnet164", 1_726_388), ("preact_resnet1001", 10_350_836)])
def test_parameter_counts_cifar100(name, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in create_model(name, num_classes=100).parameters()) == count


@pytest.mark.parametrize("name", list_models())
def test_same_keys_and_shapes_as_the_reference(name):
    with torch.device("meta"):
        a, b = create_model(name).state_dict(), reference_model(name).state_dict()
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    assert list(a) == list(b)


def test_models_are_functions_too():
    assert models.preact_resnet20(num_classes=7).fc.out_features == 7
    with pytest.raises(AttributeError, match="preact_resnet21"):
        models.preact_resnet21  # noqa: B018


@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
@pytest.mark.parametrize("name", ["preact_resnet20", "preact_resnet29", "preact_resnet18", "preact_resnet50"])
def test_is_the_reference(name, memory):
    """float64: logits, every gradient and every buffer; one network of each kind of wiring."""
    m = randomise(create_model(name, num_classes=5, memory=memory)).double()
    p = reference_model(name, num_classes=5).double()
    p.load_state_dict(m.state_dict())
    size = 32 if architecture(name).cifar else 64
    x = torch.randn(2, 3, size, size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert_same(results(m, x), results(p, x), rtol=1e-8, atol=1e-9)


def first_units(name):
    with torch.device("meta"):
        model = create_model(name)
    return [getattr(model, stage)[0] for stage in model.stages], [getattr(model, stage)[1] for stage in model.stages]


@pytest.mark.parametrize("name", ["preact_resnet164", "preact_resnet1001", "preact_resnet29"])
def test_wiring_of_cifar_bottlenecks(name):
    """KaimingHe/resnet-1k-layers: every stage begins with a shared activation and a projection; the first 1x1 has the stride."""
    first, others = first_units(name)
    assert [(u.preact, u.shortcut, u.conv1.stride[0], u.conv2.stride[0]) for u in first] == [
        ("shared", "projection", 1, 1),
        ("shared", "projection", 2, 1),
        ("shared", "projection", 2, 1),
    ]
    assert all((u.preact, u.shortcut) == ("branch", "identity") for u in others)


@pytest.mark.parametrize("name", ["preact_resnet20", "preact_resnet110"])
def test_wiring_of_cifar_basic(name):
    """fb.resnet.torch: shared activation at every stage, option A, the first stage's identity carries the activation."""
    first, others = first_units(name)
    assert [(u.preact, u.shortcut, u.conv1.stride[0]) for u in first] == [
        ("shared", "identity", 1), ("shared", "pad", 2), ("shared", "pad", 2),
    ]  # fmt: skip
    assert all((u.preact, u.shortcut) == ("branch", "identity") for u in others)


@pytest.mark.parametrize("name", ["preact_resnet18", "preact_resnet50", "preact_resnet200"])
def test_wiring_of_imagenet(name):
    """fb.resnet.torch: no activation in front of the first unit, shared ones later, the 3x3 has the stride, no norm on projections."""
    first, _ = first_units(name)
    assert [u.preact for u in first] == ["none", "shared", "shared", "shared"]
    bottleneck = hasattr(first[0], "conv3")
    assert [u.shortcut for u in first] == ["projection" if bottleneck else "identity", "projection", "projection", "projection"]
    assert [(u.conv1.stride[0], u.conv2.stride[0]) for u in first[1:]] == [(1, 2) if bottleneck else (2, 1)] * 3


@pytest.mark.parametrize("make", [create_model, reference_model])
def test_initialisation(make):
    """Convolutions N(0, 2/fan_out), norms gamma 1 and beta 0, bias of the classifier 0."""
    torch.manual_seed(0)
    m = make("preact_resnet50")
    for module in m.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 30_000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert (m.fc.bias == 0).all()
    assert m.fc.weight.abs().max() <= m.fc.in_features**-0.5


def test_hooks_on_stages_and_units_fire():
    m, x = create_model("preact_resnet20"), torch.randn(2, 3, 32, 32)
    wanted = copy.deepcopy(m)(x)
    shapes = []
    for module in (m.layer2, m.layer3[1]):
        module.register_forward_hook(lambda module, args, y: shapes.append(tuple(y.shape)))
    torch.testing.assert_close(m(x), wanted)
    assert shapes == [(2, 32, 16, 16), (2, 64, 8, 8)]
