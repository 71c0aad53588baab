"""Every backend's BatchNorm primitives against torch and float64."""

import pytest
import torch
import torch.nn.functional as F

from fused_preact.backends.layout import MAX_TILES, TILE_PIXELS, tiles
from fused_preact.ops.library import Operators
from tests.testing.cases import DTYPES, backends, backends_and_dtypes, device_of, formats
from tests.testing.numerics import assert_as_accurate, drawn

SHAPES = [(2, 3, 7, 5), (1, 17, 1, 33), (4, 65, 3, 3), (3, 2, 65, 64), (2, 1, 4, 4)]


@backends_and_dtypes
@formats
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bn_stats(shape, offset, fmt, dtype, backend):
    """Statistics as accurate as those of nn.BatchNorm2d, for a mean 1000 standard deviations off too."""
    run = Operators(backend)
    one, zero = torch.ones(shape[1]), torch.zeros(shape[1])
    x = drawn(shape, one, zero, offset, dtype).contiguous(memory_format=fmt).to(device_of(backend))
    stats = run.bn_stats(x)
    assert stats.shape == (tiles(shape), 3, shape[1])
    n, mean, m2 = run.bn_merge(stats)[0]
    count = x.numel() // shape[1]
    assert (n == count).all()
    bn = torch.nn.BatchNorm2d(shape[1], momentum=1.0).to(x.device, torch.promote_types(dtype, torch.float32))
    bn(x.to(bn.running_mean.dtype))
    var, wanted = torch.var_mean(x.double(), (0, 2, 3))
    assert_as_accurate("variance", m2 / (count - 1), bn.running_var, var)
    # Beside the standard deviation: digits of a mean that is nearly zero mean nothing.
    pairs = ((mean, m2 / (count - 1)), (bn.running_mean, bn.running_var), (wanted, var))
    assert_as_accurate("mean", *(torch.stack((m, v.sqrt())) for m, v in pairs))


def widest(backend):
    """The dtype in which a backend can be compared with torch most closely, and its device."""
    return {"dtype": torch.float64 if torch.float64 in DTYPES[backend] else torch.float32, "device": device_of(backend)}


@backends
def test_bn_merge_ignores_empty_tiles_and_order(backend):
    run = Operators(backend)
    x = torch.randn(6, 4, 5, 5, **widest(backend)) + 3
    parts = torch.cat([run.bn_stats(x[:1]), run.bn_stats(x[1:1]), run.bn_stats(x[1:])])
    torch.testing.assert_close(run.bn_merge(parts), run.bn_merge(run.bn_stats(x)))
    torch.testing.assert_close(run.bn_merge(parts.flip(0)), run.bn_merge(parts))


@backends_and_dtypes
def test_bn_stats_of_nothing_are_zeros(dtype, backend):
    run = Operators(backend)
    stats = run.bn_stats(torch.empty(0, 3, 4, 4, dtype=dtype, device=device_of(backend)))
    assert (stats == 0).all()
    bn = run.bn_finalize(stats, None, None, 1e-5, False)
    assert bn.isfinite().all()


@backends
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_bn_finalize_update_is_nn_batchnorm(momentum, affine, backend):
    """Three steps move running_mean, running_var and num_batches_tracked as nn.BatchNorm2d does, cumulative average included."""
    run = Operators(backend)
    bn = torch.nn.BatchNorm2d(4, momentum=momentum, affine=affine, **widest(backend))
    mean, var, tracked = (b.clone() for b in (bn.running_mean, bn.running_var, bn.num_batches_tracked))
    for _ in range(3):
        x = torch.randn(3, 4, 5, 6, **widest(backend)) * 2 + 1
        bn(x)
        run.bn_finalize_update(run.bn_stats(x), bn.weight, bn.bias, mean, var, tracked, momentum, bn.eps)
    torch.testing.assert_close(mean, bn.running_mean)
    torch.testing.assert_close(var, bn.running_var)
    assert tracked == bn.num_batches_tracked == 3


