"""`bn_relu_conv2d` and PreActConv2d are Sequential(BatchNorm2d, ReLU, Conv2d), gradients and running statistics included."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fused_preact as fp
from fused_preact import PreActConv2d
from fused_preact.backends.records import Case, Conv
from fused_preact.bench.memory import saved_bytes
from tests.testing.cases import LAYERS, device_of, every_case, float64_backends
from tests.testing.numerics import assert_as_accurate, drawn
from tests.testing.spies import register_spy


def module_of(case, dtype) -> PreActConv2d:
    m = PreActConv2d(case.x[1], case.k, case.kernel, *case.conv[:3], case.conv.groups, bias=case.bias)
    nn.init.uniform_(m.bn.weight, 0.5, 1.5)
    nn.init.normal_(m.bn.bias)
    nn.init.normal_(m.bn.running_mean)
    nn.init.uniform_(m.bn.running_var, 0.5, 2)
    m.conv.to(dtype)
    return m if dtype != torch.float64 else m.double()


def results(m: PreActConv2d, forward, x, dy, residual):
    x = x.clone().requires_grad_()
    residual = None if residual is None else residual.clone().requires_grad_()
    y = forward(m, x, residual)
    y.backward(dy.to(y.dtype))
    named = {"y": y, "dx": x.grad, "dresidual": None if residual is None else residual.grad}
    named |= {f"gradient of {name}": p.grad for name, p in m.named_parameters()}
    return named | dict(m.named_buffers())


def plain(m, x, residual):
    y = m.conv(F.relu(m.bn(x)))
    return y if residual is None else y + residual


@every_case(
    "fmt",
    "train",
    crossed=list(itertools.product((torch.channels_last, torch.contiguous_format), (True, False))),
    combined=[(torch.channels_last, True)],
    dtypes=(torch.float32,),
    cases=[case for case in LAYERS if case.relu],
)
def test_is_the_sequential(case, train, fmt, dtype, backend):
    device = device_of(backend)
    m = module_of(case, dtype).train(train)
    x = drawn(case.x, m.bn.weight.detach(), m.bn.bias.detach(), case.offset, dtype).contiguous(memory_format=fmt).to(device)
    m = m.to(device)
    p, t = copy.deepcopy(m), copy.deepcopy(m).double()
    shape = plain(copy.deepcopy(m), x, None).shape
    dy = torch.randn(shape).to(x)
    residual = torch.randn(shape).to(x) if case.residual else None
    with fp.use_backend(backend):
        got = results(m, lambda m, x, r: m(x, r), x, dy, residual)
    eager = results(p, plain, x, dy, residual)
    truth = results(t, plain, x.double(), dy.double(), None if residual is None else residual.double())
    for name in truth:
        if name == "bn.num_batches_tracked":
            assert got[name] == truth[name] == train
        else:
            assert_as_accurate(name, got[name], eager[name], truth[name])


@float64_backends
def test_without_relu(backend):
    bn, conv = nn.BatchNorm2d(6).double(), nn.Conv2d(6, 4, 3).double()
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    with fp.use_backend(backend):
        y = fp.bn_relu_conv2d(x, bn.weight, bn.bias, None, None, conv.weight, conv.bias, training=True, relu=False)
    got = torch.autograd.grad(y.square().sum(), (x, *bn.parameters(), *conv.parameters()))
    y = conv(bn(x))
    for a, b in zip(got, torch.autograd.grad(y.square().sum(), (x, *bn.parameters(), *conv.parameters())), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_norm_options(train, track, affine, momentum):
    """Two steps with every kind of BatchNorm2d: gradients, buffers and their update are those of the plain layer."""
    m = PreActConv2d(5, 3, 3).double()
    m.bn = nn.BatchNorm2d(5, affine=affine, track_running_stats=track, momentum=momentum).double()
    m.train(train)
    p = copy.deepcopy(m)
    for seed in range(2):
        x = torch.randn(3, 5, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 1
        m.zero_grad(), p.zero_grad()
        got, wanted = (
            results(net, f, x, torch.ones(1, dtype=torch.float64).expand(3, 3, 4, 4), None)
            for net, f in ((m, lambda m, x, r: m(x)), (p, plain))
        )
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "live", [c for n in range(6) for c in itertools.combinations(("x", "bn.weight", "bn.bias", "conv.weight", "conv.bias"), n)]
)
@pytest.mark.parametrize("train", [True, False])
def test_frozen_parameters_in_any_subset(train, live):
    m = PreActConv2d(4, 3, 3, bias=True).double().train(train)
    for name, p in m.named_parameters():
        p.requires_grad_(name in live)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad="x" in live)
    leaves = [t for t in (x, *m.parameters()) if t.requires_grad]
    y, wanted = m(x), plain(copy.deepcopy(m), x, None)
    assert y.requires_grad == wanted.requires_grad == bool(live)
    if live:
        reference = copy.deepcopy(m)
        got = torch.autograd.grad(y.square().sum(), leaves)
        twin = [t for t in (x, *reference.parameters()) if t.requires_grad]
        for a, b in zip(got, torch.autograd.grad(plain(reference, x, None).square().sum(), twin), strict=True):
            torch.testing.assert_close(a, b)


@float64_backends
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_gradcheck(relu, training, backend):
    def leaf(*shape):
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    # Groups where the backend takes such small ones.
    conv = Conv((2, 2), (1, 1), (1, 1), 2)
    groups = (
        2
        if fp.backends.backend(backend).why_not(Case("cpu", torch.float64, (2, 4, 5, 4), (6, 2, 3, 3), torch.float64, conv)) is None
        else 1
    )
    x, residual, gamma, beta, weight, bias = leaf(2, 4, 5, 4), leaf(2, 6, 3, 2), leaf(4), leaf(4), leaf(6, 4 // groups, 3, 3), leaf(6)
    mean, var = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5

    def f(x, gamma, beta, weight, bias, residual):
        with fp.use_backend(backend):
            return fp.bn_relu_conv2d(
                x, gamma, beta, mean.clone(), var.clone(), weight, bias, residual=residual, training=training, stride=2, padding=1,
                groups=groups, relu=relu,
            )  # fmt: skip

    assert torch.autograd.gradcheck(f, (x, gamma, beta, weight, bias, residual))


def test_statistics_are_handed_on():
    """y's statistics from one layer serve the next, and are constants to autograd."""
    a, b = PreActConv2d(4, 6, 3).double(), PreActConv2d(6, 3, 3).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    y, stats = a(x, return_stats=True)
    assert y.requires_grad
    assert not stats.requires_grad
    torch.testing.assert_close(b(y, stats=stats), copy.deepcopy(b)(y))


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast(x_dtype):
    """BN reads x in its own dtype; z and the weight take autocast's; gradients come back in the parameters' dtype."""
    m, x = PreActConv2d(6, 4, 3), torch.randn(2, 6, 8, 8).to(x_dtype)
    p, t = copy.deepcopy(m), copy.deepcopy(m).double()
    dy = torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, eager = (results(net, f, x, dy, None) for net, f in ((m, lambda m, x, r: m(x)), (p, plain)))
    truth = results(t, plain, x.double(), dy.double(), None)
    for name in truth:
        if name != "bn.num_batches_tracked":
            assert getattr(got[name], "dtype", None) == getattr(eager[name], "dtype", None), name
            assert_as_accurate(name, got[name], eager[name], truth[name])


