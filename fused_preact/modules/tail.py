"""relu(bn(x)) of a norm module: the stem's and the network's last activation."""

import torch.nn.functional as F
from torch import Tensor, nn

from fused_preact.backends.records import Conv
from fused_preact.functional import bn_relu
from fused_preact.modules.children import any_global_hook, buffers_of, layer_of, must_call, sync_group


def bn_relu_of(bn: nn.Module, x: Tensor, stats: Tensor | None = None) -> Tensor:
    """F.relu(bn(x)), saving x once; `bn` is called as it is where it is watched or of another class."""
    if must_call(bn) or any_global_hook():
        return F.relu(bn(x))
    layer = layer_of(bn, Conv())
    running_mean, running_var, tracked = buffers_of(bn) if layer.update or not layer.batch else (None, None, None)
    return bn_relu(
        x,
        bn.weight,
        bn.bias,
        running_mean,
        running_var,
        training=bn.training,
        momentum=layer.momentum,
        eps=layer.eps,
        num_batches_tracked=tracked,
        stats=stats,
        process_group=sync_group(bn),
    )
