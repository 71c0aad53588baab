"""How a native kernel is called: addresses, sizes, threads, and a workspace that is kept from call to call."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fused_preact import _cpu

DTYPES = {torch.float32: _cpu.Dtype.float32, torch.float64: _cpu.Dtype.float64, torch.bfloat16: _cpu.Dtype.bfloat16}


class _Workspace(threading.local):
    """Scratch memory of one Python thread. It grows and is never given back: fresh pages would cost more than most kernels."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.where = (0, 0)

    def grow(self, size: int) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8)
        self.where = (self.memory.data_ptr(), size)


_workspace = _Workspace()


def launch(kernel: Callable[..., int], like: Tensor, *args: Any) -> None:
    """Run a kernel on tensors of `like`'s dtype with torch's threads; it says how much workspace it misses."""
    with_workspace(functools.partial(kernel, DTYPES[like.dtype]), *args)


def with_workspace(call: Callable[..., int], *args: Any) -> None:
    """call(threads, *args, workspace, its bytes), once more if it says that bytes are missing."""
    threads = torch.get_num_threads()
    missing = call(threads, *args, *_workspace.where)
    if missing:
        _workspace.grow(missing)
        call(threads, *args, *_workspace.where)


def address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def nhwc(t: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    """t in dense NHWC memory and `dtype`; copied only if it is not so."""
    if t is None:
        return None
    t = t if dtype is None or t.dtype == dtype else t.to(dtype)
    return t if t.is_contiguous(memory_format=torch.channels_last) else t.contiguous(memory_format=torch.channels_last)


def vector(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Per-channel values side by side, in `dtype`."""
    if t is None or (t.dtype == dtype and t.is_contiguous()):
        return t
    return t.to(dtype).contiguous()


# Below, malloc's own pools are as good.
POOLED_BYTES = 1 << 18

_pooled = True


@contextlib.contextmanager
def allocated_by_torch() -> Iterator[None]:
    """Inside, all memory comes from torch's allocator, scratch too: slower, but torch's profiler sees it. Process-wide."""
    global _pooled
    _workspace.__init__()
    before, _pooled = _pooled, False
    try:
        yield
    finally:
        _pooled = before


def empty_nhwc(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised channels_last activation; the memory of a large one comes from a pool and returns there when it dies."""
    n, c, h, w = shape
    if not _pooled or n * c * h * w * dtype.itemsize < POOLED_BYTES:
        return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    return torch.from_dlpack(_cpu.empty_nhwc(DTYPES[dtype], n, c, h, w))


class Output:
    """An activation that a kernel writes as dense NHWC, `written`, and that leaves as `out`, in the memory format that was asked for."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        if memory_format == torch.channels_last:
            self.out = self.written = empty_nhwc(shape, dtype)
            return
        self.out = torch.empty(shape, dtype=dtype)
        dense = self.out.is_contiguous(memory_format=torch.channels_last)
        self.written = self.out if dense else empty_nhwc(shape, dtype)

    def address(self) -> int:
        return self.written.data_ptr()

    def result(self) -> Tensor:
        return self.out if self.written is self.out else self.out.copy_(self.written)
