"""How a native kernel is launched: addresses and sizes, on the current stream of the tensors' device."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from fused_preact import _cuda
from fused_preact.backends.cuda.environment import simulated

DTYPES = {torch.float32: _cuda.Dtype.float32, torch.bfloat16: _cuda.Dtype.bfloat16, torch.float16: _cuda.Dtype.float16}

_simulator = importlib.import_module("fused_preact.backends.cuda.simulated") if simulated() else None


def launch(
    kernel: Callable[..., None], like: Tensor, *numbers: object, reads: dict[str, Tensor | None], writes: dict[str, Tensor | None]
) -> None:
    """kernel(device, stream, *numbers, *addresses), on the device of `like`; reads and writes in the order of the kernel's arguments."""
    if _simulator:
        return _simulator.launch(kernel, numbers, reads, writes)
    index = like.device.index
    addresses = [0 if t is None else t.data_ptr() for t in (*reads.values(), *writes.values())]
    args = (index, torch._C._cuda_getCurrentRawStream(index), *numbers, *addresses)
    if index == torch.cuda.current_device():
        return kernel(*args)
    with torch.cuda.device(index):
        return kernel(*args)
