"""Networks by name."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from fused_preact._text import unknown
from fused_preact.convert import fuse
from fused_preact.models.architectures import ARCHITECTURES, PAPER_ARCHITECTURES, Architecture, paper_depths
from fused_preact.models.paper import PaperResNet
from fused_preact.models.reference import ReferenceResNet
from fused_preact.models.resnet import PreActResNet

_ALL = ARCHITECTURES | PAPER_ARCHITECTURES


def list_models(paper: bool = True) -> list[str]:
    """The names that `create_model` knows; paper=False leaves out those whose units are options, `resnet20` to `resnet1001`."""
    return sorted(_ALL if paper else ARCHITECTURES)


def architecture(name: str) -> Architecture:
    """The architecture called `name`; raises ValueError with the nearest name, of a `resnet` the one of the nearest depth."""
    if name not in _ALL:
        raise ValueError(_no_such_depth(name) or unknown("model", name, _ALL))
    return _ALL[name]


def create_model(name: str, **options: Any) -> PreActResNet | PaperResNet:
    """The network called `name`, fused.

    Args:
        name: one of `list_models()`. `preact_resnet*` have the units of the authors' codes; `resnet*` any of the paper's, by default the
            original ones, and run what of them can be fused by `fuse`.
        options: those of `PreActResNet` (num_classes, memory, segment, in_channels), or of `PaperResNet` (num_classes, in_channels,
            shortcut, activation, one_layer, shortcut_scale, branch_scale, gate_bias, dropout, rescaled).

    Raises: ValueError for a name or a value that is not known, TypeError for an option that the network does not have.
    """
    if name in PAPER_ARCHITECTURES:
        return fuse(reference_model(name, **options), inplace=True)
    return _made(PreActResNet, name, options)


def reference_model(name: str, **options: Any) -> ReferenceResNet | PaperResNet:
    """The same network as `create_model(name)` in plain `torch.nn`, with the same state_dict keys and initialisation."""
    return _made(PaperResNet if name in PAPER_ARCHITECTURES else ReferenceResNet, name, options)


def _made(network: type[nn.Module], name: str, options: Mapping[str, Any]) -> Any:
    found, known = architecture(name), list(inspect.signature(network).parameters)[1:]
    for option in options:
        if option not in known:
            raise TypeError(unknown(f"option of {name}", option, known))
    return network(found, **options)


def _no_such_depth(name: str) -> str | None:
    """The sentence for `resnet` and a depth that no network has; None for other names."""
    match = re.fullmatch(r"resnet(\d+)", str(name))
    if match is None:
        return None
    basic, bottlenecks = paper_depths(False), paper_depths(True)
    near = min(basic + bottlenecks, key=lambda depth: abs(depth - int(match[1])))
    return (
        f"unknown model {name!r}; did you mean 'resnet{near}'? expected a depth of {', '.join(map(str, basic))} (6n+2, of 3x3 layers) "
        f"or {', '.join(map(str, bottlenecks))} (9n+2, of bottlenecks)"
    )
