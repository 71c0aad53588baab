"""Every BN-ReLU-conv layer of ResNet-164, 1001 and 200, at its real width and resolution, as accurate as plain torch."""

import copy

import pytest
import torch
import torch.nn.functional as F

import fused_preact as fp
from fused_preact import PreActConv2d
from fused_preact.models.shapes import LAYER_SHAPES
from tests.testing.cases import backends
from tests.testing.numerics import assert_as_accurate, drawn


@backends
@pytest.mark.parametrize("shape", LAYER_SHAPES, ids=lambda shape: shape.id)
def test_layer_of_the_networks(shape, backend):
    layer = shape.layer
    m = PreActConv2d(layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.padding)
    t = copy.deepcopy(m).double()
    x = drawn((2, layer.in_channels, layer.size, layer.size), m.bn.weight.detach(), m.bn.bias.detach(), 0.0, torch.float32)
    x = x.contiguous(memory_format=torch.channels_last)
    dy = torch.randn(m.conv(x).shape)

    def run(module, forward, dtype):
        leaf = x.to(dtype, copy=True).requires_grad_()
        y = forward(module, leaf)
        return y, *torch.autograd.grad(y, [leaf, *module.parameters()], dy.to(dtype))

    def plain(module, x):
        return module.conv(F.relu(module.bn(x)))

    with fp.use_backend(backend):
        got = run(m, lambda module, x: module(x), torch.float32)
    for name, *values in zip(
        ("y", "dx", "dgamma", "dbeta", "dweight"), got, run(m, plain, torch.float32), run(t, plain, torch.float64), strict=True
    ):
        assert_as_accurate(name, *values)
