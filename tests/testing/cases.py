"""The layers that every backend is tested on: one list, each case with an id and the reason why it is there."""

from typing import NamedTuple

import pytest
import torch

from fused_preact.backends import available_backends
from fused_preact.backends.records import Conv

BACKENDS = [name for name, reason in available_backends().items() if reason is None]


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


SAME = Conv(padding=(1, 1))

LAYERS = [
    LayerCase("1x1", "first and last layer of a bottleneck", (2, 16, 8, 8), 64, (1, 1), residual=False),
    LayerCase("1x1-residual", "last layer of a unit adds the shortcut", (2, 16, 8, 8), 64, (1, 1), residual=True),
    LayerCase("1x1-stride2", "projection, and the CIFAR code's strided 1x1", (2, 16, 7, 9), 32, (1, 1), Conv((2, 2))),
    LayerCase("3x3", "the middle of a bottleneck", (2, 16, 8, 8), 16, (3, 3), SAME),
    LayerCase("3x3-stride2-odd", "stride leaves a last row and column unread", (2, 8, 7, 9), 12, (3, 3), Conv((2, 2), (1, 1))),
    LayerCase("3x3-unpadded", "no halo", (2, 5, 6, 7), 3, (3, 3)),
    LayerCase("3x3-padding2", "padding wider than the kernel's reach", (2, 5, 6, 7), 3, (3, 3), Conv(padding=(2, 2))),
    LayerCase("3x3-dilated", "output_stride networks", (2, 6, 9, 9), 4, (3, 3), Conv((1, 1), (2, 2), (2, 2))),
    LayerCase("3x3-groups", "ResNeXt, DPN", (2, 12, 6, 6), 8, (3, 3), Conv((1, 1), (1, 1), (1, 1), 4)),
    LayerCase("depthwise", "groups = channels", (2, 6, 6, 6), 6, (3, 3), Conv((1, 1), (1, 1), (1, 1), 6)),
    LayerCase("7x7-stride2", "ImageNet stem geometry", (2, 3, 15, 15), 8, (7, 7), Conv((2, 2), (3, 3))),
    LayerCase("1x3-mixed", "kernel, stride and padding differ by axis", (2, 4, 6, 9), 5, (1, 3), Conv((1, 2), (0, 1))),
    LayerCase("bias", "convolutions with bias", (2, 7, 5, 5), 9, (3, 3), SAME, bias=True),
    LayerCase("no-relu", "PyramidNet: BN, then conv", (2, 8, 6, 6), 8, (3, 3), SAME, relu=False),
    LayerCase("one-channel", "C = K = 1: strides are ambiguous", (3, 1, 5, 5), 1, (3, 3), SAME),
    LayerCase("odd-channels", "C and K multiples of nothing", (1, 17, 7, 3), 65, (3, 3), SAME),
    LayerCase("one-row", "H = 1", (2, 8, 1, 33), 8, (3, 3), SAME),
    LayerCase("one-pixel", "H = W = 1", (4, 8, 1, 1), 6, (1, 1)),
    LayerCase("one-image", "batch 1", (1, 8, 7, 7), 8, (3, 3), SAME),
    LayerCase("many-tiles", "more than one statistics tile", (3, 4, 65, 64), 4, (1, 1), residual=True),
    LayerCase("mean-1000", "mean 1000 standard deviations off: cancellation", (4, 6, 8, 8), 8, (3, 3), SAME, offset=1000.0),
]

layer_cases = pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.id)
backends = pytest.mark.parametrize("backend", BACKENDS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=lambda d: str(d).removeprefix("torch."))
formats = pytest.mark.parametrize("fmt", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
