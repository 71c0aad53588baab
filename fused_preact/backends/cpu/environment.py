"""Whether the native library can be used on this machine, and which instruction set it runs."""

import importlib
import os
from pathlib import Path

import torch  # noqa: F401  the library, loaded after it, shares its OpenMP pool

FORCED = "FUSED_PREACT_CPU_ISA"
# setup.py writes why there is no library.
REASON = Path(__file__).resolve().parents[2] / "_cpu_missing.txt"


def unavailable() -> str | None:
    """Why the cpu backend can't be used on this machine, in a sentence, or None."""
    try:
        library = importlib.import_module("fused_preact._cpu")
    except ModuleNotFoundError:
        reason = REASON.read_text(encoding="utf-8").strip() if REASON.exists() else "it takes a C++ compiler when the package is installed"
        return f"the native library is not built: {reason}"
    except Exception as error:
        return f"the native library can't be loaded: {type(error).__name__}: {' '.join(str(error).split())}"
    forced, usable = os.environ.get(FORCED), library.isas()
    if forced and forced not in usable:
        return f"{FORCED} is {forced!r}, expected one of those that this library and this machine have: {', '.join(usable)}"
    return None


def isa() -> str:
    """The instruction set in use, where the backend is usable."""
    return importlib.import_module("fused_preact._cpu").isa()
