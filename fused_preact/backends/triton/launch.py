"""How a kernel is launched."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver


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
