"""dgrad and wgrad of a 1x1 convolution with few output channels in one kernel: dy and x are read once for both."""

import triton
import triton.language as tl

from fused_preact.backends.triton.kernels.bn_relu_conv2d_dgrad import source
from fused_preact.backends.triton.kernels.common import (
    activate,
    dy_vectors,
    gradient,
    load_dy,
    operand,
    rounded,
    share,
    store_sums,
    vectors,
)


@triton.jit(do_not_specialize=("tiles", "splits"))
def bn_relu_conv2d_bwd_kernel(
    dy, dy_x, dy_coeffs, dy_add, weight, x, bn, bn_stride, add_dz, coeffs, residual_grad, out, sums, partial, pixels, tiles, splits,
    geo: tl.constexpr, RELU: tl.constexpr, RAW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (j, split): all output channels and block j of the input channels, for one share of the input pixels.

    With m an input pixel, and p(m) the output pixel that reads it, if there is one:
        dz[m] = dy[p(m)] weight          dweight = sum over m of dy[p(m)]^T z[m]
    """
    Z: tl.constexpr = weight.dtype.element_ty
    k = tl.arange(0, BK)
    c = tl.program_id(0) * BN + tl.arange(0, BN)
    inside_k = k < geo.K
    inside_c = c < geo.C
    at = k[:, None] * geo.C + c[None, :]
    inside_w = inside_k[:, None] & inside_c[None, :]
    wt = operand(tl.load(weight + at, inside_w, 0.0), Z)
    if bn is not None:
        mean, scale, shift = vectors(x, bn, bn_stride, c, inside_c)
    a, b, mean_k, shift_k = dy_vectors(dy_x, dy_coeffs, k, inside_k, geo.K)
    acc = tl.zeros((BK, BN), tl.float32)
    sum_g = tl.zeros((BN,), tl.float32)
    sum_gx = tl.zeros((BN,), tl.float32)
    first, last = share(tl.cdiv(pixels, BM), splits, tl.program_id(1))
    for tile in range(first, last):
        m = tile * BM + tl.arange(0, BM)
        inside_m = m < pixels
        start = tl.cast(tile, tl.int64) * (BM * geo.C)
        offset = tl.arange(0, BM)[:, None] * geo.C + c[None, :]
        inside = inside_m[:, None] & inside_c[None, :]
        v = tl.load(x + start + offset, inside, 0.0)
        image = tile * BM // (geo.H * geo.W)
        base = tl.cast(image, tl.int64) * (geo.P * geo.Q * geo.K)
        row, read = source(m, 0, 0, image, geo)
        read = (read & inside_m)[:, None]
        d = load_dy(dy, dy_x, dy_add, a, b, mean_k, shift_k, base, row[:, None] * geo.K + k[None, :], read & inside_k[None, :])
        d = operand(d, Z)
        if partial is not None:
            z = v
            if bn is not None:
                z = activate(v, mean, scale, shift, RELU)
            # A pixel that no output reads may hold anything, and 0*inf is not 0.
            z = tl.where(read & inside_c[None, :], z, 0.0)
            acc = tl.dot(tl.trans(d), operand(z, Z), acc, input_precision=PRECISION)
        if out is not None or sums is not None:
            dz = tl.dot(d, wt, input_precision=PRECISION)
            if add_dz is not None:
                dz += tl.load(add_dz + start + offset, inside, 0.0).to(tl.float32)
            if RAW:
                tl.store(out + start + offset, rounded(dz, out.dtype.element_ty), inside)
            else:
                sum_g, sum_gx = gradient(
                    dz, v, mean, scale, shift, coeffs, residual_grad, out, start, offset, inside, c, inside_c, geo.C, sum_g, sum_gx, Z, RELU
                )
    if sums is not None:
        store_sums(sums, tiles, splits, tl.program_id(1), bn, bn_stride, geo.C, c, inside_c, sum_g, sum_gx)
    if partial is not None:
        start = tl.program_id(1).to(tl.int64) * (geo.K * geo.C)
        tl.store(partial + start + at, rounded(acc, partial.dtype.element_ty), inside_w)
