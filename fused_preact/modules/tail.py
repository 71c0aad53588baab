"""relu(bn(x)) of a norm module: the stem's and the network's last activation."""

import torch.nn.functional as F
from torch import Tensor, nn

from fused_preact.functional import bn_relu
from fused_preact.modules.children import any_global_hook, must_call, norm_arguments


def bn_relu_of(bn: nn.Module, x: Tensor, stats: Tensor | None = None) -> Tensor:
    """F.relu(bn(x)), saving x once; `bn` is called as it is where it is watched or of another class."""
    if must_call(bn) or any_global_hook():
        return F.relu(bn(x))
    return bn_relu(x, stats=stats, **norm_arguments(bn))
