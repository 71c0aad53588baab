"""The libraries that setup.py builds from csrc: whether they are there."""

import importlib
from pathlib import Path

import torch  # noqa: F401  the cpu library, loaded after it, shares its OpenMP pool

PACKAGE = Path(__file__).resolve().parents[1]


def missing(name: str, needs: str) -> str | None:
    """Why fused_preact._NAME can't be imported, in a sentence, or None. needs: what it takes to build it, where setup.py left no reason."""
    try:
        importlib.import_module(f"fused_preact._{name}")
    except ModuleNotFoundError:
        # setup.py writes why there is no library.
        reason = PACKAGE / f"_{name}_missing.txt"
        why = reason.read_text(encoding="utf-8").strip() if reason.exists() else f"it takes {needs} when the package is installed"
        return f"the native library is not built: {why}"
    except Exception as error:
        return f"the native library can't be loaded: {type(error).__name__}: {' '.join(str(error).split())}"
    return None
