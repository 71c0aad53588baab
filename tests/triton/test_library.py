"""Where torch's library convolves a materialised z: the shared tests of the fused convolution, with every layer sent there."""

import pytest
import torch

from fused_preact.backends.triton import conv, tiles, tuning
from fused_preact.models.shapes import LAYER_SHAPES
from tests.ops import test_bn_relu_conv2d as shared
from tests.testing.cases import LAYERS

CASES = [case for case in LAYERS if case.id in ("1x1-residual", "3x3-stride2-odd", "3x3-wide-groups", "bias", "no-relu", "one-channel")]


RULE = tiles.materialises


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    monkeypatch.setattr(tiles, "materialises", lambda p: True)
    with tuning.trying({}):
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_fwd_and_bwd(case, dtype):
    shared.test_fwd(case, shared.NHWC, dtype, "triton")
    shared.test_bwd(case, True, shared.NCHW, dtype, "triton")


@pytest.mark.parametrize("options", [(False, False), (True, True)], ids=["plain", "deferred-add_dz"])
@pytest.mark.parametrize("case", CASES[1:3], ids=lambda case: case.id)
def test_emit(case, options):
    shared.test_emit(case, *options, torch.float32, "triton")


def test_bare_convolution():
    shared.test_bare_convolution("triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", LAYER_SHAPES, ids=lambda shape: shape.id)
def test_which_layers_go_there(shape, dtype):
    """Those bound by arithmetic, until somebody has measured: 3x3 of 128 channels and more; never where float32 must be exact."""
    layer = shape.layer
    weight = (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
    geometry = ((layer.stride,) * 2, (layer.padding,) * 2, (1, 1), 1)
    problem = conv.problem((64, layer.in_channels, layer.size, layer.size), weight, geometry, dtype, "ieee", 90)
    assert RULE(problem) == (dtype == torch.bfloat16 and layer.kernel == 3 and layer.in_channels >= 128)
