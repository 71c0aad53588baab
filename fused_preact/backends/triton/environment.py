"""What triton can do on this machine, and why not."""

import functools
import importlib.metadata
import os

import torch

MIN_VERSION = (3, 6)
MIN_CAPABILITY = 80


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of the CPU: TRITON_INTERPRET=1."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def unavailable() -> str | None:
    """Why the triton backend can't be used on this machine, in a sentence, or None."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "triton is not installed; pip install 'fused-preact[triton]'"
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_VERSION:
        return f"triton {version} is too old, expected {'.'.join(map(str, MIN_VERSION))} or newer"
    try:
        importlib.import_module("triton.language")
    except Exception as error:
        return f"triton {version} is installed but can't be imported: {type(error).__name__}: {error}"
    if interpreted():
        return None
    if torch.version.hip:
        return "triton kernels of this package are for CUDA, and this torch is built for ROCm"
    if not torch.cuda.is_available():
        return "triton needs a CUDA device and torch sees none (TRITON_INTERPRET=1 runs its interpreter on the CPU, slowly)"
    best = max(capability(index) for index in range(torch.cuda.device_count()))
    if best < MIN_CAPABILITY:
        return f"triton kernels need compute capability 8.0 or newer, and the best device here has {best // 10}.{best % 10}"
    return None


@functools.cache
def capability(index: int | None) -> int:
    """Compute capability of a device as Triton writes it, such as 90; the interpreter stands in for 80."""
    if interpreted() or index is None:
        return MIN_CAPABILITY
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor
