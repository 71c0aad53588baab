"""Fused BatchNorm -> ReLU -> Conv2d for training deep pre-activation networks."""

from fused_preact import models
from fused_preact.backends import BackendRefusal, available_backends, use_backend
from fused_preact.convert import explain, fuse, unfuse
from fused_preact.functional import bn_relu_conv2d, preact_unit
from fused_preact.modules import PreActBlock, PreActBottleneck, PreActConv2d, PreActSequential
from fused_preact.tune import autotune

__version__ = "0.1.0"

__all__ = [
    "BackendRefusal",
    "PreActBlock",
    "PreActBottleneck",
    "PreActConv2d",
    "PreActSequential",
    "autotune",
    "available_backends",
    "bn_relu_conv2d",
    "explain",
    "fuse",
    "models",
    "preact_unit",
    "unfuse",
    "use_backend",
]
