"""Forward and backward of every layer shape of ResNet-164, 1001 and 200: one fused call against BN, ReLU and conv of torch."""

import pytest
import torch
import torch.nn.functional as F

import fused_preact
from fused_preact.models.shapes import LAYER_SHAPES


@pytest.fixture(params=LAYER_SHAPES, ids=lambda shape: shape.id)
def shape(request):
    return request.param


@pytest.fixture
def calls(shape, images, device, dtype):
    """Both implementations on the same tensors, as functions of nothing, by name."""
    layer = shape.layer
    batch = images(next(iter(shape.networks)))
    torch.manual_seed(0)
    x = torch.randn(batch, layer.in_channels, layer.size, layer.size, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel, device=device, dtype=dtype) * 0.05
    weight = weight.to(memory_format=torch.channels_last)
    gamma, beta = torch.rand(layer.in_channels, device=device) + 0.5, torch.randn(layer.in_channels, device=device)
    mean, var = torch.zeros(layer.in_channels, device=device), torch.ones(layer.in_channels, device=device)
    inputs = [tensor.requires_grad_() for tensor in (x, gamma, beta, weight)]

    def fused():
        return fused_preact.bn_relu_conv2d(x, gamma, beta, mean, var, weight, training=True, stride=layer.stride, padding=layer.padding)

    def eager():
        return F.conv2d(F.relu(F.batch_norm(x, mean, var, gamma, beta, training=True)), weight, None, layer.stride, layer.padding)

    gradient = torch.randn_like(eager())

    def step(forward):
        torch.autograd.grad(forward(), inputs, gradient)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return {"fused": lambda: step(fused), "eager": lambda: step(eager)}


@pytest.mark.parametrize("variant", ["fused", "eager"])
def test_bench_layer(benchmark, shape, calls, variant, rounds):
    benchmark.group = f"{shape.id}  {', '.join(f'{count} in {name}' for name, count in shape.networks.items())}"
    benchmark.name = variant
    (other,) = (call for name, call in calls.items() if name != variant)

    # Between two timed calls the other implementation runs: both meet the machine, and its caches, in the same state.
    def take_turns():
        other()

    benchmark.pedantic(calls[variant], setup=take_turns, rounds=rounds, warmup_rounds=2)
