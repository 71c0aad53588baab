"""BatchNorm -> ReLU -> Conv2d as one module."""

import torch.nn.functional as F
from torch import Tensor, nn

from fused_preact.functional import bn_relu_conv2d
from fused_preact.modules.children import any_global_hook, must_call, norm_arguments


class PreActConv2d(nn.Module):
    """`Sequential(BatchNorm2d(in_channels), ReLU(), Conv2d(in_channels, out_channels, ...))`, fused.

    The children `bn` and `conv` are a real nn.BatchNorm2d and nn.Conv2d: same state_dict keys, same initialisation. A child with hooks,
    a parametrization or another class is called as it is, unfused. A SyncBatchNorm as `bn` shares its statistics, on CPUs too.
    The arguments are those of nn.Conv2d, eps and momentum those of nn.BatchNorm2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels, eps, momentum)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, stats: Tensor | None = None, return_stats: bool = False
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """conv(relu(bn(x))) (+ residual); stats and return_stats hand statistics from layer to layer, as in `bn_relu_conv2d`."""
        bn, conv = self.bn, self.conv
        if must_call(bn) or must_call(conv) or any_global_hook():
            y = conv(F.relu(bn(x)))
            y = y if residual is None else y + residual
            return (y, None) if return_stats else y
        return bn_relu_conv2d(
            x,
            conv_weight=conv.weight,
            conv_bias=conv.bias,
            residual=residual,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            stats=stats,
            return_stats=return_stats,
            **norm_arguments(bn),
        )
