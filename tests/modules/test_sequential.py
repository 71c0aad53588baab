"""Chains of units: statistics handed on, passes counted, segments."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import fused_preact as fp
from fused_preact import PreActBlock, PreActBottleneck, PreActConv2d, PreActSequential
from fused_preact.backends import eager
from fused_preact.bench.memory import peak_bytes, saved_bytes
from fused_preact.models import create_model
from tests.modules.test_units import D, assert_same, randomise, results
from tests.testing.spies import register_spy


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
    calls = register_spy("counting")
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
    vectors = sum(5 * 4 * bn.num_features for bn in units.modules() if isinstance(bn, nn.BatchNorm2d))
    assert saved_bytes(units, lambda: units(x)) == 3 * x.nbytes + vectors


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


def of_blocks(memory: str, n: int = 4, kind: type = PreActBlock) -> PreActSequential:
    torch.manual_seed(3)
    return randomise(PreActSequential(*(kind(8, 8, memory=memory) for _ in range(n)), segment=3))


class Halved(PreActBlock):
    """A unit with a forward of its own, as stochastic depth or squeeze-and-excitation would have."""

    def forward(self, x, stats=None, return_stats=False):
        y = super().forward(x) / 2
        return (y, None) if return_stats else y


class Third(PreActBlock):
    """The same, with the signature that everybody writes."""

    def forward(self, x):
        return super().forward(x) / 3


class Doubled(PreActSequential):
    def forward(self, x):
        return super().forward(x) * 2


def one_by_one(net: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    for module in copy.deepcopy(net):
        x = module(x)
    return x


@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
@pytest.mark.parametrize("kind", [Halved, Third])
def test_units_with_a_forward_of_their_own_are_called(kind, memory):
    net, x = of_blocks(memory, kind=kind), torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(net(x), one_by_one(net, x))


@pytest.mark.parametrize("memory", ["layer", "unit", "segment"])
def test_a_forward_put_into_a_unit_is_called(memory):
    net, x = of_blocks(memory), torch.randn(2, 8, 6, 6)
    net[1].forward = lambda x: 3 * x
    torch.testing.assert_close(net(x), one_by_one(net, x))


def test_nested_chains():
    x = torch.randn(2, 8, 6, 6)
    net = PreActSequential(of_blocks("layer", 2), Doubled(*of_blocks("unit", 2)), *of_blocks("segment", 2))
    torch.testing.assert_close(net(x), one_by_one(net, x))


def test_watched_children_end_a_segment():
    """A hook on a norm inside a segment fires once a step, and the unit runs unfused."""
    net, x, seen = of_blocks("segment", 5), torch.randn(2, 8, 6, 6), []
    twin = copy.deepcopy(net)
    net[2].bn2.register_forward_hook(lambda module, args, y: seen.append(y.shape))
    torch.testing.assert_close(net(x), twin(x))
    assert len(seen) == 1


def test_global_hooks_see_plain_arguments():
    net, x, seen = of_blocks("layer", 3), torch.randn(2, 8, 6, 6), []
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: seen.append(len(args)) if isinstance(module, PreActBlock) else None
    )
    net(x)
    handle.remove()
    assert seen == [1, 1, 1]


@pytest.mark.compile
def test_compiled_units_are_called():
    net, x = of_blocks("segment"), torch.randn(2, 8, 6, 6)
    twin, graphs = copy.deepcopy(net), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    net[1].compile(fullgraph=True, backend=backend)
    torch.testing.assert_close(net(x), twin(x))
    assert len(graphs) == 1
    whole = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(x), twin(x))


@pytest.mark.parametrize("memory", ["unit", "segment"])
@pytest.mark.parametrize("forward_autocast", [False, True])
def test_backward_inside_autocast_recomputes_the_same_bits(forward_autocast, memory):
    x = torch.randn(2, 8, 6, 6)
    grads = []
    for mode, backward_dtype in (("layer", None), (memory, torch.bfloat16), (memory, torch.float16)):
        net = of_blocks(mode)
        with torch.autocast("cpu", torch.bfloat16, enabled=forward_autocast):
            y = net(x)
        with torch.autocast("cpu", backward_dtype or torch.bfloat16, enabled=backward_dtype is not None):
            y.float().square().sum().backward()
        grads.append({name: p.grad for name, p in net.named_parameters()})
    for other in grads[1:]:
        assert_same(other, grads[0], rtol=0, atol=0)


def test_slices_and_replaced_units():
    """What people do with an nn.Sequential."""
    net, x = of_blocks("segment"), torch.randn(2, 8, 6, 6)
    half = net[:2]
    assert type(half) is PreActSequential
    assert half.segment == 3
    torch.testing.assert_close(net[2:](half(x)), copy.deepcopy(net)(x))
    net[1] = nn.Identity()
    net.append(nn.Dropout(0.0))
    twin = copy.deepcopy(net)
    h = x
    for module in twin:
        h = module(h)
    torch.testing.assert_close(net(x), h)


def test_statistics_that_nobody_reads_are_not_computed(monkeypatch):
    calls: list[str] = []
    plain = eager.bn_stats
    # Inside a convolution's epilogue too.
    monkeypatch.setattr(eager, "bn_stats", lambda x: (calls.append("bn_stats"), plain(x))[1])
    model, x = create_model("preact_resnet20").eval(), torch.randn(2, 3, 32, 32)
    insist = partial(fp.use_backend, "eager")
    with insist():
        model(x)
    assert not calls
    with insist():
        model.train()(x)
    # The stem is a plain convolution; every other norm takes the statistics of the convolution before it.
    assert len(calls) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    calls.clear()
    chain = PreActSequential(*(PreActBlock(4, 4, preact="none") for _ in range(4)))
    with insist():
        chain(torch.randn(2, 4, 5, 5))
    assert len(calls) == 4, "one inside each unit, none between them"
    calls.clear()
    with insist():
        PreActSequential(PreActBlock(4, 4), nn.BatchNorm2d(4))(torch.randn(2, 4, 5, 5))
    assert len(calls) == 2, "another module is not given any"


def test_nothing_is_kept_without_gradients():
    """Under no_grad, memory="layer" keeps nothing for a backward that will not come."""
    x = torch.randn(8, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    peaks = {}
    with torch.no_grad():
        for memory in ("layer", "unit"):
            unit = PreActBottleneck(64, 64, memory=memory)
            unit(x)
            peaks[memory] = peak_bytes(lambda unit=unit: unit(x), [])
    assert peaks["layer"] == peaks["unit"]


def test_parameters_of_norms_may_change_before_backward():
    """As in torch: backward reads the vectors of its forward, not gamma and beta."""
    for module in (PreActBlock(4, 4), PreActConv2d(4, 4, 1)):
        x = torch.randn(2, 4, 4, 4, requires_grad=True)
        y = module(x)
        (wanted,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        with torch.no_grad():
            for bn in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
                bn.weight.mul_(2)
                bn.bias.add_(1)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], wanted)


class Changes(nn.Module):
    """Gives another unit another weight, and puts a norm of it into eval mode."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit = [unit]

    def forward(self, *args):
        (unit,) = self.unit
        unit.conv1.weight = nn.Parameter(unit.conv1.weight.detach() * 2)
        unit.bn2.eval()
        return args[0] if len(args) == 1 else None


