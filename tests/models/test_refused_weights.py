"""Weights of networks that look like ours and compute something else: refused, with the reason."""

import re
from typing import NamedTuple

import pytest
import torch

from fused_preact.models import architecture, create_model, reference_model
from fused_preact.models.architectures import Architecture, UnitPlan
from fused_preact.models.layouts import KINDS, REFUSED
from fused_preact.models.reference import ReferenceResNet
from tests.models.test_weights import assert_refuses, saved
from tests.modules.test_units import randomise


class Lookalike(NamedTuple):
    """Another code's names, made of those of a network of ours: patterns replaced, keys added, keys dropped."""

    name: str
    renames: dict[str, str]
    added: tuple[str, ...] = ()
    dropped: str = "$^"

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = reference_model(self.name).state_dict() | dict.fromkeys(self.added, torch.ones(1))
        kept = {key: value for key, value in state.items() if not re.match(self.dropped, key)}
        for pattern, replacement in self.renames.items():
            kept = {re.sub(pattern, replacement, key): value for key, value in kept.items()}
        return kept


FIRST_NORM = "layer1.0.bn1.weight"
LOOKALIKES = {
    "pytorch-cifar": Lookalike("preact_resnet18", {"downsample": "shortcut.0", "^fc": "linear"}, (FIRST_NORM,), r"bn"),
    "timm": Lookalike(
        "preact_resnet50",
        {
            r"^layer(\d)\.": r"stages.\1.blocks.",
            "stages.1": "stages.0",
            r"\.bn": ".norm",
            "downsample": "downsample.conv",
            "^conv1": "stem.conv",
        }
        | {"^bn": "norm", "^fc": "head.fc"},
        (FIRST_NORM,),
        r"bn1\.",
    ),
    "torchvision": Lookalike(
        "preact_resnet18", {"downsample.weight": "downsample.0.weight"}, (FIRST_NORM, "layer2.0.downsample.1.weight"), r"bn\."
    ),
    "bearpaw": Lookalike("preact_resnet29", {"downsample": "downsample.0"}),
    "torch-resnet": Lookalike(
        "preact_resnet29",
        {
            "^layer1": "layers.0",
            "^layer2": "layers.1",
            "^layer3": "layers.2",
            "downsample": "shortcut.conv",
            "^conv1": "init_layer",
            "^bn": "norm",
            "^fc": "head",
        },
    ),
    "DCP": Lookalike("preact_resnet20", {"^conv1": "conv"}, ("layer2.0.downsample.weight", "layer3.0.downsample.weight")),
    "hysts": Lookalike(
        "preact_resnet29",
        {r"^layer(\d)\.": r"stage\1.block", "block0": "block1", "^conv1": "conv", "downsample": "shortcut.conv"},
        (),
        "layer1.0.down",
    ),
}


@pytest.mark.parametrize("name", ["preact_resnet20", "preact_resnet29", "preact_resnet18"])
@pytest.mark.parametrize("code", LOOKALIKES)
def test_refused(code, name, tmp_path):
    """With the reason, whatever network of ours was meant."""
    path = saved(LOOKALIKES[code].state_dict(), tmp_path / "w.pt")
    match = f"are those of {code} .*, whose networks are not {name}: .*; nothing was loaded"
    assert_refuses(create_model(name), path, ValueError, match)


@pytest.mark.parametrize("name", ["preact_resnet20", "preact_resnet29", "preact_resnet18"])
def test_pytorchcv_by_its_names(name, tmp_path):
    state = {theirs(key, architecture(name).cifar): value for key, value in reference_model(name).state_dict().items()}
    state["features.stage1.unit1.body.conv1.bn.weight"] = torch.ones(1)
    assert_refuses(create_model(name), saved(state, tmp_path / "w.pt"), ValueError, "are those of pytorchcv")


def test_every_refusal_is_tested_and_says_what_differs_from_every_kind():
    assert {*LOOKALIKES, "pytorchcv"} == set(REFUSED)
    assert all(set(refused.differs) == set(KINDS) for refused in REFUSED.values())


class Variant(Architecture):
    """An architecture with what differs in pytorchcv's networks."""

    __slots__ = ()

    def stages(self):
        for first, *rest in super().stages():
            shortcut = "projection" if first.shortcut == "pad" else first.shortcut
            preact = "branch" if shortcut == "identity" else "shared"
            yield (UnitPlan(first.in_channels, first.channels, first.stride, preact, shortcut), *rest)


def theirs(key: str, cifar: bool) -> str:
    """pytorchcv's name for a key of ours."""
    head, _, rest = key.partition(".")
    if head.startswith("layer"):
        unit, module, name = rest.split(".")
        if module == "downsample":
            return f"features.stage{head[-1]}.unit{int(unit) + 1}.identity_conv.{name}"
        return f"features.stage{head[-1]}.unit{int(unit) + 1}.body.conv{module[-1]}.{module[:-1]}.{name}"
    stem = {"conv1": "features.init_block" if cifar else "features.init_block.conv", "bn1": "features.init_block.bn"}
    return f"{(stem | {'bn': 'features.post_activ.bn', 'fc': 'output'})[head]}.{rest}"


@pytest.mark.parametrize(
    ("name", "module", "function", "stride_at"),
    [
        ("preact_resnet20", "preresnet_cifar", "preresnet20_cifar10", "1x1"),
        ("preact_resnet164", "preresnet_cifar", "preresnet164bn_cifar10", "3x3"),
        ("preact_resnet18", "preresnet", "preresnet18", "3x3"),
        ("preact_resnet50", "preresnet", "preresnet50", "1x1"),
        ("preact_resnet50", "preresnet", "preresnet50b", "3x3"),
    ],
)
def test_pytorchcv(name, module, function, stride_at, tmp_path, monkeypatch):
    """Their networks are ours with the differences that the refusal names, and no others; without them they are not."""
    # The module alone, because pytorchcv's list of models needs torchvision.
    module = pytest.importorskip(f"pytorchcv.models.{module}", reason="needs pytorchcv")
    source = randomise(getattr(module, function)()).double().eval()
    path = saved(source.state_dict(), tmp_path / "w.pth")
    assert_refuses(create_model(name), path, ValueError, f"are those of pytorchcv .*, whose networks are not {name}: ")

    a = architecture(name)
    size = a.image_size
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    state = source.state_dict()
    monkeypatch.setattr(Architecture, "stride_at", stride_at)
    variant = ReferenceResNet(Variant(*a)).double().eval()
    variant.load_state_dict({key: state[theirs(key, a.cifar)] for key in variant.state_dict()})
    assert len(variant.state_dict()) == len(state)
    torch.testing.assert_close(variant(x), source(x), rtol=1e-9, atol=1e-9)
    monkeypatch.undo()
    if name == "preact_resnet164":
        # Here every key and shape fits, and only the function differs.
        own = reference_model(name).double().eval()
        own.load_state_dict(variant.state_dict())
        assert (own(x) - source(x)).abs().max() > 0.01 * source(x).abs().max()
