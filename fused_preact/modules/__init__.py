"""Drop-in modules that compose real nn.BatchNorm2d and nn.Conv2d children."""

from fused_preact.modules.children import uses_batch_statistics
from fused_preact.modules.preact_conv2d import PreActConv2d
from fused_preact.modules.preact_sequential import PreActSequential, hand_on, takes_statistics
from fused_preact.modules.preact_unit import PreActBlock, PreActBottleneck, PreActResidual
from fused_preact.modules.tail import bn_relu_of

__all__ = [
    "PreActBlock",
    "PreActBottleneck",
    "PreActConv2d",
    "PreActResidual",
    "PreActSequential",
    "bn_relu_of",
    "hand_on",
    "takes_statistics",
    "uses_batch_statistics",
]
