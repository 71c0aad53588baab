"""Chains of units: statistics handed on, passes counted, segments."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fused_preact as fp
from fused_preact import PreActBlock, PreActBottleneck, PreActSequential
from fused_preact.backends import eager, register
from tests.modules.test_units import D, assert_same, randomise, results


def chain(memory: str = "layer", segment: int | None = None) -> PreActSequential:
    """Five bottlenecks, one of them a transition, and two blocks."""
    units = [
        PreActBottleneck(8, 2, memory=memory),
        PreActBottleneck(8, 2, memory=memory),
        PreActBottleneck(8, 3, 2, preact="shared", memory=memory),
        PreActBottleneck(12, 3, memory=memory),
        PreActBottleneck(12, 3, memory=memory),
        PreActBlock(12, 12, memory=memory),
        PreActBlock(12, 10, preact="shared", shortcut="projection", memory=memory),
    ]
    return randomise(PreActSequential(*units, segment=segment)).double()


def image(dtype: torch.dtype = D) -> torch.Tensor:
    return torch.randn(3, 8, 6, 6, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("segment", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("train", [True, False])
def test_memory_modes_give_the_same_bits(train, segment):
    base = chain().train(train)
    x = image()
    wanted = results(copy.deepcopy(base), x)
    for memory in ("unit", "segment"):
        net = copy.deepcopy(base)
        net.segment = segment
        for unit in net:
            unit.memory = memory
        assert_same(results(net, x), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("frozen_below", range(8))
def test_segment_with_frozen_units_below(frozen_below):
    """Fine-tuning: backward stops where nothing below needs a gradient."""
    base, x = chain("layer"), image()
    for unit in list(base)[:frozen_below]:
        unit.requires_grad_(False)
    net = copy.deepcopy(base)
    for unit in net:
        unit.memory = "segment"
    assert_same(results(net, x, need_x=False), results(base, x, need_x=False), rtol=0, atol=0)


@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
def test_passes_a_unit(memory):
    """Inside a chain no bn_stats, and at most one bn_bwd a unit: inner BN backward passes are deferred into the convolutions."""
    calls: list[str] = []

    def count(name):
        return lambda *args: (calls.append(name), getattr(eager, name)(*args))[1]

    names = [name for name in vars(eager) if name.startswith("bn_")]
    register("counting", SimpleNamespace(**{name: count(name) for name in names}, why_not=eager.why_not, TWO_DGRADS=False))
    net, x = chain(memory), image().requires_grad_()
    with fp.use_backend("counting"):
        y = net(x)
    assert calls.count("bn_stats") == 1, "only the entry of the chain"
    y.sum().backward()
    assert calls.count("bn_stats") == 1
    assert calls.count("bn_bwd") <= len(net)
    layers = sum(len(unit.names) for unit in net)
    projections = 2
    assert calls.count("bn_relu_conv2d_bwd") == layers + projections
    recomputed = {"layer": 0, "unit": layers - len(net)}
    if memory in recomputed:
        assert calls.count("bn_relu_conv2d_fwd") == layers + projections + recomputed[memory]


def test_segment_saves_every_kth_input():
    units = PreActSequential(*(PreActBottleneck(32, 8, memory="segment") for _ in range(9)))
    x = torch.randn(8, 32, 16, 16, requires_grad=True)
    own = {p.data_ptr() for p in units.parameters()}
    held = {}

    def pack(t):
        if t.data_ptr() not in own:
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        units(x)
    big = [size for size in held.values() if size >= x.nbytes // 4]
    assert big == [x.nbytes] * 3


def test_is_an_nn_sequential():
    net = chain()
    assert isinstance(net, nn.Sequential)
    assert list(net.state_dict()) == list(nn.Sequential(*net).state_dict())
    assert type(net[0]) is PreActBottleneck
    assert torch.equal(copy.deepcopy(net)(image().clone().fill_(1)), net(image().fill_(1)))


def test_hooks_on_units_see_plain_tensors_and_may_change_them():
    """A forward hook that replaces the output makes its statistics stale: they must not be used."""
    net, x = chain("segment"), image()
    twin = copy.deepcopy(net)
    seen = []
    net[1].register_forward_hook(lambda module, args, y: (seen.append(y), 2 * y)[1])
    net[3].register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))
    got = net(x)
    h = x
    for i, unit in enumerate(twin):
        h = unit(h + 1 if i == 3 else h)
        h = 2 * h if i == 1 else h
    assert isinstance(seen[0], torch.Tensor)
    torch.testing.assert_close(got, h)
