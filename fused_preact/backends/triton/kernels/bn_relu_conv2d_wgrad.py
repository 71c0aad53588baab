"""dweight = conv_wgrad(dy, z) with z recomputed from x: each split of the pixels sums its share, a second kernel adds the splits."""

import triton
import triton.language as tl

from fused_preact.backends.triton.kernels.common import activate, column_sums, dy_vectors, load_dy, operand, pixel, rounded, share, vectors


@triton.jit(do_not_specialize=("splits",))
def bn_relu_conv2d_wgrad_kernel(
    dy, dy_x, dy_coeffs, dy_add, x, bn, bn_stride, partial, pixels, splits,
    geo: tl.constexpr, RELU: tl.constexpr, Z: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TAPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (block, taps, split): BM output by BN input channels of dweight for TAPS taps, summed over the pixels of a split."""
    CG: tl.constexpr = geo.C // geo.groups
    KG: tl.constexpr = geo.K // geo.groups
    columns: tl.constexpr = (CG + BN - 1) // BN
    blocks: tl.constexpr = (KG + BM - 1) // BM * columns
    group = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    own = block // columns * BM + tl.arange(0, BM)
    ci = block % columns * BN + tl.arange(0, BN)
    inside_k = own < KG
    inside_c = ci < CG
    k = group * KG + own
    c = group * CG + ci
    if bn is not None:
        mean, scale, shift = vectors(x, bn, bn_stride, c, inside_c)
    a, b, mean_k, shift_k = dy_vectors(dy_x, dy_coeffs, k, inside_k, geo.K)
    accs = (tl.zeros((BM, BN), tl.float32),) * TAPS
    first, last = share(tl.cdiv(pixels, BK), splits, tl.program_id(2))
    for tile in range(first, last):
        m = tile * BK + tl.arange(0, BK)
        n, p, q = pixel(m, geo)
        inside_m = m < pixels
        start = tl.cast(tile, tl.int64) * (BK * geo.K)
        offset = tl.arange(0, BK)[:, None] * geo.K + k[None, :]
        d = load_dy(dy, dy_x, dy_add, a, b, mean_k, shift_k, start, offset, inside_m[:, None] & inside_k[None, :])
        d = tl.trans(operand(d, Z))
        image = tile * BK // (geo.P * geo.Q)
        base = tl.cast(image, tl.int64) * (geo.H * geo.W * geo.C)
        n -= image
        h0 = p * geo.stride_h - geo.pad_h
        w0 = q * geo.stride_w - geo.pad_w
        added = ()
        for t in tl.static_range(TAPS):
            tap = tl.program_id(1) * TAPS + t
            h = h0 + tap // geo.S * geo.dilation_h
            w = w0 + tap % geo.S * geo.dilation_w
            inside = (inside_m & (h >= 0) & (h < geo.H) & (w >= 0) & (w < geo.W))[:, None] & inside_c[None, :]
            z = tl.load(x + base + ((n * geo.H + h) * geo.W + w)[:, None] * geo.C + c[None, :], inside, 0.0)
            if bn is not None:
                z = tl.where(inside, activate(z, mean, scale, shift, RELU), 0.0)
            added = added + (tl.dot(d, operand(z, Z), accs[t], input_precision=PRECISION),)
        accs = added
    for t in tl.static_range(TAPS):
        tap = tl.program_id(1) * TAPS + t
        at = tl.program_id(2).to(tl.int64) * (geo.K * geo.R * geo.S * CG)
        tl.store(
            partial + at + k[:, None] * (geo.R * geo.S * CG) + (tap * CG + ci)[None, :],
            rounded(accs[t], partial.dtype.element_ty),
            inside_k[:, None] & inside_c[None, :],
        )


@triton.jit(do_not_specialize=("splits",))
def wgrad_sum_kernel(partial, dweight, splits, elements, BS: tl.constexpr, BN: tl.constexpr):
    """dweight = the sum of `splits` partial ones, always in the same order."""
    i = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = i < elements
    total = tl.zeros((BS, BN), tl.float32)
    for first in range(0, splits, BS):
        s = first + tl.arange(0, BS)
        total += tl.load(partial + s.to(tl.int64)[:, None] * elements + i[None, :], (s < splits)[:, None] & inside[None, :], 0.0)
    tl.store(dweight + i, rounded(column_sums(total), dweight.dtype.element_ty), inside)
