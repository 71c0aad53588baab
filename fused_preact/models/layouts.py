"""The names that other public codes give to parameters: of the same networks, mapped, and of networks that only look the same, refused.

Names say little about a function. Which convolution has the stride, what a shortcut reads and where the first activation sits leave
most keys and shapes as they are, so every code below was read, and those with a test were run.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from fused_preact.models.architectures import Architecture

CIFAR_BASIC, CIFAR_BOTTLENECK, IMAGENET = KINDS = ("CIFAR basic", "CIFAR bottleneck", "ImageNet")
# Many of them share keys and shapes: whose weights they are is nothing that a file tells.
VARIANT = "rewired"
COUNTER = "num_batches_tracked"


def kind_of(architecture: Architecture) -> str:
    """Which of KINDS: the networks of a kind are wired alike. VARIANT: a network of other units, which no other code's weights fit."""
    if architecture.variant:
        return VARIANT
    if not architecture.cifar:
        return IMAGENET
    return CIFAR_BOTTLENECK if architecture.bottleneck else CIFAR_BASIC


class Layout(NamedTuple):
    """A code whose networks compute what ours do.

    `rename` gives their key for each of ours, in order. `unused` are the norms that their files hold and their forward never calls.
    """

    source: str
    kinds: Sequence[str]
    rename: Callable[[Sequence[str]], list[str]]
    unused: tuple[str, ...] = ()

    def keys(self, ours: Sequence[str]) -> dict[str, str]:
        """Our key -> theirs."""
        return dict(zip(ours, self.rename(ours), strict=True))


class Refused(NamedTuple):
    """A code whose networks compute something else: it is known by `marks`, keys that its files have, and differs so, by kind of ours."""

    source: str
    marks: tuple[str, ...]
    differs: dict[str, str]


def _same(ours: Sequence[str]) -> list[str]:
    return list(ours)


def _numbered(ours: Sequence[str]) -> list[str]:
    # The authors build their units in the order of ours (norm, convolution, ..., projection); torch7 counted no batches.
    numbers = iter(range(len(ours)))
    return [key if key.endswith(COUNTER) else str(next(numbers)) for key in ours]


def _by(*replacements: tuple[str, str]) -> Callable[[Sequence[str]], list[str]]:
    def rename(ours: Iterable[str]) -> list[str]:
        theirs = list(ours)
        for pattern, replacement in replacements:
            theirs = [re.sub(pattern, replacement, key) for key in theirs]
        return theirs

    return rename


LAYOUTS = {
    "fused_preact": Layout("this package, and its plain twins", (*KINDS, VARIANT), _same),
    "torch7": Layout(
        "KaimingHe/resnet-1k-layers resnet-pre-act.lua and facebook/fb.resnet.torch models/preresnet.lua, as a list", KINDS, _numbered
    ),
    "filter-pruning": Layout(
        "he-y/filter-pruning-geometric-median models/preresnet.py",
        (CIFAR_BASIC,),
        _by(
            (r"^conv1\.", "conv_3x3."),
            (r"^layer", "stage_"),
            (r"\.(bn|conv)1\.", r".\1_a."),
            (r"\.(bn|conv)2\.", r".\1_b."),
            (r"^bn\.", "lastact.0."),
            (r"^fc\.", "classifier."),
        ),
    ),
    "PreResNetImageNet": Layout(
        "class PreResNetImageNet of ipytorch, Yang Lu's port of preresnet.lua",
        (IMAGENET,),
        _by((r"^bn\.", "bn2."), (r"\.downsample\.", ".downsample.0.")),
        unused=("layer1.0.bn1",),
    ),
}

_PROJECTS = "it projects its shortcuts by 1x1 convolutions, where this one pads them with zeros"
_STRIDE = "its 3x3 convolutions have the stride, where here the first 1x1 has it"
_LATE_NORM = "no norm and ReLU stand between its first convolution and the pooling, but in front of its first unit"

REFUSED = {
    "pytorchcv": Refused(
        "osmr/pytorchcv models/preresnet.py and preresnet_cifar.py",
        ("features.stage1.unit1.body.conv1.bn.weight", "features.post_activ.bn.weight"),
        {
            CIFAR_BASIC: f"{_PROJECTS}, and the identity of its first unit is not activated",
            CIFAR_BOTTLENECK: _STRIDE,
            IMAGENET: "its first unit has a norm and a ReLU in front, after those of the stem, and but for the variants b the first 1x1 "
            "of its bottlenecks has the stride",
        },
    ),
    "pytorch-cifar": Refused(
        "kuangliu/pytorch-cifar models/preact_resnet.py",
        ("layer1.0.bn1.weight", "layer4.0.shortcut.0.weight", "linear.weight"),
        dict.fromkeys(KINDS, "it has a 3x3 stem of 64 channels without pooling, four stages, and no norm and ReLU at the end"),
    ),
    "timm": Refused(
        "huggingface/pytorch-image-models timm/models/resnetv2.py", ("stages.0.blocks.0.norm1.weight",), dict.fromkeys(KINDS, _LATE_NORM)
    ),
    "torchvision": Refused(
        "pytorch/vision torchvision/models/resnet.py, and pre-activation codes that took its shortcuts",
        ("layer2.0.bn1.weight", "layer2.0.downsample.1.weight"),
        dict.fromkeys(KINDS, "a norm follows its projections, as in networks with the activation behind the convolution"),
    ),
    "bearpaw": Refused(
        "bearpaw/pytorch-classification models/cifar/preresnet.py",
        ("layer2.0.bn1.weight", "layer2.0.downsample.0.weight", "bn.weight"),
        dict.fromkeys(KINDS, "its projections read the input of the unit before the activation, and its 3x3 convolutions have the stride"),
    ),
    "torch-resnet": Refused(
        "raphaelreme/torch-resnet torch_resnet/preact_resnet.py",
        ("layers.0.0.bn1.weight", "norm.weight"),
        {
            CIFAR_BASIC: "its shortcuts are projections or do not read the activation, where these pad the activated input with zeros",
            CIFAR_BOTTLENECK: _STRIDE,
            IMAGENET: _LATE_NORM,
        },
    ),
    "DCP": Refused(
        "SCUT-AILab/DCP dcp/models/preresnet.py",
        ("conv.weight", "layer2.0.bn1.weight", "layer2.0.downsample.weight"),
        dict.fromkeys(KINDS, "it has basic units on 32x32 images whose shortcuts are projections"),
    ),
    "hysts": Refused(
        "hysts/pytorch_resnet_preact resnet_preact.py",
        ("conv.weight", "stage1.block1.bn1.weight", "stage2.block1.shortcut.conv.weight"),
        {
            CIFAR_BASIC: f"{_PROJECTS}, and what its first units share is an option",
            CIFAR_BOTTLENECK: f"its first stage puts out 16 channels, not 64, and {_STRIDE}",
            IMAGENET: "it is a network for 32x32 images",
        },
    ),
}
