"""Packages of the `train` extra, imported only where they are used."""

import importlib
from types import ModuleType

# Where the package's name is not that of its module.
PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}


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
        named = f"{package} (package {PACKAGES[package]})" if package in PACKAGES else package
        raise MissingExtraError(f"training needs {named}, which is not installed; pip install 'fused-preact[train]'") from None
