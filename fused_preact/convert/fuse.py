"""`fuse` and `unfuse`: modules change their class and nothing else, so that whatever holds or names them goes on working."""

import copy
import warnings
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from fused_preact.convert.norms import EXACT, FusedNorm, fused_class

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model, inplace: bool = False) -> Model:
    if not inplace:
        model = copy.deepcopy(model)
    norms = [m for m in model.modules() if refusal(m) is None]
    for norm in norms:
        norm.__class__ = fused_class(type(norm))
    return model


def unfuse(model: Model) -> Model:
    for module in model.modules():
        if isinstance(module, FusedNorm):
            module.__class__ = module.original
    return model


def refusal(module: nn.Module) -> str | None:
    if isinstance(module, FusedNorm):
        return "fused"
    if type(module) in EXACT or isinstance(module, nn.BatchNorm2d):
        return None
    return "other"
