"""dz = conv_transpose(dy, weight), and what the backward of BN and ReLU makes of it, without dz ever in memory."""

import triton
import triton.language as tl

from fused_preact.backends.triton.kernels.common import dy_vectors, gradient, load_dy, operand, rounded, share, store_sums, vectors


@triton.jit
def source(m, tap_h, tap_w, image, geo: tl.constexpr):
    """For input pixels m and one tap: the output pixel that reads them, counted from the start of `image`, and whether there is one."""
    n = m // (geo.H * geo.W)
    rest = m - n * (geo.H * geo.W)
    h = rest // geo.W
    # h = p*stride - pad + tap*dilation
    p = h + (geo.pad_h - tap_h * geo.dilation_h)
    q = rest - h * geo.W + (geo.pad_w - tap_w * geo.dilation_w)
    inside = (p >= 0) & (q >= 0)
    if geo.stride_h > 1:
        inside &= p % geo.stride_h == 0
        p = p // geo.stride_h
    if geo.stride_w > 1:
        inside &= q % geo.stride_w == 0
        q = q // geo.stride_w
    return ((n - image) * geo.P + p) * geo.Q + q, inside & (p < geo.P) & (q < geo.Q)


@triton.jit(do_not_specialize=("tiles",))
def bn_relu_conv2d_dgrad_kernel(
    dy, dy_x, dy_coeffs, dy_add, weight, x, bn, bn_stride, add_dz, coeffs, residual_grad, out, sums, pixels, tiles,
    geo: tl.constexpr, RELU: tl.constexpr, RAW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (j, t): block j of the input channels, for the input pixels of statistics tile t. RAW: out is dz itself."""
    CG: tl.constexpr = geo.C // geo.groups
    KG: tl.constexpr = geo.K // geo.groups
    STEPS: tl.constexpr = (KG + BK - 1) // BK
    Z: tl.constexpr = weight.dtype.element_ty
    blocks: tl.constexpr = (CG + BN - 1) // BN
    group = tl.program_id(0) // blocks
    ci = tl.program_id(0) % blocks * BN + tl.arange(0, BN)
    inside_c = ci < CG
    c = group * CG + ci
    own = tl.arange(0, BK)
    # Where one step covers the channels, their vectors stay in registers.
    a, b, mean_k, shift_k = dy_vectors(dy_x, dy_coeffs, group * KG + own, own < KG, geo.K)
    sum_g = tl.zeros((BN,), tl.float32)
    sum_gx = tl.zeros((BN,), tl.float32)
    first, last = share(tl.cdiv(pixels, BM), tiles, tl.program_id(1))
    for tile in range(first, last):
        m = tile * BM + tl.arange(0, BM)
        image = tile * BM // (geo.H * geo.W)
        base = tl.cast(image, tl.int64) * (geo.P * geo.Q * geo.K)
        inside_m = m < pixels
        acc = tl.zeros((BM, BN), tl.float32)
        for step in range(geo.R * geo.S * STEPS):
            tap = step // STEPS
            own = step % STEPS * BK + tl.arange(0, BK)
            inside_k = own < KG
            k = group * KG + own
            at, read = source(m, tap // geo.S, tap % geo.S, image, geo)
            inside = (read & inside_m)[:, None] & inside_k[None, :]
            if STEPS > 1:
                a, b, mean_k, shift_k = dy_vectors(dy_x, dy_coeffs, k, inside_k, geo.K)
            d = load_dy(dy, dy_x, dy_add, a, b, mean_k, shift_k, base, at[:, None] * geo.K + k[None, :], inside)
            wt = tl.load(weight + k[:, None] * (geo.R * geo.S * CG) + (tap * CG + ci)[None, :], inside_k[:, None] & inside_c[None, :], 0.0)
            acc = tl.dot(operand(d, Z), operand(wt, Z), acc, input_precision=PRECISION)
        start = tl.cast(tile, tl.int64) * (BM * geo.C)
        offset = tl.arange(0, BM)[:, None] * geo.C + c[None, :]
        inside = inside_m[:, None] & inside_c[None, :]
        if add_dz is not None:
            acc += tl.load(add_dz + start + offset, inside, 0.0).to(tl.float32)
        if RAW:
            tl.store(out + start + offset, rounded(acc, out.dtype.element_ty), inside)
        else:
            v = tl.load(x + start + offset, inside, 0.0)
            mean, scale, shift = vectors(x, bn, bn_stride, c, inside_c)
            sum_g, sum_gx = gradient(
                acc, v, mean, scale, shift, coeffs, residual_grad, out, start, offset, inside, c, inside_c, geo.C, sum_g, sum_gx, Z, RELU
            )
    if sums is not None:
        store_sums(sums, tiles, tiles, tl.program_id(1), bn, bn_stride, geo.C, c, inside_c, sum_g, sum_gx)
