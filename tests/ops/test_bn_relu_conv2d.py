"""Every backend's fused convolution against plain torch, in the same dtype and in float64."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from fused_preact.backends.records import Conv
from fused_preact.ops.library import Operators
from tests.testing.cases import LayerCase, backends, backends_and_dtypes, device_of, emulated, every_case, float64_backends
from tests.testing.numerics import assert_as_accurate, drawn

EPS = 1e-5
NHWC, NCHW = torch.channels_last, torch.contiguous_format


def per_channel(v):
    return v.view(1, -1, 1, 1)


class Layer:
    """The tensors of a case in one dtype."""

    def __init__(self, case: LayerCase, dtype: torch.dtype, fmt: torch.memory_format, device: str = "cpu") -> None:
        c, conv = case.x[1], case.conv
        g = torch.Generator().manual_seed(1)
        self.case, self.dtype = case, dtype
        self.gamma = torch.rand(c, generator=g) + 0.5
        self.beta = torch.randn(c, generator=g) * 0.5
        self.x = drawn(case.x, self.gamma, self.beta, case.offset, dtype).contiguous(memory_format=fmt)
        self.weight = torch.randn(case.k, c // conv.groups, *case.kernel, generator=g).to(dtype).contiguous(memory_format=fmt)
        self.bias = torch.randn(case.k, generator=g).to(dtype) if case.bias else None
        y = F.conv2d(self.x.double(), self.weight.double(), None, *conv)
        self.residual = torch.randn(y.shape, generator=g).to(dtype).contiguous(memory_format=fmt) if case.residual else None
        self.dy = torch.randn(y.shape, generator=g).to(dtype).contiguous(memory_format=fmt)
        self.dy_x, self.dy_add = (torch.randn(y.shape, generator=g).to(dtype).contiguous(memory_format=fmt) for _ in range(2))
        self.dy_coeffs = torch.randn(4, case.k, generator=g).to(torch.float64 if dtype == torch.float64 else torch.float32)
        self.add_dz, self.residual_grad = (torch.randn(case.x, generator=g).to(dtype).contiguous(memory_format=fmt) for _ in range(2))
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))


class Reference:
    """The same layer by torch's own batch_norm, relu and conv2d and their autograd, in `dtype`."""

    def __init__(self, layer: Layer, dtype: torch.dtype, training: bool, deferred: bool = False, add_dz: bool = False) -> None:
        case = layer.case
        self.x = leaf(layer.x, dtype)
        self.gamma, self.beta = (leaf(v, torch.promote_types(dtype, torch.float32)) for v in (layer.gamma, layer.beta))
        self.weight = leaf(layer.weight, dtype)
        self.bias = None if layer.bias is None else leaf(layer.bias, dtype)
        mean, var = running(layer)
        wide = self.gamma.dtype
        v = F.batch_norm(self.x, mean.to(wide), var.to(wide), self.gamma, self.beta, training, 0.1, EPS)
        self.z = F.relu(v) if case.relu else v
        self.z.retain_grad()
        self.y = F.conv2d(self.z, self.weight, self.bias, *case.conv)
        if layer.residual is not None:
            self.y = self.y + layer.residual.to(dtype)
        dy = layer.dy.to(dtype)
        if deferred:
            a, b, m, c = (per_channel(v.to(wide)) for v in layer.dy_coeffs)
            dy = (a * dy + b * (layer.dy_x.to(dtype) - m) + c + layer.dy_add).to(dtype)
        self.dy = dy
        loss = (self.y * dy).sum() + ((self.z * layer.add_dz.to(dtype)).sum() if add_dz else 0)
        loss.backward()


