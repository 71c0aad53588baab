"""Statistics of tensors that a norm may read: taken once, by whoever has the tensor at hand."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fused_preact.backends import insisted
from fused_preact.convert.nodes import version_of
from fused_preact.ops import backend_for

# With how often the tensor had been changed when they were taken.
_known: Any = WeakTensorKeyDictionary()


def remember(t: Tensor, stats: Tensor) -> None:
    """Let `stats` be known of t, as long as t is not changed: to the first who asks if they are of many tiles, which take memory."""
    version = version_of(t)
    if version is not None:
        _known[t] = stats, version


def statistics_of(t: Tensor) -> Tensor:
    """The statistics of t, (tiles, 3, C), taken now if nobody had."""
    stats, version = _known.get(t, (None, None))
    if stats is None or version != version_of(t):
        run = backend_for(t, None, None, insisted())
        stats = run.bn_stats(t)
        remember(t, run.bn_merge(stats))
    elif stats.size(0) > 1:
        del _known[t]
    return stats


def remember_parts(t: Tensor, parts: Sequence[Tensor], stats: Sequence[Tensor | None]) -> None:
    """Of t, whose channels are those of `parts`. stats: those of the parts that are at hand."""
    merged = []
    for part, own in zip(parts, stats, strict=True):
        own = statistics_of(part) if own is None else own
        if own.size(0) > 1:
            own = backend_for(part, None, None, insisted()).bn_merge(own)
            remember(part, own)
        merged.append(own)
    remember(t, torch.cat(merged, 2))
