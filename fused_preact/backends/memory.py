"""The memory that the kernels of a GPU read and write: dense NHWC activations, vectors side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_preact.backends import layout


def nhwc(t: Tensor | None) -> Tensor | None:
    """t with dense NHWC memory that starts at a multiple of 16 bytes; copied only if it is not so."""
    if t is None or (t.is_contiguous(memory_format=torch.channels_last) and t.data_ptr() % 16 == 0):
        return t
    return torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=torch.channels_last).copy_(t)


def vector(t: Tensor | None) -> Tensor | None:
    """t with its elements side by side, as kernels read what there is one of a channel."""
    return t if t is None else t.contiguous()


def rows(bn: Tensor | None) -> tuple[Tensor | None, int | None]:
    """bn with the elements of each vector side by side, and the distance of two vectors: it may be a view of those of a whole unit."""
    if bn is None:
        return None, None
    bn = bn if bn.stride(1) == 1 else bn.contiguous()
    return bn, bn.stride(0)


class Output:
    """A tensor that a kernel writes as `memory`, which is dense NHWC whatever the strides of the tensor are."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = self.memory = tensor
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            self.memory = torch.empty_like(tensor, memory_format=torch.channels_last)

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: torch.dtype, *like: Tensor) -> "Output":
        """An activation with the strides that the fake promised."""
        return cls(layout.empty(shape, dtype, *like))

    def get(self) -> Tensor:
        """The tensor, once the kernel is launched."""
        return self.tensor if self.memory is self.tensor else self.tensor.copy_(self.memory)
