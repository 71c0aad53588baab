"""Weights of the same networks from a local file, under the names of any known code."""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fused_preact._text import unknown
from fused_preact.models.architectures import ARCHITECTURES, Architecture
from fused_preact.models.layouts import COUNTER, LAYOUTS, REFUSED, Layout, kind_of

_NESTED = ("state_dict", "model_state_dict", "model", "net")
_WRAPPERS = re.compile(r"(module\.|_orig_mod\.)+")
_INITIAL = {"running_mean": torch.tensor(0), "running_var": torch.tensor(1)}


def load_weights(model: nn.Module, path: str | os.PathLike[str], layout: str | None = None) -> str:
    """Load the weights in a local file into `model`, or none of them: whatever fails leaves the model as it was.

    The file is a state_dict, alone or under "state_dict", "model_state_dict", "model" or "net", saved by torch (read with
    `weights_only=True`, so that it can't run code) or as `.safetensors`. Prefixes of DataParallel and torch.compile are taken off. Files
    older than `num_batches_tracked` have none, and it becomes 0. Layouts, with the codes that were read for them:

    - "fused_preact": this package's own, of `create_model` and `reference_model`; all networks. The paper's variants (`resnet110` and
      its like) take no other, and some of them share keys and shapes: their weights must be of the same options.
    - "torch7": the authors' Lua codes, KaimingHe/resnet-1k-layers `resnet-pre-act.lua` (preact_resnet29, 164 and 1001) and
      facebook/fb.resnet.torch `models/preresnet.lua` (the others; its ResNet-200 is published). Not the `.t7` file itself, but a list of
      tensors saved by torch: of each module weight, bias, running_mean and running_var, depth first (README.md has the loop). A list has
      no names, so only the number of tensors and their shapes are checked.
    - "filter-pruning": he-y/filter-pruning-geometric-median `models/preresnet.py`; preact_resnet20, 56 and 110.
    - "PreResNetImageNet": the class of that name in ipytorch, Yang Lu's port of `preresnet.lua`; preact_resnet18 to 200. Its first
      unit has a norm that is not called; one with statistics of its own is refused.

    Networks that look the same and compute something else are refused with a sentence that says what differs: those of pytorchcv,
    pytorch-cifar, timm's resnetv2, torchvision and some more (`fused_preact/models/layouts.py`).

    Args:
        model: of `create_model` or `reference_model`, on any device, of any dtype.
        path: the file.
        layout: one of the names above; None recognises it by the keys.

    Returns:
        The name of the layout.

    Raises:
        OSError: the file can't be read.
        ValueError: what it holds is no state_dict, or of no known layout, or of a network that computes something else.
        RuntimeError: torch's own message on missing and unexpected keys and on shapes, such as those of another `num_classes`.
        ImportError: it is a `.safetensors` file and safetensors is not installed.
        TypeError: the model is no network of this package.
    """
    architecture = getattr(model, "architecture", None)
    if not isinstance(architecture, Architecture):
        raise TypeError(f"load_weights: expected a model of create_model or reference_model, got {type(model).__name__}")
    state, ours = _state_dict(Path(path)), list(model.state_dict())
    name = layout if layout is not None else _recognise(state, ours, architecture, path)
    _check_name(name, architecture, path)
    converted = _convert(state, ours, LAYOUTS[name], path)
    model.load_state_dict(_rehearsed(model, converted))
    return name


def _state_dict(path: Path) -> dict[str, Tensor]:
    """What the file holds by name, without prefixes; a list by the numbers of its items."""
    saved = _read(path)
    if isinstance(saved, Mapping):
        saved = next((saved[key] for key in _NESTED if isinstance(saved.get(key), Mapping)), saved)
    elif isinstance(saved, Sequence) and not isinstance(saved, str):
        saved = {str(index): value for index, value in enumerate(saved)}
    if not isinstance(saved, Mapping) or not saved or not all(isinstance(key, str) for key in saved):
        got = "an empty one" if isinstance(saved, Mapping) and not saved else type(saved).__name__
        raise ValueError(f"expected a state_dict or a list of tensors in {str(path)!r}, got {got}")
    wrapped = all(_WRAPPERS.match(key) for key in saved)
    return {_WRAPPERS.sub("", key, count=1) if wrapped else key: value for key, value in saved.items()}