@backends
def test_bn_finalize_frozen(backend):
    """Frozen statistics are constants: 1/M is 0 and dx = scale*g needs no sums."""
    run = Operators(backend)
    mean, var, gamma, beta = torch.rand(4, 5, device=device_of(backend))
    bn = run.bn_finalize(torch.stack((torch.ones_like(mean), mean, var))[None], gamma, beta, 1e-3, True)
    invstd = (var + 1e-3).rsqrt()
    torch.testing.assert_close(bn, torch.stack((mean, invstd, gamma * invstd, beta, torch.zeros_like(mean))))
    coeffs, dgamma, dbeta = run.bn_coeffs(bn.new_empty(0, 2, 5), bn)
    torch.testing.assert_close(coeffs, torch.stack((bn[2], torch.zeros_like(mean), mean, torch.zeros_like(mean))))
    assert not dgamma.any()
    assert not dbeta.any()


@backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gamma_and_beta_in_any_floating_dtype(dtype, backend):
    run = Operators(backend)
    stats = run.bn_stats(torch.randn(2, 3, 4, 4, device=device_of(backend)))
    gamma, beta = torch.randn(2, 3, device=stats.device).to(dtype)
    got = run.bn_finalize(stats, gamma, beta, 1e-5, False)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, run.bn_finalize(stats, gamma.float(), beta.float(), 1e-5, False))


@backends
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32], ids=str)
def test_batches_are_counted_in_any_dtype(dtype, momentum, backend):
    run, device = Operators(backend), device_of(backend)
    stats = run.bn_stats(torch.randn(2, 8, 4, 4, device=device))
    mean, var = torch.zeros(8, device=device), torch.ones(8, device=device)
    # Neighbours, which a kernel that takes another dtype would write to.
    counters = torch.tensor([7, 3, 7], dtype=dtype, device=device)
    bn = run.bn_finalize_update(stats, None, None, mean, var, counters[1], momentum, 1e-5)
    assert counters.tolist() == [7, 4, 7]
    torch.testing.assert_close(mean, bn[0] * (0.25 if momentum is None else momentum))


@backends_and_dtypes
@formats
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_bn_relu_forward_and_backward(offset, relu, fmt, dtype, backend):
    run = Operators(backend)
    shape = (3, 7, 6, 5)
    gamma, beta = torch.rand(7) + 0.5, torch.randn(7)
    x = drawn(shape, gamma, beta, offset, dtype).contiguous(memory_format=fmt)
    dz, residual_grad = (torch.randn(shape).to(dtype).contiguous(memory_format=fmt) for _ in range(2))
    gamma, beta, x, dz, residual_grad = (t.to(device_of(backend)) for t in (gamma, beta, x, dz, residual_grad))

    def torch_own(dtype):
        leaf = x.detach().to(dtype, copy=True).requires_grad_()
        wide = torch.promote_types(dtype, torch.float32)
        g, b = (v.to(wide, copy=True).requires_grad_() for v in (gamma, beta))
        v = F.batch_norm(leaf, None, None, g, b, True)
        z = F.relu(v) if relu else v
        z.backward(dz.to(dtype))
        return z, leaf.grad + residual_grad.to(dtype), g.grad, b.grad

    bn = run.bn_finalize(run.bn_stats(x), gamma, beta, 1e-5, False)
    z = run.bn_relu(x, bn, relu)
    g, sums = run.bn_relu_bwd(dz, x, bn, relu)
    coeffs, dgamma, dbeta = run.bn_coeffs(sums, bn)
    dx = run.bn_bwd(g, x, coeffs, residual_grad)
    names = ("z", "dx", "dgamma", "dbeta")
    for name, got, eager, truth in zip(names, (z, dx, dgamma, dbeta), torch_own(dtype), torch_own(torch.float64), strict=True):
        assert_as_accurate(name, got, eager, truth)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 1, 1, 1), (2, 3, 64, 64), (128, 64, 32, 32), (64, 64, 112, 112)])
def test_tiles_is_bounded(shape):
    assert 1 <= tiles(shape) <= MAX_TILES
    assert tiles(shape) <= max(1, shape[0] * shape[2] * shape[3] // TILE_PIXELS)
