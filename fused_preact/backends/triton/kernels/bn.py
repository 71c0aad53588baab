"""The kernels of one BatchNorm: statistics, what is computed once a channel, and the passes over an activation."""

import triton
import triton.language as tl

from fused_preact.backends.triton.kernels.common import (
    activate,
    add_tile,
    column_sums,
    dy_vectors,
    gradient,
    load_dy,
    rounded,
    share,
    store_stats,
    store_sums,
    vectors,
)


@triton.jit(do_not_specialize=("tiles",))
def bn_stats_kernel(x, stats, pixels, tiles, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Program (j, t): block j of the channels of tile t."""
    c = tl.program_id(0) * BN + tl.arange(0, BN)
    inside_c = c < C
    count = 0.0
    pivot = tl.zeros((BN,), tl.float32)
    mean = tl.zeros((BN,), tl.float32)
    m2 = tl.zeros((BN,), tl.float32)
    first, last = share(tl.cdiv(pixels, BM), tiles, tl.program_id(1))
    for tile in range(first, last):
        inside_m = (tile * BM + tl.arange(0, BM) < pixels)[:, None]
        offset = tl.arange(0, BM)[:, None] * C + c[None, :]
        v = tl.load(x + tl.cast(tile, tl.int64) * (BM * C) + offset, inside_m & inside_c[None, :], 0.0).to(tl.float32)
        rows = tl.minimum(pixels - tile * BM, BM).to(tl.float32)
        count, pivot, mean, m2 = add_tile(v, inside_m, rows, count, pivot, mean, m2)
    store_stats(stats, tl.program_id(1), C, c, inside_c, count, pivot + mean, m2)


@triton.jit
def merge(stats, tiles, c, inside_c, C: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr):
    """count, mean, m2 of all tiles, by Chan's formula."""
    count = tl.zeros((BN,), tl.float32)
    # All means as distances from the first: their sum loses nothing where they are large.
    pivot = tl.load(stats + C + c, inside_c, 0.0)
    mean = tl.zeros((BN,), tl.float32)
    m2 = tl.zeros((BN,), tl.float32)
    for first in range(0, tiles, BT):
        t = first + tl.arange(0, BT)
        at = stats + t[:, None] * (3 * C) + c[None, :]
        inside = (t < tiles)[:, None] & inside_c[None, :]
        n = tl.load(at, inside, 0.0)
        own = tl.load(at + C, inside, 0.0) - pivot[None, :]
        # mean = sum n_t*mean_t / n,  m2 = sum m2_t + n_t*(mean_t - mean)^2
        block = column_sums(n)
        block_mean = column_sums(n * own) / tl.maximum(block, 1.0)
        d = own - block_mean[None, :]
        block_m2 = column_sums(tl.load(at + 2 * C, inside, 0.0) + n * d * d)
        total = tl.maximum(count + block, 1.0)
        delta = block_mean - mean
        m2 += block_m2 + delta * delta * (count * block / total)
        mean += delta * (block / total)
        count += block
    return count, pivot + mean, m2


@triton.jit(do_not_specialize=("tiles",))
def bn_merge_kernel(stats, merged, tiles, C: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr):
    c = tl.program_id(0) * BN + tl.arange(0, BN)
    inside_c = c < C
    count, mean, m2 = merge(stats, tiles, c, inside_c, C, BT, BN)
    store_stats(merged, 0, C, c, inside_c, count, mean, m2)


@triton.jit(do_not_specialize=("tiles",))
def bn_finalize_kernel(
    stats, gamma, beta, running_mean, running_var, num_batches_tracked, bn, tiles, momentum, eps,
    FROZEN: tl.constexpr, CUMULATIVE: tl.constexpr, C: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The bn vectors [5, C]; with running_mean, also moves the running statistics. CUMULATIVE: num_batches_tracked was counted before."""
    c = tl.program_id(0) * BN + tl.arange(0, BN)
    inside_c = c < C
    count, mean, m2 = merge(stats, tiles, c, inside_c, C, BT, BN)
    n = tl.maximum(count, 1.0)
    if running_mean is not None:
        weight = momentum
        if CUMULATIVE:
            weight = 1.0 / tl.load(num_batches_tracked).to(tl.float32)
        elif num_batches_tracked is not None:
            if tl.program_id(0) == 0:
                tl.store(num_batches_tracked, tl.load(num_batches_tracked) + 1)
        old = tl.load(running_mean + c, inside_c, 0.0).to(tl.float32)
        tl.store(running_mean + c, rounded(old + weight * (mean - old), running_mean.dtype.element_ty), inside_c)
        old = tl.load(running_var + c, inside_c, 0.0).to(tl.float32)
        var = m2 / tl.maximum(count - 1.0, 1.0)
        tl.store(running_var + c, rounded(old + weight * (var - old), running_var.dtype.element_ty), inside_c)
    invstd = 1.0 / tl.sqrt_rn(m2 / n + eps)
    scale = invstd
    if gamma is not None:
        scale *= tl.load(gamma + c, inside_c, 0.0).to(tl.float32)
    offset = tl.zeros((BN,), tl.float32)
    if beta is not None:
        offset += tl.load(beta + c, inside_c, 0.0).to(tl.float32)
    tl.store(bn + c, mean, inside_c)
    tl.store(bn + C + c, invstd, inside_c)
    tl.store(bn + 2 * C + c, scale, inside_c)
    tl.store(bn + 3 * C + c, offset, inside_c)
    tl.store(bn + 4 * C + c, tl.zeros_like(n) if FROZEN else 1.0 / n, inside_c)


@triton.jit(do_not_specialize=("tiles",))
def bn_coeffs_kernel(sums, bn, bn_stride, coeffs, dgamma, dbeta, tiles, C: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr):
    """dx = scale*(g - dbeta/M - xhat*dgamma/M) = a*g + b*(x - mean) + c"""
    c = tl.program_id(0) * BN + tl.arange(0, BN)
    inside_c = c < C
    g = tl.zeros((BT, BN), tl.float32)
    gx = tl.zeros((BT, BN), tl.float32)
    for first in range(0, tiles, BT):
        t = first + tl.arange(0, BT)
        at = sums + t[:, None] * (2 * C) + c[None, :]
        inside = (t < tiles)[:, None] & inside_c[None, :]
        g += tl.load(at, inside, 0.0)
        gx += tl.load(at + C, inside, 0.0)
    sum_g = column_sums(g)
    sum_gx = column_sums(gx)
    mean = tl.load(bn + c, inside_c, 0.0)
    invstd = tl.load(bn + bn_stride + c, inside_c, 0.0)
    scale = tl.load(bn + 2 * bn_stride + c, inside_c, 0.0)
    inverse_count = tl.load(bn + 4 * bn_stride + c, inside_c, 0.0)
    tl.store(coeffs + c, scale, inside_c)
    tl.store(coeffs + C + c, -scale * invstd * sum_gx * inverse_count, inside_c)
    tl.store(coeffs + 2 * C + c, mean, inside_c)
    tl.store(coeffs + 3 * C + c, -scale * sum_g * inverse_count, inside_c)
    tl.store(dgamma + c, sum_gx, inside_c)
    tl.store(dbeta + c, sum_g, inside_c)


@triton.jit
def bn_relu_kernel(x, bn, bn_stride, z, pixels, C: tl.constexpr, RELU: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    first = tl.program_id(0) * BM
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    inside_c = c < C
    start = first.to(tl.int64) * C
    offset = tl.arange(0, BM)[:, None] * C + c[None, :]
    inside = (first + tl.arange(0, BM) < pixels)[:, None] & inside_c[None, :]
    mean, scale, shift = vectors(x, bn, bn_stride, c, inside_c)
    v = activate(tl.load(x + start + offset, inside, 0.0), mean, scale, shift, RELU)
    tl.store(z + start + offset, rounded(v, z.dtype.element_ty), inside)


@triton.jit(do_not_specialize=("tiles",))
def bn_relu_bwd_kernel(
    dz, add_dz, x, bn, bn_stride, coeffs, residual_grad, out, sums, pixels, tiles,
    C: tl.constexpr, Z: tl.constexpr, RELU: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Program (j, t): block j of the channels of tile t. out is g, or dx with coeffs, as in a dgrad."""
    c = tl.program_id(0) * BN + tl.arange(0, BN)
    inside_c = c < C
    mean, scale, shift = vectors(x, bn, bn_stride, c, inside_c)
    sum_g = tl.zeros((BN,), tl.float32)
    sum_gx = tl.zeros((BN,), tl.float32)
    first, last = share(tl.cdiv(pixels, BM), tiles, tl.program_id(1))
    for tile in range(first, last):
        start = tl.cast(tile, tl.int64) * (BM * C)
        offset = tl.arange(0, BM)[:, None] * C + c[None, :]
        inside = (tile * BM + tl.arange(0, BM) < pixels)[:, None] & inside_c[None, :]
        d = tl.load(dz + start + offset, inside, 0.0).to(tl.float32)
        if add_dz is not None:
            d += tl.load(add_dz + start + offset, inside, 0.0).to(tl.float32)
        v = tl.load(x + start + offset, inside, 0.0)
        sum_g, sum_gx = gradient(
            d, v, mean, scale, shift, coeffs, residual_grad, out, start, offset, inside, c, inside_c, C, sum_g, sum_gx, Z, RELU
        )
    if sums is not None:
        store_sums(sums, tiles, tiles, tl.program_id(1), bn, bn_stride, C, c, inside_c, sum_g, sum_gx)


@triton.jit
def bn_bwd_kernel(g, x, coeffs, residual_grad, dx, pixels, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """dx = a*g + b*(x - mean) + c (+ residual_grad)"""
    first = tl.program_id(0) * BM
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    inside_c = c < C
    start = first.to(tl.int64) * C
    offset = tl.arange(0, BM)[:, None] * C + c[None, :]
    inside = (first + tl.arange(0, BM) < pixels)[:, None] & inside_c[None, :]
    if x is not None:
        # The same arithmetic as where it is deferred.
        a, b, mean, shift = dy_vectors(x, coeffs, c, inside_c, C)
        v = load_dy(g, x, residual_grad, a, b, mean, shift, start, offset, inside)
    else:
        v = tl.load(coeffs + c, inside_c, 0.0)[None, :] * tl.load(g + start + offset, inside, 0.0).to(tl.float32)
        v += tl.load(coeffs + 3 * C + c, inside_c, 0.0)[None, :]
        if residual_grad is not None:
            v += tl.load(residual_grad + start + offset, inside, 0.0).to(tl.float32)
    tl.store(dx + start + offset, rounded(v, dx.dtype.element_ty), inside)
