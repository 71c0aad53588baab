"""Networks by name."""

from typing import Any

from fused_preact._text import unknown
from fused_preact.models.architectures import ARCHITECTURES, Architecture
from fused_preact.models.reference import ReferenceResNet
from fused_preact.models.resnet import PreActResNet


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return sorted(ARCHITECTURES)


def architecture(name: str) -> Architecture:
    """The architecture called `name`; raises ValueError with the nearest name."""
    if name not in ARCHITECTURES:
        raise ValueError(unknown("model", name, ARCHITECTURES))
    return ARCHITECTURES[name]


def create_model(name: str, **options: Any) -> PreActResNet:
    """The network called `name`, of fused units; options are those of `PreActResNet` (num_classes, memory, segment, in_channels)."""
    return PreActResNet(architecture(name), **options)


def reference_model(name: str, **options: Any) -> ReferenceResNet:
    """The same network as `create_model(name)` in plain `torch.nn`, with the same state_dict keys and initialisation."""
    return ReferenceResNet(architecture(name), **options)
