"""The shortcuts of Table 1: how the residual branch is added to what comes around it (figure 2)."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_preact._text import unknown


class JoinOptions(NamedTuple):
    """What a shortcut can be told.

    shortcut_scale, branch_scale: of "constant_scaling", any number that float32 has. A shortcut_scale of 0 is the plain net.
    gate_bias: b_g at initialisation, by default the best that the paper found.
    dropout: the rate of dropped elements, at least 0 and below 1.
    rescaled: False for the paper's mask, whose mean is 1 - dropout; True for torch's, which divides by that.
    """

    shortcut_scale: float = 0.5
    branch_scale: float = 1.0
    gate_bias: float = -6.0
    dropout: float = 0.5
    rescaled: bool = False

    @classmethod
    def checked(cls, shortcut: str, options: Mapping[str, object]) -> Self:
        """The options, None for a default; ValueError for an unknown shortcut, an option that it has no use for, or a bad value."""
        given = {name: value for name, value in options.items() if value is not None}
        if shortcut not in JOINS:
            raise ValueError(unknown("shortcut", shortcut, JOINS))
        for name, value in given.items():
            if name not in OPTIONS.get(shortcut, ()):
                users = " or ".join(repr(user) for user, names in OPTIONS.items() if name in names)
                raise ValueError(f"{name}: expected only with shortcut {users}, got {value!r} with shortcut {shortcut!r}")
            _CHECKS.get(name, _finite)(name, value)
        return cls(**given)


def _finite(name: str, value: object) -> None:
    # NaN compares as False, and a whole number of any length as what it is.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise ValueError(f"{name}: expected a float32 number, got {value!r}")


def _rate(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name}: expected a rate of at least 0 and below 1, got {value!r}")


def _yes_or_no(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, got {value!r}")


_LARGEST = torch.finfo(torch.float32).max
_CHECKS = {"dropout": _rate, "rescaled": _yes_or_no}


class Sum(nn.Module):
    """s + F: identity shortcuts (equation 3), and 1x1 convolutions (figure 2e), which the unit has run before."""

    def forward(self, x: Tensor, s: Tensor, h: Tensor) -> Tensor:
        """x: the unit's input; s: its shortcut, in the shape of h; h: the branch."""
        return h + s


class ConstantScaling(nn.Module):
    """shortcut_scale * s + branch_scale * F (figure 2b, equation 6); the branch alone, without a shortcut, where its scale is 0."""

    def __init__(self, shortcut_scale: float, branch_scale: float) -> None:
        super().__init__()
        # A whole number beyond 64 bits is none that torch multiplies by.
        self.shortcut_scale, self.branch_scale = float(shortcut_scale), float(branch_scale)

    def extra_repr(self) -> str:
        return f"shortcut_scale={self.shortcut_scale}, branch_scale={self.branch_scale}"

    def forward(self, x: Tensor, s: Tensor | None, h: Tensor) -> Tensor:
        # A product would keep the branch's convolution from being fused with what follows.
        h = h if self.branch_scale == 1 else self.branch_scale * h
        return h if s is None else h + self.shortcut_scale * s


class Gate(nn.Module):
    """(1 - g) * s + g * F with g = sigmoid(W_g x + b_g), element by element (figure 2c); not exclusive: (1 - g) * s + F (figure 2d).

    Choices: W_g is a 1x1 convolution with the unit's stride and channels, without a BN, which would cancel b_g; it reads what the
    shortcut begins at, so the unit's input, or the first activation where that is shared.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: float, exclusive: bool) -> None:
        super().__init__()
        self.bias, self.exclusive = bias, exclusive
        self.gate = nn.Conv2d(in_channels, out_channels, 1, stride)

    def extra_repr(self) -> str:
        return f"exclusive={self.exclusive}"

    def reset_bias(self) -> None:
        """b_g as at initialisation."""
        nn.init.constant_(self.gate.bias, self.bias)

    def forward(self, x: Tensor, s: Tensor, h: Tensor) -> Tensor:
        g = torch.sigmoid(self.gate(x))
        return (g * h if self.exclusive else h) + (1 - g) * s


class Dropout(nn.Module):
    """dropout(s) + F (figure 2f). Choice: in eval mode s is multiplied by the mask's mean."""

    def __init__(self, rate: float, rescaled: bool) -> None:
        super().__init__()
        self.rate, self.mean = rate, 1.0 if rescaled else 1 - rate

    def extra_repr(self) -> str:
        return f"rate={self.rate}, mean={self.mean}"

    def forward(self, x: Tensor, s: Tensor, h: Tensor) -> Tensor:
        # torch's mask has a mean of 1 in training, and none is there in eval mode.
        return h + self.mean * F.dropout(s, self.rate, self.training)


JOINS: dict[str, Callable[[JoinOptions, tuple[int, int, int]], nn.Module]] = {
    "identity": lambda options, shape: Sum(),
    "constant_scaling": lambda options, shape: ConstantScaling(options.shortcut_scale, options.branch_scale),
    "exclusive_gating": lambda options, shape: Gate(*shape, options.gate_bias, exclusive=True),
    "shortcut_only_gating": lambda options, shape: Gate(*shape, options.gate_bias, exclusive=False),
    "conv1x1": lambda options, shape: Sum(),
    "dropout": lambda options, shape: Dropout(options.dropout, options.rescaled),
}
OPTIONS = {
    "constant_scaling": ("shortcut_scale", "branch_scale"),
    "exclusive_gating": ("gate_bias",),
    "shortcut_only_gating": ("gate_bias",),
    "dropout": ("dropout", "rescaled"),
}
