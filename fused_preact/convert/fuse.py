"""`fuse` and `unfuse`: norms change their class and nothing else, so that whatever holds, names or saves them goes on working."""

import copy
import warnings
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from fused_preact.convert.norms import EXACT, FusedNorm, fused_class

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model, inplace: bool = False) -> Model:
    """`model` so that every BatchNorm2d -> ReLU -> Conv2d (or BatchNorm2d -> Conv2d) that its code executes runs as one fused function.

    No code of the model changes, and nothing is traced: a fused norm returns a tensor that is not computed yet, which ReLU and conv2d
    recognise; a shortcut that is added to the convolution's result is added before that is written, and a full pre-activation unit becomes
    one function with one backward. Any other use of the result gets the tensor, so that what can't be fused runs as it did. Parameters,
    buffers, state_dict keys and hooks are those of the model. Of each norm only the class changes, to a subclass of its own.

    Args:
        model: any nn.Module. Its norms may be nn.BatchNorm2d, nn.SyncBatchNorm, or subclasses of the former whose forward calls
            F.batch_norm (perhaps with an activation of their own behind it).
        inplace: fuse this very model; otherwise a deep copy.

    Returns the fused model. If there is nothing to fuse, it is as it was, and a warning says why. `unfuse` takes it back; `explain` tells
    what is fused. Statistics are taken when the norm is called; if its input is changed in place before the convolution, that raises.
    Convert to SyncBatchNorm before fusing: converted norms are not fused (fuse again). Inside torch.compile, torch.export, torch.func
    transforms and tracers the model is the unfused one. Second derivatives raise.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    model = model if inplace else copy.deepcopy(model)
    norms = [module for module in model.modules() if refusal(module) is None]
    reason = _nothing(model, norms)
    if reason:
        warnings.warn(f"fused_preact.fuse: {type(model).__name__} comes back as it was: {reason}", stacklevel=2)
        return model
    for norm in norms:
        norm.__class__ = fused_class(type(norm))
    return model


def unfuse(model: Model) -> Model:
    """The model that was fused, in place: every norm of its own class again."""
    for module in model.modules():
        if type(module).__dict__.get("original"):
            module.__class__ = module.original
    return model


def is_fused(model: nn.Module) -> bool:
    """Whether `fuse` changed a norm of it."""
    return any(isinstance(module, FusedNorm) for module in model.modules())


def refusal(module: nn.Module) -> str | None:
    """Why a module is no norm that `fuse` changes, in a sentence, or None."""
    kind = type(module).__name__
    if isinstance(module, FusedNorm):
        return f"{kind} is fused already"
    if isinstance(module, torch.jit.ScriptModule):
        return f"{kind} is compiled by TorchScript"
    if isinstance(module, LazyModuleMixin):
        return f"{kind} has no parameters yet: run the network once"
    if type(module) not in EXACT and not isinstance(module, nn.BatchNorm2d):
        return f"{kind} is not a BatchNorm2d"
    if parametrize.is_parametrized(module):
        return f"{kind} is parametrized"
    if "forward" in module.__dict__:
        return f"{kind} has a forward of its own"
    return None


def _nothing(model: nn.Module, norms: list[nn.Module]) -> str | None:
    """Why there is nothing to fuse in a model with these norms, or None."""
    if is_fused(model):
        return None
    modules = list(model.modules())
    if not norms:
        others = sorted({refusal(module) for module in modules if isinstance(module, _BatchNorm)})
        return "; ".join(others) if others else "it has no BatchNorm2d"
    if not any(isinstance(module, nn.Conv2d) for module in modules):
        return "it has no Conv2d"
    return None
