"""The layers that every backend is tested on: one list, each case with an id and the reason why it is there."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch

from fused_preact.backends import available_backends, backend
from fused_preact.backends.records import Case, Conv
from tests.testing.isas import register_instruction_sets

BACKENDS = [name for name, reason in available_backends().items() if reason is None]
# The cpu backend on every instruction set that this machine has; by itself it runs the last.
INSTRUCTION_SETS = register_instruction_sets() if "cpu" in BACKENDS else []
DTYPES = {
    **dict.fromkeys(INSTRUCTION_SETS, (torch.float32, torch.bfloat16, torch.float64)),
    "cpu": (torch.float32, torch.bfloat16, torch.float64),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
    "eager": (torch.float32, torch.bfloat16, torch.float64),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}


def device_of(backend: str) -> str:
    """Where a backend is tested: those for GPUs on one if there is one, otherwise on the CPU (in an interpreter or simulator)."""
    return "cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class LayerCase(NamedTuple):
    """x (n, c, h, w), weight (k, c/groups, *kernel); offset is added to x in units of its standard deviation."""

    id: str
    why: str
    x: tuple[int, int, int, int]
    k: int
    kernel: tuple[int, int]
    conv: Conv = Conv()
    relu: bool = True
    bias: bool = False
    residual: bool = False
    offset: float = 0.0

    def refusal(self, name: str, dtype: torch.dtype) -> str | None:
        """Why the backend called `name` does not take the case, in its own words."""
        c = self.x[1]
        return backend(name).why_not(Case(device_of(name), dtype, self.x, (self.k, c // self.conv.groups, *self.kernel), dtype, self.conv))


# Under this mark torch allows tf32.
TF32 = (pytest.mark.tf32,)
SAME = Conv(padding=(1, 1))

LAYERS = [
    LayerCase("1x1", "first and last layer of a bottleneck", (2, 16, 8, 8), 64, (1, 1), residual=False),
    LayerCase("1x1-residual", "last layer of a unit adds the shortcut", (2, 16, 8, 8), 64, (1, 1), residual=True),
    LayerCase("1x1-tails", "pixels and channels that fill no tile", (3, 24, 9, 13), 40, (1, 1), residual=True, bias=True),
    LayerCase("1x1-wide", "channels come in slabs, the last of them cut", (1, 136, 5, 7), 72, (1, 1), bias=True),
    LayerCase("1x1-stride2", "projection, and the CIFAR code's strided 1x1", (2, 16, 7, 9), 32, (1, 1), Conv((2, 2))),
    LayerCase("3x3", "the middle of a bottleneck", (2, 16, 8, 8), 16, (3, 3), SAME),
    LayerCase("3x3-stride2-odd", "stride leaves a last row and column unread", (2, 8, 7, 9), 12, (3, 3), Conv((2, 2), (1, 1))),
    LayerCase("3x3-tiles", "several tiles of an image, cut on both sides", (1, 24, 18, 17), 8, (3, 3), SAME, residual=True, bias=True),
    LayerCase("3x3-slabs", "channels of 3x3 taps come in slabs", (1, 72, 4, 3), 72, (3, 3), SAME),
    LayerCase("3x3-stride2", "the middle of a bottleneck that halves the image", (2, 16, 9, 12), 24, (3, 3), Conv((2, 2), (1, 1))),
    LayerCase("3x3-unpadded", "no halo", (2, 5, 6, 7), 3, (3, 3)),
    LayerCase("3x3-padding2", "padding wider than the kernel's reach", (2, 5, 6, 7), 3, (3, 3), Conv(padding=(2, 2))),
    LayerCase("3x3-dilated", "output_stride networks", (2, 6, 9, 9), 4, (3, 3), Conv((1, 1), (2, 2), (2, 2))),
    LayerCase("3x3-dilated-chunks", "the same, of channels in whole chunks", (1, 16, 11, 9), 8, (3, 3), Conv((1, 1), (2, 2), (2, 2))),
    LayerCase("3x3-groups", "ResNeXt, DPN", (2, 12, 6, 6), 8, (3, 3), Conv((1, 1), (1, 1), (1, 1), 4)),
    LayerCase("3x3-wide-groups", "ResNeXt with groups that fill a tile", (2, 48, 5, 6), 40, (3, 3), Conv((2, 1), (1, 1), (1, 1), 2)),
    LayerCase("depthwise", "groups = channels", (2, 6, 6, 6), 6, (3, 3), Conv((1, 1), (1, 1), (1, 1), 6)),
    LayerCase("7x7-stride2", "ImageNet stem geometry", (1, 3, 9, 9), 8, (7, 7), Conv((2, 2), (3, 3))),
    LayerCase("1x3-mixed", "kernel, stride and padding differ by axis", (2, 4, 6, 9), 5, (1, 3), Conv((1, 2), (0, 1))),
    LayerCase("bias", "convolutions with bias", (2, 7, 5, 5), 9, (3, 3), SAME, bias=True),
    LayerCase("no-relu", "PyramidNet: BN, then conv", (2, 8, 6, 6), 8, (3, 3), SAME, relu=False),
    LayerCase("one-channel", "C = K = 1: strides are ambiguous", (3, 1, 5, 5), 1, (3, 3), SAME),
    LayerCase("odd-channels", "C and K multiples of nothing", (1, 17, 7, 3), 65, (3, 3), SAME),
    LayerCase("one-row", "H = 1", (2, 8, 1, 33), 8, (3, 3), SAME),
    LayerCase("one-pixel", "H = W = 1", (4, 8, 1, 1), 6, (1, 1)),
    LayerCase("one-image", "batch 1", (1, 8, 7, 7), 8, (3, 3), SAME),
    LayerCase("many-tiles", "more than one statistics tile", (3, 4, 17, 16), 4, (1, 1), residual=True),
    LayerCase("mean-1000", "mean 1000 standard deviations off: cancellation", (4, 6, 8, 8), 8, (3, 3), SAME, offset=1000.0),
]


def emulated(backend: str) -> bool:
    """Whether a GPU's backend runs in an interpreter or simulator: every operation counts, so options are combined and not crossed."""
    return backend in ("cuda", "triton") and device_of(backend) == "cpu"


