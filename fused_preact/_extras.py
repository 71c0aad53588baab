"""Packages of the `train` extra, imported only where they are used."""

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """A package that training needs is not installed; the message is one sentence that says how to install it."""


def require(name: str) -> ModuleType:
    """Import the module `name` of the `train` extra; raises MissingExtraError when its package is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingExtraError(f"training needs {package}, which is not installed; pip install 'fused-preact[train]'") from None