@pytest.mark.parametrize("how", ["module", "hook"])
def test_a_unit_is_read_when_its_turn_comes(how):
    """What runs before a unit may change it."""
    nets = [of_blocks("layer", 4).double() for _ in range(2)]
    for net in nets:
        if how == "hook":
            net[1].register_forward_hook(Changes(net[-1]))
        else:
            net.insert(1, Changes(net[-1]))
    x = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(nets[0](x), nn.Sequential.forward(nets[1], x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32], ids=str)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_counters_of_any_dtype(dtype, momentum):
    """`module.type(dtype)` converts num_batches_tracked too."""
    torch.manual_seed(0)
    unit = PreActBlock(8, 8, momentum=momentum)
    beside = torch.tensor([0, 7]).to(dtype)
    unit.bn1.num_batches_tracked = beside[0]
    plain = copy.deepcopy(unit)
    for _ in range(3):
        x = torch.randn(4, 8, 9, 9)
        unit(x)
        plain.call_children(x)
    assert beside.tolist() == [3, 7]
    assert unit.bn1.num_batches_tracked.dtype == dtype
    for (name, got), (_, expected) in zip(unit.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(got, expected, msg=name)


def test_cumulative_average_without_a_counter_never_moves():
    """nn.BatchNorm2d's behaviour for momentum=None and no num_batches_tracked."""
    unit = PreActBlock(4, 4)
    unit.bn1.momentum, unit.bn1.num_batches_tracked = None, None
    twin = copy.deepcopy(unit)
    x = torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(unit(x), twin.call_children(x))
    torch.testing.assert_close(unit.bn1.running_mean, twin.bn1.running_mean)
