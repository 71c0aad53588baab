"""Whole networks, by name or as functions: `preact_resnet164(num_classes=100)`."""

import functools

from fused_preact.models.paper import PaperResNet
from fused_preact.models.registry import architecture, create_model, list_models, reference_model
from fused_preact.models.resnet import PreActResNet
from fused_preact.models.weights import load_weights

__all__ = ["PaperResNet", "PreActResNet", "architecture", "create_model", "list_models", "load_weights", "reference_model"]


def __getattr__(name: str):
    if name in list_models():
        return functools.partial(create_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
