"""Shapes, dtypes and strides that every backend and every fake agree on."""

from collections.abc import Sequence

import torch
from torch import Tensor

TILE_PIXELS = 64
MAX_TILES = 512


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics, per-channel vectors and reductions of an activation of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tiles(shape: Sequence[int]) -> int:
    """T, the number of statistics tiles of an activation (N, C, H, W): a pure function of the shape, for every backend."""
    return max(1, min(MAX_TILES, shape[0] * shape[2] * shape[3] // TILE_PIXELS))


def conv_out_shape(
    x: Sequence[int], weight: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    """Shape (N, K, P, Q) of the convolution of x (N, C, H, W) with weight (K, C/groups, R, S)."""
    p, q = ((x[i + 2] + 2 * padding[i] - dilation[i] * (weight[i + 2] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    return x[0], weight[0], p, q


def is_channels_last(t: Tensor) -> bool:
    """channels_last and not contiguous as well: the test by which torch's conv2d decides."""
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """channels_last iff one of the tensors is, as torch's conv2d decides from its input and weight."""
    return torch.channels_last if any(map(is_channels_last, tensors)) else torch.contiguous_format


def empty(shape: Sequence[int], dtype: torch.dtype, *like: Tensor) -> Tensor:
    """An uninitialised activation on the device and in the memory format that `like` (input, weight) decide."""
    return torch.empty(shape, dtype=dtype, device=like[0].device, memory_format=memory_format(*like))


def empty_wide(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of statistics beside the activation `like`."""
    return torch.empty(shape, dtype=wide(like.dtype), device=like.device)


def stored(t: Tensor, dtype: torch.dtype, *like: Tensor) -> Tensor:
    """`t` as the fake promised it: in `dtype`, with the strides of `empty(t.shape, dtype, *like)`; copied only if it differs.

    `Tensor.contiguous` is not enough: it keeps strides that are ambiguous, where a dimension is 1.
    """
    out = empty(t.shape, dtype, *like)
    return t if t.dtype == dtype and t.stride() == out.stride() else out.copy_(t)
