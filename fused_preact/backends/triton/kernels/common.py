"""Device functions that the kernels share."""

from typing import NamedTuple

import triton
import triton.language as tl
from triton import knobs

# Triton's interpreter computes bfloat16 arithmetic and dots wrongly: there, and only there, operands of a dot are float32.
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


class Geometry(NamedTuple):
    """Constants of a convolution: x (N, H, W, C), y (N, P, Q, K), weight (K, R, S, C/groups)."""

    C: int
    K: int
    H: int
    W: int
    P: int
    Q: int
    R: int
    S: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    groups: int


@triton.jit
def share(items, parts, part):
    """first, last: the consecutive items of `part`, one of `parts` nearly equal shares."""
    each = items // parts
    more = items % parts
    first = part * each + tl.minimum(part, more)
    return first, first + each + (part < more).to(tl.int32)


@triton.jit
def rounded(t, DTYPE: tl.constexpr):
    """t as DTYPE."""
    if INTERPRETED:
        if t.dtype == tl.float32:
            if DTYPE == tl.bfloat16:
                # The interpreter cuts digits off; this is what a GPU does: to nearest, ties to even.
                bits = t.to(tl.int32, bitcast=True)
                bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
                t = tl.where(t == t, bits.to(tl.float32, bitcast=True), t)
    return t.to(DTYPE)


@triton.jit
def wide(t, DTYPE: tl.constexpr):
    """t rounded to DTYPE, as float32."""
    return rounded(t, DTYPE).to(tl.float32)


@triton.jit
def operand(t, DTYPE: tl.constexpr):
    """t as an operand of tl.dot, rounded to DTYPE."""
    if INTERPRETED:
        return wide(t, DTYPE)
    return rounded(t, DTYPE)


