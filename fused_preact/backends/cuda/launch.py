"""How a native kernel is launched: addresses and sizes, on the current stream of the tensors' device."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from fused_preact import _cuda
from fused_preact.backends.cuda.environment import simulated

DTYPES = {torch.float32: _cuda.Dtype.float32, torch.bfloat16: _cuda.Dtype.bfloat16, torch.float16: _cuda.Dtype.float16}

Tensors = dict[str, Tensor | None]

_simulator = importlib.import_module("fused_preact.backends.cuda.simulated") if simulated() else None


def address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def launch(kernel: Callable[..., None], like: Tensor, *numbers: object, reads: Tensors, writes: Tensors) -> None:
    """kernel(device, stream, *numbers, *addresses), on the device of `like`; reads and writes in the order of the kernel's arguments."""
    addresses = [address(t) for t in (*reads.values(), *writes.values())]
    launch_at(kernel, like, *numbers, *addresses, memory=lambda: (reads, writes))


def launch_at(kernel: Callable[..., None], like: Tensor, *args: object, memory: Callable[[], tuple[Tensors, Tensors]]) -> None:
    """kernel(device, stream, *args), with addresses among args; memory(): what is there to be read and to be written, for the simulator."""
    if _simulator:
        return _simulator.launch(kernel, args, *memory())
    index = like.device.index
    args = (index, torch._C._cuda_getCurrentRawStream(index), *args)
    if index == torch.cuda.current_device():
        return kernel(*args)
    with torch.cuda.device(index):
        return kernel(*args)
