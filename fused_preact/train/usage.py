"""Memory of a training run."""

import sys

import torch

try:
    import resource
except ModuleNotFoundError:
    resource = None


def peak_mb(device: torch.device | str) -> float:
    """The most memory so far, in 10^6 bytes: what torch allocated on a GPU, what the process held on a CPU (NaN on Windows)."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if resource is None:
        return float("nan")
    # getrusage(2): KiB on Linux; bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