def leaf(t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return t.detach().to(dtype, copy=True).requires_grad_()


def running(layer: Layer):
    x = layer.x.double()
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean + 0.25 * var.sqrt(), 1.5 * var


def vectors(run, layer: Layer, training: bool):
    wide = torch.float64 if layer.dtype == torch.float64 else torch.float32
    if training:
        return run.bn_finalize(run.bn_stats(layer.x), layer.gamma, layer.beta, EPS, False)
    mean, var = (v.to(wide) for v in running(layer))
    return run.bn_finalize(torch.stack((torch.ones_like(mean), mean, var))[None], layer.gamma, layer.beta, EPS, True)


def geometry(layer: Layer):
    conv: Conv = layer.case.conv
    return *conv, layer.case.relu


@every_case("fmt", crossed=[(NHWC,), (NCHW,)], combined=[(NHWC,)])
def test_fwd(case, fmt, dtype, backend):
    layer, run = Layer(case, dtype, fmt, device_of(backend)), Operators(backend)
    bn = vectors(run, layer, True)
    y, stats = run.bn_relu_conv2d_fwd(layer.x, bn, layer.weight, layer.bias, layer.residual, *geometry(layer), True, None)
    eager, truth = Reference(layer, dtype, True), Reference(layer, torch.float64, True)
    assert_as_accurate("y", y, eager.y, truth.y)
    # Statistics of y as stored, after rounding.
    n, mean, m2 = run.bn_merge(stats)[0]
    count = y.numel() // y.size(1)
    var, wanted = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    theirs = torch.batch_norm_update_stats(y.float() if dtype != torch.float64 else y, None, None, 0.0)
    assert (n == count).all()
    assert_as_accurate("mean of y", mean, theirs[0], wanted)
    assert_as_accurate("variance of y", m2 / count, theirs[1], var)


@every_case("fmt", "training", crossed=list(product((NHWC, NCHW), (True, False))), combined=[(NHWC, True), (NCHW, False)])
def test_bwd(case, training, fmt, dtype, backend):
    """dx, dgamma, dbeta, dweight and dbias in the two phases: g and sums, then coeffs and dx."""
    layer, run = Layer(case, dtype, fmt, device_of(backend)), Operators(backend)
    bn = vectors(run, layer, training)
    none = (None, None, None)
    conv = (layer.x, bn, layer.weight, *geometry(layer), None)
    g, sums, dw, db, _ = run.bn_relu_conv2d_bwd(layer.dy, *none, *conv, "g", None, None, False, True, case.bias)
    coeffs, dgamma, dbeta = run.bn_coeffs(sums, bn)
    dx = run.bn_bwd(g, layer.x, coeffs, None)
    eager, truth = Reference(layer, dtype, training), Reference(layer, torch.float64, training)
    assert_as_accurate("dx", dx, eager.x.grad, truth.x.grad)
    assert_as_accurate("dgamma", dgamma, eager.gamma.grad, truth.gamma.grad)
    assert_as_accurate("dbeta", dbeta, eager.beta.grad, truth.beta.grad)
    assert_as_accurate("dweight", dw, eager.weight.grad, truth.weight.grad)
    assert_as_accurate("dbias", db, *((eager.bias.grad, truth.bias.grad) if case.bias else (None, None)))


@every_case(
    "deferred",
    "add_dz",
    crossed=list(product((False, True), repeat=2)),
    combined=[(False, False), (True, True)],
    dtypes=(torch.float32, torch.bfloat16),
)
def test_emit(case, deferred, add_dz, dtype, backend):
    """Every `emit` tells the same story as emit="g" followed by bn_bwd, with plain and deferred dy, with and without add_dz."""
    layer, run = Layer(case, dtype, torch.channels_last, device_of(backend)), Operators(backend)
    bn = vectors(run, layer, True)
    dy = (layer.dy, layer.dy_x, layer.dy_coeffs, layer.dy_add) if deferred else (layer.dy, None, None, None)
    conv = (layer.x, bn, layer.weight, *geometry(layer), layer.add_dz if add_dz else None)

    def bwd(emit, coeffs=None, residual_grad=None, want_dy=False, want_dw=False):
        return run.bn_relu_conv2d_bwd(*dy, *conv, emit, coeffs, residual_grad, want_dy, want_dw, False)

    eager = Reference(layer, dtype, True, deferred, add_dz)
    truth = Reference(layer, torch.float64, True, deferred, add_dz)
    dz, no_sums, *_ = bwd("dz")
    assert no_sums is None
    assert_as_accurate("dz", dz, eager.z.grad, truth.z.grad)
    g, sums, dw, _, dy_out = bwd("g", want_dy=True, want_dw=True)
    coeffs, _, _ = run.bn_coeffs(sums, bn)
    dx = run.bn_bwd(g, layer.x, coeffs, layer.residual_grad)
    assert_as_accurate("dx", dx, eager.x.grad + layer.residual_grad, truth.x.grad + layer.residual_grad.double())
    assert_as_accurate("dweight", dw, eager.weight.grad, truth.weight.grad)
    assert_as_accurate("dy_out", dy_out, eager.dy, truth.dy)
    nothing, same_sums, *_ = bwd("sums")
    assert nothing is None
    torch.testing.assert_close(same_sums, sums)
    at_once, no_sums, *_ = bwd("dx", coeffs, layer.residual_grad)
    assert no_sums is None
    assert_as_accurate("dx at once", at_once, eager.x.grad + layer.residual_grad, truth.x.grad + layer.residual_grad.double())
    both, same_sums, *_ = bwd("dx_sums", coeffs, layer.residual_grad)
    torch.testing.assert_close(both, at_once, rtol=0, atol=0)
    torch.testing.assert_close(same_sums, sums)
    out, no_sums, only_dw, _, _ = bwd("none", want_dw=True)
    assert out is None
    assert no_sums is None
    torch.testing.assert_close(only_dw, dw, rtol=0, atol=0)


@backends
def test_bare_convolution(backend):
    """Without bn the convolution reads x itself, and still gives the statistics of y and dz."""
    run = Operators(backend)
    device = device_of(backend)
    x, weight = torch.randn(2, 5, 6, 6, device=device), torch.randn(7, 5, 3, 3, device=device)
    conv = ((1, 1), (1, 1), (1, 1), 1)
    y, stats = run.bn_relu_conv2d_fwd(x, None, weight, None, None, *conv, False, True, None)
    torch.testing.assert_close(y, F.conv2d(x, weight, padding=1))
    torch.testing.assert_close(run.bn_merge(stats)[0, 1], y.mean((0, 2, 3)))
    dy = torch.randn_like(y)
    dz, _, dw, _, _ = run.bn_relu_conv2d_bwd(
        dy, None, None, None, x, None, weight, *conv, False, None, "dz", None, None, False, True, False
    )
    torch.testing.assert_close(dz, torch.nn.grad.conv2d_input(x.shape, weight, dy, padding=1))
    torch.testing.assert_close(dw, torch.nn.grad.conv2d_weight(x, weight.shape, dy, padding=1))


@backends
@pytest.mark.parametrize("given", ["expanded", "nchw", "sliced"])
def test_bwd_takes_any_gradient(given, backend):
    """Autograd hands over expanded gradients (from sum), NCHW ones and slices."""
    run = Operators(backend)
    x = torch.randn(2, 6, 5, 5).contiguous(memory_format=torch.channels_last).to(device_of(backend))
    weight = torch.randn(4, 6, 3, 3).to(x.device)
    dy = {
        "expanded": torch.ones(()).expand(2, 4, 5, 5),
        "nchw": torch.randn(2, 4, 5, 5),
        "sliced": torch.randn(2, 8, 5, 10)[:, ::2, :, ::2],
    }[given].to(x.device)
    bn = run.bn_finalize(run.bn_stats(x), None, None, EPS, False)
    tail = (x, bn, weight, (1, 1), (1, 1), (1, 1), 1, True, None, "g", None, None, True, True, True)
    for got, wanted in zip(
        run.bn_relu_conv2d_bwd(dy, None, None, None, *tail),
        run.bn_relu_conv2d_bwd(dy.clone(memory_format=torch.channels_last), None, None, None, *tail),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@backends
@pytest.mark.parametrize("residual", [torch.float64, torch.float32], ids=str)
def test_a_residual_of_another_dtype_promotes(residual, backend):
    """y + residual as torch adds them, and its statistics."""
    run, kind = Operators(backend), {"device": device_of(backend), "dtype": torch.bfloat16}
    x, weight = torch.randn(2, 16, 4, 4, **kind), torch.randn(8, 16, 1, 1, **kind)
    added = torch.randn(2, 8, 4, 4, device=x.device, dtype=residual)
    bn = run.bn_finalize(run.bn_stats(x), None, None, EPS, False)
    y, stats = run.bn_relu_conv2d_fwd(x, bn, weight, None, added, (1, 1), (0, 0), (1, 1), 1, True, True, None)
    assert y.dtype == residual
    wanted, _ = Operators("eager").bn_relu_conv2d_fwd(x, bn, weight, None, added, (1, 1), (0, 0), (1, 1), 1, True, False, None)
    torch.testing.assert_close(y, wanted, rtol=2e-2, atol=2e-2)
    n, mean, _ = Operators("eager").bn_merge(stats)[0]
    assert (n == 32).all()
    torch.testing.assert_close(mean.double(), y.double().mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


@float64_backends
def test_a_narrower_residual_is_widened(backend):
    run = Operators(backend)
    x, weight, added = torch.randn(2, 16, 4, 4).double(), torch.randn(8, 16, 1, 1).double(), torch.randn(2, 8, 4, 4)
    tail = ((1, 1), (0, 0), (1, 1), 1, True, False, None)
    y, _ = run.bn_relu_conv2d_fwd(x, None, weight, None, added, *tail)
    torch.testing.assert_close(y, run.bn_relu_conv2d_fwd(x, None, weight, None, None, *tail)[0] + added)


@backends
def test_nan_passes_the_relu(backend):
    """A NaN in x reaches y, and its gradient is kept, as in torch: GradScaler must see overflows."""
    run = Operators(backend)
    x = torch.randn(1, 2, 4, 4).to(device_of(backend))
    x[0, 0, 1, 1] = float("nan")
    bn = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]).to(x.device)
    weight = torch.ones(1, 2, 1, 1).to(x.device)
    conv = ((1, 1), (0, 0), (1, 1), 1, True)
    y, _ = run.bn_relu_conv2d_fwd(x, bn, weight, None, None, *conv, False, None)
    assert y[0, 0, 1, 1].isnan()
    assert y.isnan().sum() == 1
    g, *_ = run.bn_relu_conv2d_bwd(torch.ones_like(y), None, None, None, x, bn, weight, *conv, None, "g", None, None, False, False, False)
    assert g[0, 0, 1, 1] == 1
    assert not g.isnan().any()


@backends_and_dtypes
def test_same_bits_every_time(dtype, backend):
    run = Operators(backend)
    kind = {"dtype": dtype, "device": device_of(backend)}
    x, weight, dy = torch.randn(4, 17, 9, 9, **kind), torch.randn(9, 17, 3, 3, **kind), torch.randn(4, 9, 7, 7, **kind)

    def once():
        bn = run.bn_finalize(run.bn_stats(x), None, None, EPS, False)
        conv = ((1, 1), (0, 0), (1, 1), 1, True)
        fwd = run.bn_relu_conv2d_fwd(x, bn, weight, None, None, *conv, True, None)
        bwd = run.bn_relu_conv2d_bwd(dy, None, None, None, x, bn, weight, *conv, None, "g", None, None, False, True, True)
        return [t for t in (*fwd, *bwd) if t is not None]

    first = once()
    for _ in range(2 if emulated(backend) else 9):
        for a, b in zip(first, once(), strict=True):
            assert torch.equal(a, b)