def test_saves_x_once_and_never_z():
    m, x = PreActConv2d(8, 8, 3, padding=1), torch.randn(4, 8, 16, 16, requires_grad=True)
    assert saved_bytes(m, lambda: m(x)) == x.nbytes + 5 * 8 * 4


def test_input_changed_before_backward_is_noticed():
    m, x = PreActConv2d(4, 4, 1), torch.randn(2, 4, 4, 4)
    y = m(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_backend_of_forward_is_replayed_in_backward():
    """Autograd runs backward outside `use_backend`; the insisted backend still does it."""
    calls = register_spy("spy", two_dgrads=True)
    m, x = PreActConv2d(4, 4, 3), torch.randn(2, 4, 6, 6, requires_grad=True)
    with fp.use_backend("spy"):
        y = m(x)
    assert calls == ["bn_stats", "bn_finalize_update", "bn_relu_conv2d_fwd"]
    calls.clear()
    y.sum().backward()
    assert calls == ["bn_relu_conv2d_bwd", "bn_coeffs", "bn_relu_conv2d_bwd"], "TWO_DGRADS: sums, then dx, and nothing stored between"
    twin, x2 = copy.deepcopy(m), x.detach().clone().requires_grad_()
    plain(twin, x2, None).sum().backward()
    torch.testing.assert_close(x.grad, x2.grad, rtol=1e-4, atol=1e-5)


def test_meta_tensors_give_shapes():
    """Shape inference without data, as model summaries do it."""
    m = PreActConv2d(4, 6, 3, stride=2).to("meta")
    assert m(torch.empty(2, 4, 9, 9, device="meta")).shape == (2, 6, 4, 4)
