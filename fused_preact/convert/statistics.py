"""Statistics of tensors that a norm may read: taken once, by whoever has the tensor at hand."""

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fused_preact.backends import insisted
from fused_preact.convert.nodes import version_of
from fused_preact.ops import backend_for

# With how often the tensor had been changed when they were taken.
_known: Any = WeakTensorKeyDictionary()


def remember(t: Tensor, stats: Tensor | None) -> None:
    """Let `statistics_of(t)` be `stats`, as long as t is not changed. None: nothing is known."""
    if stats is not None:
        _known[t] = stats, version_of(t)


def statistics_of(t: Tensor) -> Tensor | None:
    """The statistics of t, (tiles, 3, C), if somebody took them."""
    stats, version = _known.get(t, (None, None))
    return stats if version == version_of(t) else None


def taken(t: Tensor) -> Tensor:
    """The statistics of t, taken now if nobody had."""
    stats = statistics_of(t)
    if stats is None:
        stats = backend_for(t, None, None, insisted()).bn_stats(t)
        remember(t, stats)
    return stats
