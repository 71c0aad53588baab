"""Launches in the simulator of CUDA (tests/ptxsim), which must know what memory a kernel may use, and reports what a GPU would not."""

import ctypes
from collections.abc import Callable

from torch import Tensor

from fused_preact.backends.cuda.environment import SIMULATOR

# The one that the library is linked with.
_library = ctypes.CDLL(str(SIMULATOR / "libptxsim.so"))
_library.ptxsim_report.restype = ctypes.c_char_p


def report() -> str:
    """What it objects to since the last launch began, a sentence a line."""
    return _library.ptxsim_report().decode().strip()


def launch(kernel: Callable[..., None], args: tuple, reads: dict[str, Tensor | None], writes: dict[str, Tensor | None]) -> None:
    """Raises RuntimeError with what the simulator objects to."""
    _library.ptxsim_next()
    # What is read and written is writable.
    tensors = [(name, t, writable) for own, writable in ((reads, 0), (writes, 1)) for name, t in own.items() if t is not None]
    for name, t, writable in tensors:
        _library.ptxsim_region(ctypes.c_void_p(t.data_ptr()), ctypes.c_size_t(_span(t)), name.encode(), writable)
    try:
        kernel(0, 0, *args)
    except RuntimeError as error:
        if reported := report():
            raise RuntimeError(f"{error}: {reported}") from None
        raise


def _span(t: Tensor) -> int:
    """Bytes from the first element to the last."""
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.element_size() if t.numel() else 0
