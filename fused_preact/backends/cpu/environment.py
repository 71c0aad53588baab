"""Whether the native library can be used on this machine, and which instruction set it runs."""

import importlib
import os

from fused_preact.backends import native

FORCED = "FUSED_PREACT_CPU_ISA"


def unavailable() -> str | None:
    """Why the cpu backend can't be used on this machine, in a sentence, or None."""
    if reason := native.missing("cpu", "a C++ compiler"):
        return reason
    forced, usable = os.environ.get(FORCED), importlib.import_module("fused_preact._cpu").isas()
    if forced and forced not in usable:
        return f"{FORCED} is {forced!r}, expected one of those that this library and this machine have: {', '.join(usable)}"
    return None


def isa() -> str:
    """The instruction set in use, where the backend is usable."""
    return importlib.import_module("fused_preact._cpu").isa()
