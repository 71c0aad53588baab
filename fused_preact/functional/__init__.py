"""Differentiable functions: autograd Functions on the primitives, and the argument checks."""

from fused_preact.functional.bn_relu import bn_relu
from fused_preact.functional.bn_relu_conv2d import bn_relu_conv2d
from fused_preact.functional.context import Group
from fused_preact.functional.preact_unit import UnitTensors, preact_unit

__all__ = ["Group", "UnitTensors", "bn_relu", "bn_relu_conv2d", "preact_unit"]
