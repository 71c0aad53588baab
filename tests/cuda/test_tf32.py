"""float32 convolutions take kernels of the cuda backend where torch allows tf32, and torch's library where not, each way by itself."""

import copy

import pytest
import torch

import fused_preact as fp
from fused_preact import PreActBottleneck, PreActConv2d
from fused_preact.backends.records import Case, Conv
from fused_preact.bench.accuracy import objection
from tests.cuda.kernels import needs_simulator
from tests.ptxsim.simulator import simulator
from tests.testing.numerics import TF32_EPS, tf32

pytestmark = needs_simulator
NETS = {
    "1x1": lambda: PreActConv2d(20, 36, 1),
    "3x3": lambda: PreActConv2d(12, 20, 3, padding=1),
    "unit": lambda: PreActBottleneck(32, 8),
}
nets = pytest.mark.parametrize("net", NETS.values(), ids=NETS)
orders = pytest.mark.parametrize(("forward", "backward"), [(a, b) for a in (True, False) for b in (True, False)])


def run(net, x, forward, backward):
    """y, the gradients, and whether each way launched kernels of convolutions, with the flag as it is for each."""
    used = []

    def with_flag(allowed, call):
        torch.backends.cudnn.allow_tf32 = allowed
        simulator().clear()
        result = call()
        used.append(any("conv2d" in launch.kernel for launch in simulator().launches()))
        return result

    x = x.clone().requires_grad_()
    with fp.use_backend("cuda"):
        y = with_flag(forward, lambda: net(x))
        with_flag(backward, lambda: y.square().sum().backward())
    return {"y": y.detach(), "dx": x.grad} | {name: p.grad for name, p in net.named_parameters()}, used


def unfused(net, x):
    x = x.clone().requires_grad_()
    with fp.use_backend("eager"):
        y = net(x)
        y.square().sum().backward()
    return {"y": y.detach(), "dx": x.grad} | {name: p.grad for name, p in net.named_parameters()}


@nets
@orders
def test_the_flag_of_each_way_counts(net, forward, backward):
    net = net()
    x = torch.randn(2, next(net.parameters()).numel(), 9, 7).contiguous(memory_format=torch.channels_last)
    eager, truth = copy.deepcopy(net), copy.deepcopy(net).double()
    got, used = run(net, x, forward, backward)
    assert used == [forward, backward]
    theirs, exact = unfused(eager, x), unfused(truth, x.double())
    for name, wanted in exact.items():
        assert (reason := objection(name, got[name], theirs[name], wanted, TF32_EPS, ("RMS",))) is None, reason


def test_without_tf32_nothing_is_rounded():
    net, x = PreActConv2d(16, 16, 1), torch.randn(2, 16, 8, 8)
    got, _ = run(net, x, False, False)
    wanted = unfused(copy.deepcopy(net).double(), x.double())["y"]
    torch.testing.assert_close(got["y"].double(), wanted, rtol=1e-5, atol=1e-6)


def test_neither_is_refused():
    from fused_preact.backends import cuda

    case = Case("cpu", torch.float32, (2, 16, 8, 8), (16, 16, 1, 1), torch.float32, Conv())
    assert cuda.why_not(case) is cuda.why_not(case._replace(tf32=True)) is None


@pytest.mark.parametrize(
    ("value", "rounded"), [(1 + 2**-11, 1 + 2**-10), (-1 - 2**-11, -1 - 2**-10), (1 + 2**-12, 1.0), (float("inf"), float("inf"))]
)
def test_rounding_of_the_reference(value, rounded):
    """Half away from zero."""
    assert tf32(torch.tensor([value])).item() == rounded