@triton.jit
def column_sums(t):
    """Sums over rows."""
    if INTERPRETED:
        if t.shape[0] >= 16:
            # The interpreter adds row after row, a GPU in a tree: this comes close to its rounding errors.
            FOLD: tl.constexpr = 8 if t.shape[0] >= 64 else 4
            t = tl.sum(tl.reshape(t, (t.shape[0] // FOLD, FOLD, t.shape[1])), 1)
    return tl.sum(t, 0)


@triton.jit
def vectors(x, bn, stride, c, inside):
    """mean, scale and offset of the channels c, as `activate` takes them."""
    mean = tl.load(bn + c, inside, 0.0)
    scale = tl.load(bn + 2 * stride + c, inside, 0.0)
    offset = tl.load(bn + 3 * stride + c, inside, 0.0)
    if x.dtype.element_ty.primitive_bitwidth == 16:
        offset = tl.fma(-mean, scale, offset)
    return mean, scale, offset


@triton.jit
def activate(x, mean, scale, offset, RELU: tl.constexpr):
    """z = relu((x - mean)*scale + beta), the same in every kernel: a recomputed mask is the mask of forward.

    For a 16-bit x as x*scale + (beta - mean*scale), an instruction and a register shorter: where x varies, it has too few digits to tell.
    """
    v = x.to(tl.float32)
    if x.dtype.primitive_bitwidth != 16:
        v -= mean[None, :]
    v = tl.fma(v, scale[None, :], offset[None, :])
    if RELU:
        v = tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return v


@triton.jit
def pixel(m, geo: tl.constexpr):
    """n, p, q of the output pixels m; n counts from the first of them, so that offsets into x stay small."""
    n = m // (geo.P * geo.Q)
    rest = m - n * (geo.P * geo.Q)
    p = rest // geo.Q
    return n, p, rest - p * geo.Q


@triton.jit
def dy_vectors(dy_x, coeffs, k, inside, channels):
    """a, b, mean and c of a deferred dy, as `load_dy` takes them; nothing of use without coeffs."""
    a, b, mean, c = k, k, k, k
    if coeffs is not None:
        a = tl.load(coeffs + k, inside, 0.0)
        b = tl.load(coeffs + channels + k, inside, 0.0)
        mean = tl.load(coeffs + 2 * channels + k, inside, 0.0)
        c = tl.load(coeffs + 3 * channels + k, inside, 0.0)
        if dy_x.dtype.element_ty.primitive_bitwidth == 16:
            c = tl.fma(-b, mean, c)
    return a, b, mean, c


@triton.jit
def load_dy(dy, dy_x, dy_add, a, b, mean, c, base, offset, inside):
    """dy; with dy_x, a*dy + b*(dy_x - mean) + c (+ dy_add), rounded as it would have been stored. 0 outside."""
    d = tl.load(dy + base + offset, inside, 0.0)
    if dy_x is not None:
        v = tl.load(dy_x + base + offset, inside, 0.0)
        w = v.to(tl.float32)
        if v.dtype.primitive_bitwidth != 16:
            w -= mean[None, :]
        w = tl.fma(a[None, :], d.to(tl.float32), tl.fma(b[None, :], w, c[None, :]))
        if dy_add is not None:
            w += tl.load(dy_add + base + offset, inside, 0.0).to(tl.float32)
        # What a load gives outside is not enough: of zeros the formula makes c.
        d = rounded(tl.where(inside, w, 0.0), dy.dtype.element_ty)
    return d


@triton.jit
def add_tile(v, inside, n, count, pivot, mean, m2):
    """count, pivot, mean and m2 with the n rows of v that are `inside` added, by Chan's formula.

    mean counts from pivot, the first tile's own: differences of means keep the digits that large means lose.
    """
    total = count + n
    own = column_sums(tl.where(inside, v, 0.0)) / n
    d = tl.where(inside, v - own[None, :], 0.0)
    # What the first sum lost where the mean is large, the sum of deviations has.
    rest = column_sums(d) / n
    pivot = tl.where(count == 0.0, own, pivot)
    delta = (own - pivot) + rest - mean
    # m2 += m2_tile + delta^2 * count*n/(count + n)
    m2 += column_sums(d * d) - n * rest * rest + delta * delta * (count * n / total)
    mean += delta * (n / total)
    return total, pivot, mean, m2


@triton.jit
def store_stats(stats, row, channels, c, inside, count, mean, m2):
    """One tile of stats [T, 3, channels]."""
    at = stats + row * 3 * channels + c
    tl.store(at, tl.zeros_like(mean) + count, inside)
    tl.store(at + channels, mean, inside)
    tl.store(at + 2 * channels, m2, inside)


@triton.jit
def store_sums(sums, tiles, parts, part, bn, bn_stride, channels, c, inside, sum_g, sum_gx):
    """The rows of sums [tiles, 2, channels] that belong to `part`: sum g and sum g*xhat in the first, zeros in the others."""
    # xhat = (x - mean)*invstd
    sum_gx *= tl.load(bn + bn_stride + c, inside, 0.0)
    first, last = share(tiles, parts, part)
    for row in range(first, last):
        at = sums + row * 2 * channels + c
        tl.store(at, tl.where(row == first, sum_g, 0.0), inside)
        tl.store(at + channels, tl.where(row == first, sum_gx, 0.0), inside)


@triton.jit
def gradient(
    dz, x, mean, scale, shift, coeffs, residual_grad, out, base, offset, inside, c, inside_c, channels, sum_g, sum_gx,
    Z: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """From tiles of dz (float32, 0 outside) and x: g = z <= 0 ? 0 : dz; writes g, or with coeffs a*g + b*(x - mean) + c (+ residual_grad).

    Returns sum g and sum g*(x - mean), these rows added. mean, scale, shift: of `vectors`. Z: dtype of z in forward. out may be None.
    """
    if RELU:
        dz = tl.where(wide(activate(x, mean, scale, shift, True), Z) <= 0.0, 0.0, dz)
    g = wide(dz, x.dtype)
    d = x.to(tl.float32) - mean[None, :]
    sum_g += column_sums(g)
    sum_gx += column_sums(g * d)
    if out is not None:
        if coeffs is not None:
            a = tl.load(coeffs + c, inside_c, 0.0)
            b = tl.load(coeffs + channels + c, inside_c, 0.0)
            last = tl.load(coeffs + 3 * channels + c, inside_c, 0.0)
            g = tl.fma(a[None, :], g, tl.fma(b[None, :], d, last[None, :]))
            if residual_grad is not None:
                g += tl.load(residual_grad + base + offset, inside, 0.0).to(tl.float32)
        tl.store(out + base + offset, rounded(g, out.dtype.element_ty), inside)
    return sum_g, sum_gx
