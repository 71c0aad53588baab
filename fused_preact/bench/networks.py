"""The networks that are measured: the package's own by name, and anybody's as PACKAGE.MODULE:FACTORY, which `fuse` makes train fused."""

import difflib
import functools
import importlib
import inspect
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fused_preact.convert import fuse
from fused_preact.models import architecture, create_model, reference_model

# Of networks that don't say: those of CIFAR-10.
IMAGE_SIZE, NUM_CLASSES = 32, 10


class NoNetwork(ValueError):
    """There is nothing to measure by that name; the message is the sentence that the user sees."""


def is_own(name: str) -> bool:
    """Whether `name` is one of the package's own networks."""
    return ":" not in name


def plain(name: str) -> nn.Module:
    """The network in `torch.nn`."""
    if is_own(name):
        return reference_model(name)
    make = factory(name)
    model = make(**dict.fromkeys(_required(make), NUM_CLASSES))
    if not isinstance(model, nn.Module):
        raise NoNetwork(f"expected a factory of an nn.Module, got {name!r}, which returns {_called(model)}")
    return model


def fused(name: str, memory: str) -> nn.Module:
    """The same network, fused; of `fuse` there is one memory mode, "layer"."""
    if is_own(name):
        return create_model(name, memory=memory)
    model = plain(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            return fuse(model, inplace=True)
        except UserWarning as warning:
            raise NoNetwork(f"expected a network with something to fuse, got {name!r}; {warning}") from None


def image_size(name: str) -> int:
    """Height and width of the images that the network is for."""
    return architecture(name).image_size if is_own(name) else IMAGE_SIZE


@functools.cache
def num_classes(name: str, images: int, pixels: int) -> int:
    """How many classes the network tells apart; if it is somebody's, a step forward on `images` images tells."""
    if is_own(name):
        return architecture(name).num_classes
    model = plain(name).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            logits = model(torch.randn(images, 3, pixels, pixels))
        except (RuntimeError, ValueError) as error:
            raise NoNetwork(f"{name!r} can't be trained on {images} images of 3x{pixels}x{pixels}: {_first_line(error)}") from None
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise NoNetwork(f"expected a network that returns (images, classes), got {name!r}, which returns {_called(logits)}")
    return logits.size(1)


def factory(name: str) -> Callable[..., nn.Module]:
    """What PACKAGE.MODULE:FACTORY names."""
    path, colon, attribute = name.partition(":")
    if not (path and colon and attribute):
        raise NoNetwork(f"expected PACKAGE.MODULE:FACTORY, got {name!r}")
    try:
        module = importlib.import_module(path)
    except Exception as error:
        raise NoNetwork(f"expected a module that can be imported, got {path!r}: {type(error).__name__}: {_first_line(error)}") from None
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        raise NoNetwork(f"{path} has no {attribute!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    made = getattr(module, attribute)
    if not callable(made) or isinstance(made, nn.Module):
        raise NoNetwork(f"expected a function or class that makes a network, got {name!r}, {_called(made)}")
    if missing := sorted(_required(made) - {"num_classes"}):
        raise NoNetwork(f"expected a factory that needs no arguments but num_classes, got {name!r}, which needs {', '.join(missing)}")
    return made


def _required(make: Callable[..., object]) -> set[str]:
    """The arguments that `make` can't be called without."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError:
        # Some of what is written in C does not tell.
        return set()
    return {p.name for p in parameters if p.default is p.empty and p.kind not in kinds}


def _called(value: object) -> str:
    """A value, in few words."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a value of type {type(value).__name__}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
