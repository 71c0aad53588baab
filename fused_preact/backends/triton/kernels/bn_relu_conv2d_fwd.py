"""y = conv(relu(bn(x)), weight) + bias + residual, and the statistics of y, as an implicit GEMM over taps and channels."""

import triton
import triton.language as tl

from fused_preact.backends.triton.kernels.common import activate, add_tile, operand, pixel, rounded, share, store_stats, vectors


@triton.jit(do_not_specialize=("tiles",))
def bn_relu_conv2d_fwd_kernel(
    x, bn, bn_stride, weight, bias, residual, y, stats, pixels, tiles,
    geo: tl.constexpr, RELU: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (j, t): block j of the output channels, for the pixels of statistics tile t."""
    CG: tl.constexpr = geo.C // geo.groups
    KG: tl.constexpr = geo.K // geo.groups
    STEPS: tl.constexpr = (CG + BK - 1) // BK
    Z: tl.constexpr = weight.dtype.element_ty
    blocks: tl.constexpr = (KG + BN - 1) // BN
    group = tl.program_id(0) // blocks
    own = tl.program_id(0) % blocks * BN + tl.arange(0, BN)
    inside_k = own < KG
    k = group * KG + own
    if bn is not None:
        # One step covers the channels: their vectors stay in registers.
        if STEPS == 1:
            own_c = tl.arange(0, BK)
            mean_c, scale, shift = vectors(x, bn, bn_stride, group * CG + own_c, own_c < CG)
    count = 0.0
    pivot = tl.zeros((BN,), tl.float32)
    mean = tl.zeros((BN,), tl.float32)
    m2 = tl.zeros((BN,), tl.float32)
    first, last = share(tl.cdiv(pixels, BM), tiles, tl.program_id(1))
    for tile in range(first, last):
        m = tile * BM + tl.arange(0, BM)
        n, p, q = pixel(m, geo)
        # Offsets count from the image of the tile's first pixel: they fit 32 bits however large x is.
        image = tile * BM // (geo.P * geo.Q)
        base = tl.cast(image, tl.int64) * (geo.H * geo.W * geo.C)
        n -= image
        h0 = p * geo.stride_h - geo.pad_h
        w0 = q * geo.stride_w - geo.pad_w
        inside_m = m < pixels
        acc = tl.zeros((BM, BN), tl.float32)
        for step in range(geo.R * geo.S * STEPS):
            tap = step // STEPS
            h = h0 + tap // geo.S * geo.dilation_h
            w = w0 + tap % geo.S * geo.dilation_w
            ci = step % STEPS * BK + tl.arange(0, BK)
            inside_c = ci < CG
            c = group * CG + ci
            inside = (inside_m & (h >= 0) & (h < geo.H) & (w >= 0) & (w < geo.W))[:, None] & inside_c[None, :]
            z = tl.load(x + base + ((n * geo.H + h) * geo.W + w)[:, None] * geo.C + c[None, :], inside, 0.0)
            if bn is not None:
                if STEPS > 1:
                    mean_c, scale, shift = vectors(x, bn, bn_stride, c, inside_c)
                # Padding is applied to z: outside the image z is 0, not relu(bn(0)).
                z = tl.where(inside, activate(z, mean_c, scale, shift, RELU), 0.0)
            at = k[None, :] * (geo.R * geo.S * CG) + (tap * CG + ci)[:, None]
            wt = tl.load(weight + at, inside_k[None, :] & inside_c[:, None], 0.0)
            acc = tl.dot(operand(z, Z), operand(wt, Z), acc, input_precision=PRECISION)
        if bias is not None:
            acc += tl.load(bias + k, inside_k, 0.0).to(tl.float32)[None, :]
        out = tl.cast(tile, tl.int64) * (BM * geo.K)
        offset = tl.arange(0, BM)[:, None] * geo.K + k[None, :]
        inside = inside_m[:, None] & inside_k[None, :]
        if residual is not None:
            acc += tl.load(residual + out + offset, inside, 0.0).to(tl.float32)
        stored = rounded(acc, y.dtype.element_ty)
        tl.store(y + out + offset, stored, inside)
        if stats is not None:
            rows = tl.minimum(pixels - tile * BM, BM).to(tl.float32)
            count, pivot, mean, m2 = add_tile(stored.to(tl.float32), inside_m[:, None], rows, count, pivot, mean, m2)
    if stats is not None:
        store_stats(stats, tl.program_id(1), geo.K, k, inside_k, count, pivot + mean, m2)
