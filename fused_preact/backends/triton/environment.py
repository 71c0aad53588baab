"""What triton can do on this machine, and why not."""

import functools
import importlib
import os
import re

import torch

MIN_VERSION = (3, 6)
MIN_CAPABILITY = 80


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of the CPU: TRITON_INTERPRET=1."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def unavailable() -> str | None:
    """Why the triton backend can't be used on this machine, in a sentence, or None."""
    try:
        version = importlib.import_module("triton").__version__
        importlib.import_module("triton.language")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            return f"triton is installed but can't be imported: {type(error).__name__}: {error}"
        return "triton is not installed; pip install 'fused-preact[triton]'"
    except Exception as error:
        return f"triton is installed but can't be imported: {type(error).__name__}: {error}"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and tuple(map(int, numbers.groups())) < MIN_VERSION:
        return f"triton {version} is too old, expected {'.'.join(map(str, MIN_VERSION))} or newer"
    if interpreted():
        return None
    if torch.version.hip:
        return "triton kernels of this package are for CUDA, and this torch is built for ROCm"
    if not torch.cuda.is_available():
        return "triton needs a CUDA device and torch sees none (TRITON_INTERPRET=1 runs its interpreter on the CPU, slowly)"
    least = min(capability(index) for index in range(torch.cuda.device_count()))
    if least < MIN_CAPABILITY:
        return f"triton kernels need compute capability 8.0 or newer on every visible device, and one has {least // 10}.{least % 10}"
    return None


@functools.cache
def capability(index: int | None) -> int:
    """Compute capability of a device as Triton writes it, such as 90; the interpreter stands in for 80."""
    if interpreted() or index is None:
        return MIN_CAPABILITY
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor
