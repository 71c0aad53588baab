"""How a kernel is launched, and the memory that it reads and writes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver

from fused_preact.backends import layout


class Plan:
    """A kernel with its grid, constants and compiler options: all of a launch but the arguments that change from call to call."""

    def __init__(self, kernel: Any, grid: tuple[int, int, int], constants: tuple, num_warps: int, num_stages: int = 2) -> None:
        self.kernel, self.grid, self.constants = kernel, grid, constants
        self.options = {"num_warps": num_warps, "num_stages": num_stages}
        self._runners: dict[tuple, Callable[..., None]] = {}

    def __call__(self, *args: Tensor | int | float | None) -> None:
        """Launch on the current stream of the tensors' device."""
        device = args[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self._launch(device.index, args)
        else:
            self._launch(device.index, args)

    def _launch(self, device: int | None, args: tuple) -> None:
        # All that Triton specialises a kernel by. Asking here, and not Triton's JIT, takes about a third of the time (docs/performance.md).
        key = (device, *[_kind(a) if a.__class__ in _PLAIN else (a.dtype, a.data_ptr() % 16 == 0) for a in args])
        runner = self._runners.get(key)
        if runner is not None:
            runner(*args, *self.constants, stream=driver.active.get_current_stream(device))
            return
        compiled = self.kernel[self.grid](*args, *self.constants, **self.options)
        # The interpreter compiles nothing.
        if compiled is not None:
            self._runners[key] = compiled[self.grid]


_PLAIN = (int, float, type(None))


def _kind(a: int | float | None) -> int | type | None:
    return float if a.__class__ is float else a


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
