"""What surrounds a call: autocast, and the processes that share batch statistics."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """A process group by name, as the traceable collectives take it, and its size."""

    name: str
    size: int


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that convolutions run in under autocast, None outside it. Like torch's, autocast leaves float64 alone."""
    kind = x.device.type
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def refuse_vmap(dy: Tensor) -> None:
    """Refuse a gradient that is a batch of gradients: the kernels would see one tensor."""
    functorch = torch._C._functorch
    if not torch.compiler.is_compiling() and (functorch.is_batchedtensor(dy) or functorch.is_legacy_batchedtensor(dy)):
        raise RuntimeError("fused_preact: batched gradients (is_grads_batched, vmap) are not supported, compute them one by one")


def gather(group: Group | None):
    """The exchange of merged statistics between bn_stats and bn_finalize: gathered ranks are just more tiles."""
    return None if group is None else functools.partial(_gather, group)


def reduce(group: Group | None):
    """The exchange of sums before bn_coeffs."""
    return None if group is None else functools.partial(_reduce, group)


def _gather(group: Group, stats: Tensor) -> Tensor:
    c10d = torch.ops._c10d_functional
    return c10d.wait_tensor(c10d.all_gather_into_tensor(stats, group.size, group.name))


def _reduce(group: Group, sums: Tensor) -> Tensor:
    c10d = torch.ops._c10d_functional
    return c10d.wait_tensor(c10d.all_reduce(sums.sum(0, keepdim=True), "sum", group.name))