def _read(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors()(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ImportError):
        raise
    except Exception as error:
        # Bytes that are no such file raise what the readers of zip, pickle and safetensors happen to stumble over.
        how = "safetensors" if path.suffix == ".safetensors" else "torch.load(weights_only=True)"
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"expected a file that {how} reads, got {str(path)!r}: {reason}") from error


def _load_safetensors():
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise ImportError("a .safetensors file needs safetensors, which is not installed; pip install safetensors") from None
    return load_file


def _recognise(state: Mapping[str, Tensor], ours: Sequence[str], architecture: Architecture, path: object) -> str:
    """The layout whose keys the file has; the nearest one if most fit, for torch to say which don't."""
    if all(key.isdecimal() for key in state):
        return "torch7"
    strangers = {name: _strangers(state, ours, layout) for name, layout in LAYOUTS.items() if kind_of(architecture) in layout.kinds}
    nearest = min(strangers, key=lambda name: len(strangers[name]))
    if strangers[nearest]:
        for name, refused in REFUSED.items():
            if all(key in state for key in refused.marks):
                return name
    if 2 * len(strangers[nearest]) > len(state):
        first = ", ".join(repr(key) for key in strangers[nearest][:3])
        raise ValueError(
            f"the keys of {str(path)!r} are of no known layout ({', '.join(LAYOUTS)}); the nearest for {_name(architecture)} is "
            f"{nearest!r}, which has no {first}{', ...' if len(strangers[nearest]) > 3 else ''}"
        )
    return nearest


def _strangers(state: Mapping[str, Tensor], ours: Sequence[str], layout: Layout) -> list[str]:
    """The file's keys that the layout doesn't have."""
    theirs = set(layout.keys(ours).values())
    return [key for key in state if key not in theirs and key.rpartition(".")[0] not in layout.unused]


def _check_name(name: str, architecture: Architecture, path: object) -> None:
    """ValueError unless the layout is one that computes what the architecture does."""
    if name in REFUSED:
        source, _, differs = REFUSED[name]
        differing = differs.get(kind_of(architecture), "its units are others, in their order or their shortcuts")
        raise ValueError(
            f"the weights in {str(path)!r} are those of {name} ({source}), whose networks are not {_name(architecture)}: "
            f"{differing}; nothing was loaded"
        )
    if name not in LAYOUTS:
        raise ValueError(unknown("layout", name, LAYOUTS))
    if kind_of(architecture) not in (kinds := LAYOUTS[name].kinds):
        raise ValueError(f"layout {name!r} is one of {' and '.join(kinds)} networks, got a {kind_of(architecture)} one")


def _convert(state: Mapping[str, Tensor], ours: Sequence[str], layout: Layout, path: object) -> dict[str, Tensor]:
    """The file's tensors by our keys; what is left over keeps its own, for torch to name."""
    keys = layout.keys(ours)
    if layout is LAYOUTS["torch7"] and len(state) != (wanted := sum(key.isdecimal() for key in keys.values())):
        raise ValueError(f"expected a list of {wanted} tensors in {str(path)!r}, those of this network, got {len(state)}")
    for norm in layout.unused:
        # A norm that was called has statistics of data.
        if any((state.get(f"{norm}.{key}", initial) != initial).any() for key, initial in _INITIAL.items()):
            raise ValueError(f"expected a {norm} that was never called in {str(path)!r}, because here is none, got statistics of data")
    converted = {key: state[theirs] for key, theirs in keys.items() if theirs in state}
    converted |= {key: torch.tensor(0) for key in ours if key.endswith(COUNTER) and key not in converted}
    # Under another layout a key left over may be spelled like one of ours.
    return converted | {f"{key} (theirs)" if key in keys else key: state[key] for key in _strangers(state, ours, layout)}


def _rehearsed(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state_dict of a copy that has loaded `state`: of the model itself, load_state_dict would write what fits before it raises."""
    memo = {id(tensor): torch.empty_like(tensor, device="cpu") for tensor in model.state_dict(keep_vars=True).values()}
    twin = copy.deepcopy(model, memo)
    twin.load_state_dict(state)
    return twin.state_dict()


def _name(architecture: Architecture) -> str:
    return next((name for name, known in ARCHITECTURES.items() if known == architecture), "this network")