def in_turn(number: int, turns: int = 2) -> tuple[pytest.MarkDecorator, ...]:
    """Marks of case `number` of a list that is too long for every day: of as many in a row as there are turns, all but one are slow."""
    return (pytest.mark.slow,) if number % turns else ()


def every_case(
    *names: str,
    crossed: Sequence[tuple],
    combined: Sequence[tuple],
    dtypes: Sequence[torch.dtype] = (),
    cases: Sequence[LayerCase] = tuple(LAYERS),
) -> pytest.MarkDecorator:
    """Parametrise by backend, dtype, case and the options `names`: those `crossed`, for an emulated backend those `combined`.

    Triton's interpreter takes seconds for many cases: there the dtypes take turns with the options, and half of them, every case with
    others, are slow tests.

    The cpu backend comes once more for each instruction set, with those combined.

    dtypes: all that an emulated backend runs with, if not all that it has.
    """
    params = []
    for name in [*BACKENDS, *INSTRUCTION_SETS]:
        options = combined if emulated(name) or name in INSTRUCTION_SETS else crossed
        for number, dtype in enumerate(d for d in DTYPES[name] if not (emulated(name) and dtypes) or d in dtypes):
            interpreted = name == "triton" and emulated(name)
            own = [options[number % len(options)]] if interpreted else options
            # float32 comes once more where it is multiplied as tf32.
            for marks in ((), TF32) if (name, dtype) == ("cuda", torch.float32) else ((),):
                kind = "tf32" if marks else name_of(dtype)
                for turn, case in enumerate(cases):
                    if case.refusal(name, dtype) is None:
                        labels = [("-".join([name, kind, case.id, *map(_label, values)]), values) for values in own]
                        slow = in_turn(number + turn) if interpreted else ()
                        params += [pytest.param(name, dtype, case, *values, id=label, marks=(*marks, *slow)) for label, values in labels]
    return pytest.mark.parametrize(("backend", "dtype", "case", *names), params)


def _label(value: object) -> str:
    return {torch.channels_last: "nhwc", torch.contiguous_format: "nchw"}.get(value, str(value).lower())


backends = pytest.mark.parametrize("backend", BACKENDS)
float64_backends = pytest.mark.parametrize("backend", [name for name in BACKENDS if torch.float64 in DTYPES[name]])
backends_and_dtypes = pytest.mark.parametrize(
    ("backend", "dtype"), [pytest.param(name, dtype, id=f"{name}-{name_of(dtype)}") for name in BACKENDS for dtype in DTYPES[name]]
)
formats = pytest.mark.parametrize("fmt", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
