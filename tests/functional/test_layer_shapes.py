"""Every BN-ReLU-conv layer of ResNet-164, 1001 and 200, at its real width and resolution, as accurate as plain torch."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F

import fused_preact as fp
from fused_preact import PreActConv2d
from fused_preact.models.shapes import LAYER_SHAPES
from tests.testing.cases import BACKENDS, device_of, emulated
from tests.testing.numerics import assert_as_accurate, drawn


def layers():
    """Every layer on every backend; where it is emulated on few pixels, and the wide layers of ResNet-200 among the slow tests."""
    for backend, shape in product(BACKENDS, LAYER_SHAPES):
        layer, marks = shape.layer, []
        if emulated(backend):
            layer = layer._replace(size=min(layer.size, 8))
            marks = [pytest.mark.slow] if set(shape.networks) == {"preact_resnet200"} else []
        yield pytest.param(layer, backend, id=f"{backend}-{shape.id}", marks=marks)


@pytest.mark.parametrize(("layer", "backend"), list(layers()))
def test_layer_of_the_networks(layer, backend):
    m = PreActConv2d(layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.padding)
    m = m.to(device_of(backend))
    t = copy.deepcopy(m).double()
    x = drawn((2, layer.in_channels, layer.size, layer.size), m.bn.weight.detach().cpu(), m.bn.bias.detach().cpu(), 0.0, torch.float32)
    x = x.contiguous(memory_format=torch.channels_last).to(device_of(backend))
    dy = torch.randn(m.conv(x).shape).to(x)

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
