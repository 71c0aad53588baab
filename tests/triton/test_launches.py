"""How many kernels a unit launches, and that a launch repeats itself without Triton's JIT."""

import copy
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import fused_preact as fp
from fused_preact.backends import backend
from fused_preact.backends.memory import Output, nhwc
from fused_preact.backends.triton import conv, launch
from fused_preact.backends.triton.launch import Plan
from tests.testing.cases import device_of

DEVICE = device_of("triton")


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels launched, in order."""
    names = []
    call = Plan.__call__

    def record(self, *args):
        names.append(self.kernel.fn.__name__ if hasattr(self.kernel, "fn") else self.kernel.__name__)
        call(self, *args)

    monkeypatch.setattr(Plan, "__call__", record)
    return names


def test_launches_of_a_bottleneck(launched):
    """In a chain of ResNet-1001's first stage: 6 kernels forward, 11 backward; x is read for statistics only once, at the chain's start."""
    chain = fp.PreActSequential(*(fp.PreActBottleneck(64, 16) for _ in range(3))).to(DEVICE)
    x = torch.randn(2, 64, 8, 8, device=DEVICE).contiguous(memory_format=torch.channels_last).requires_grad_()
    with fp.use_backend("triton"):
        y = chain(x)
        assert Counter(launched) == {"bn_stats_kernel": 1, "bn_finalize_kernel": 9, "bn_relu_conv2d_fwd_kernel": 9}
        launched.clear()
        y.sum().backward()
    seen = Counter(launched)
    # One split needs no sum; how many there are depends on the pixels.
    seen.pop("wgrad_sum_kernel", None)
    assert seen == {
        "bn_relu_conv2d_bwd_kernel": 6,
        "bn_relu_conv2d_dgrad_kernel": 3,
        "bn_relu_conv2d_wgrad_kernel": 3,
        "bn_coeffs_kernel": 9,
        "bn_bwd_kernel": 3,
    }


@pytest.mark.compile
def test_a_compiled_unit_stays_opaque():
    """fullgraph: the tracer meets operators and no kernel; results are those of the unit called."""
    unit = fp.PreActBottleneck(16, 16).to(DEVICE)
    twin = copy.deepcopy(unit)
    x = torch.randn(2, 16, 4, 4, device=DEVICE)
    with fp.use_backend("triton"):
        results = []
        for module in (torch.compile(unit, backend="aot_eager", fullgraph=True), twin):
            leaf = x.clone().requires_grad_()
            y = module(leaf)
            y.square().sum().backward()
            results.append((y.detach(), leaf.grad))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    for got, wanted in zip(unit.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=0, atol=0)


def test_a_launch_is_found_again_by_all_that_triton_specialises_by(monkeypatch):
    """dtype, alignment, absence and integers: the same ones skip the JIT, others do not."""
    compiled, ran = [], []

    class Kernel:
        def __getitem__(self, grid):
            def jit(*args, **options):
                compiled.append(args)
                return {grid: lambda *args, stream: ran.append(args)}

            return jit

    monkeypatch.setattr(launch, "driver", SimpleNamespace(active=SimpleNamespace(get_current_stream=lambda device: 0)))
    plan = Plan(Kernel(), (1, 1, 1), (16,), 4)
    aligned = torch.empty(64)
    assert aligned.data_ptr() % 16 == 0
    for args in (
        (aligned, None, 3, 0.1),
        (aligned[1:], None, 3, 0.1),
        (aligned.bfloat16(), None, 3, 0.1),
        (aligned, aligned, 3, 0.1),
        (aligned, None, 16, 0.1),
    ):
        plan(*args)
        before = len(compiled)
        plan(*args)
        assert len(compiled) == before
        assert ran[-1][: len(args)] == args
    assert len(compiled) == 5
    plan(aligned, None, 3, 0.2)
    assert len(compiled) == 5, "a float is an argument like any other"


@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (1, 1, 1, 1), (2, 1, 4, 4), (2, 8, 1, 1)], ids=str)
def test_memory_is_dense_nhwc_and_aligned(shape):
    flat = torch.randn(2 * shape[0] * shape[1] * shape[2] * shape[3] + 8)
    count = shape[0] * shape[1] * shape[2] * shape[3]
    plain = flat[:count].view(shape)
    for given in (plain, plain.contiguous(memory_format=torch.channels_last), flat[1 : count + 1].view(shape), plain[:1].expand(shape)):
        got = nhwc(given)
        assert torch.equal(got, given)
        assert got.permute(0, 2, 3, 1).is_contiguous()
        assert got.data_ptr() % 16 == 0
    for fmt in (torch.contiguous_format, torch.channels_last):
        out = Output(torch.empty(shape, memory_format=fmt))
        out.memory.copy_(plain)
        assert torch.equal(out.get(), plain)
        assert out.get().stride() == torch.empty(shape, memory_format=fmt).stride()


def test_flat_convolutions_share_their_kernels():
    """A 1x1 convolution of stride 1 is a GEMM: another image size compiles nothing new."""

    def constants(size):
        p = conv.problem((4, 64, size, size), (16, 64, 1, 1), ((1, 1), (0, 0), (1, 1), 1), torch.bfloat16, "ieee", 90)
        return conv.fwd_plan(p, True).constants

    assert constants(32) == constants(31)


def run(backend_name, x, weight, vectors, stride):
    """Forward and backward of a layer with running statistics that move, all gradients, on one backend."""
    x = x.clone().requires_grad_()
    gamma, beta, mean, var, bias = vectors()
    leaves = [t.detach().requires_grad_() for t in (gamma, beta, bias)]
    weight = weight.clone().requires_grad_()
    with fp.use_backend(backend_name):
        y = fp.bn_relu_conv2d(x, leaves[0], leaves[1], mean, var, weight, leaves[2], training=True, stride=stride)
        grads = torch.autograd.grad(y.square().sum(), [x, weight, *leaves])
    return [y.detach(), *grads, mean.clone(), var.clone()]


def test_vectors_of_any_stride():
    """Expanded and sliced parameters and running statistics: what lies between their elements is neither read nor written."""

    def vectors():
        wide = torch.arange(64, dtype=torch.float32, device=DEVICE).view(16, 4) / 64
        beta = torch.full((1,), 0.5, device=DEVICE).expand(16)
        return wide[:, 1] + 1.0, beta, torch.zeros(16, 2, device=DEVICE)[:, 0], torch.ones(16, 3, device=DEVICE)[:, 2], wide[:, 2]

    x, weight = torch.randn(2, 16, 5, 5, device=DEVICE), torch.randn(16, 16, 1, 1, device=DEVICE)
    for got, wanted in zip(run("triton", x, weight, vectors, 1), run("eager", x, weight, vectors, 1), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("emit", ["none", "dz"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pixels_that_a_stride_leaves_out_stay_out(bad, emit):
    """They may hold anything: dweight does not see them."""
    x = torch.randn(1, 16, 4, 4, device=DEVICE)
    x[0, :, 1, 1] = bad
    weight, dy = torch.randn(16, 16, 1, 1, device=DEVICE), torch.randn(1, 16, 2, 2, device=DEVICE)
    args = (dy, None, None, None, x, None, weight, (2, 2), (0, 0), (1, 1), 1, True, None, emit, None, None, False, True, False)
    _, _, dweight, _, _ = backend("triton").bn_relu_conv2d_bwd(*args)
    torch.testing.assert_close(dweight, backend("eager").bn_relu_conv2d_bwd(*args)[2], rtol=1e-4, atol=1e-5)


def test_a_float64_residual_promotes():
    x, weight = torch.randn(2, 16, 4, 4, device=DEVICE), torch.randn(16, 16, 1, 1, device=DEVICE)
    residual = torch.randn(2, 16, 4, 4, device=DEVICE, dtype=torch.float64)
    bn = torch.rand(5, 16, device=DEVICE)
    args = (x, bn, weight, None, residual, (1, 1), (0, 0), (1, 1), 1, True, True, None)
    for got, wanted in zip(backend("triton").bn_relu_conv2d_fwd(*args), backend("eager").bn_relu_conv2d_fwd(*args), strict=True):
        assert got.dtype == wanted.dtype == torch.float64
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
