"""Whether the native library can be used on this machine, on which devices, and the simulator of CUDA that stands in for one."""

import functools
import importlib
import importlib.util
import os
import re
import sys
from typing import NamedTuple

import torch

from fused_preact.backends import native

SIMULATED = "FUSED_PREACT_CUDA_SIM"
# Built by tests/ptxsim/build.py.
SIMULATOR = native.PACKAGE.parent / "build" / "ptxsim"
OLDEST = (8, 0)


class Device(NamedTuple):
    """What tiles are chosen by."""

    multiprocessors: int
    shared_limit: int  # bytes of shared memory that a block may have


# What the simulator says of itself.
A100 = Device(108, 163 << 10)


def simulated() -> bool:
    """Whether kernels run in the simulator, on tensors of the CPU: FUSED_PREACT_CUDA_SIM=1."""
    return os.environ.get(SIMULATED, "0").lower() in ("1", "true", "yes", "on")


def unavailable() -> str | None:
    """Why the cuda backend can't be used on this machine, in a sentence, or None."""
    if simulated():
        return _load_simulated()
    if reason := native.missing("cuda", "nvcc and a C++ compiler"):
        return reason
    if torch.version.hip:
        return "the native library is for CUDA, and this torch is built for ROCm"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    library = importlib.import_module("fused_preact._cuda")
    if reason := outdated(*library.versions()):
        return reason
    compiled = library.architectures
    return next(
        (reason for i in range(torch.cuda.device_count()) if (reason := misses(torch.cuda.get_device_capability(i), compiled))), None
    )


def outdated(driver: int, runtime: int) -> str | None:
    """Why a library of CUDA `runtime`, such as 12040, does not run on a driver for `driver`, in a sentence, or None.

    A driver runs what was built with a newer release of its own major version (CUDA compatibility guide, "minor version compatibility").
    """
    if driver // 1000 >= runtime // 1000:
        return None
    own, needed = (f"{version // 1000}.{version % 1000 // 10}" for version in (driver, runtime))
    return f"the native library was built with CUDA {needed}, and the driver is for CUDA {own}"


def misses(capability: tuple[int, int], compiled: str) -> str | None:
    """Why code for `compiled`, such as "8.0 9.0+PTX", does not run on a device, in a sentence, or None.

    Code for x.y runs on x.z, z >= y (CUDA C++ programming guide, "binary compatibility"); +PTX on all that is newer.
    """
    own = ".".join(map(str, capability))
    if capability < OLDEST:
        return f"the cuda backend needs compute capability {'.'.join(map(str, OLDEST))} or newer, and a device has {own}"
    for major, minor, ptx in re.findall(r"(\d+)\.(\d+)(\+PTX)?", compiled):
        code = (int(major), int(minor))
        if code <= capability and (ptx or code[0] == capability[0]):
            return None
    return (
        f"the native library has code for {compiled.replace(' ', ', ')}, and a device has {own}: install with FUSED_PREACT_CUDA_ARCHS={own}"
    )


def runs() -> str:
    """What the library runs on, where the backend is usable."""
    code = importlib.import_module("fused_preact._cuda").architectures.replace(" ", ", ")
    return "in the simulator, on cpu tensors" if simulated() else f"with code for {code}"


@functools.cache
def device(index: int | None) -> Device:
    """None: the simulator's."""
    if index is None:
        return A100
    found = torch.cuda.get_device_properties(index)
    return Device(found.multi_processor_count, found.shared_memory_per_block_optin)


@functools.cache
def devices() -> tuple[int | None, ...]:
    """All of this machine, as `device` takes them."""
    return (None,) if simulated() else tuple(range(torch.cuda.device_count()))


def _load_simulated() -> str | None:
    name, library = "fused_preact._cuda", SIMULATOR / "_cuda.so"
    if not library.exists():
        return f"{SIMULATED} is set, and the simulator is not built: python -m tests.ptxsim.build, in a checkout with nvcc"
    spec = importlib.util.spec_from_file_location(name, library)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from fused_preact.backends.cuda import simulated as simulator

    return f"the simulator can't run the library: {reported}" if (reported := simulator.report()) else None
