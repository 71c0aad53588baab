"""How work is cut into blocks: pure functions of shape, dtype and device, to frozen records.

Nothing here was measured on a GPU yet; docs/performance.md has what the simulator counted.
"""

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import NamedTuple

import torch

from fused_preact.backends.cuda.environment import Device
from fused_preact.backends.cuda.shapes import (
    FLAT,
    FLAT_BWD,
    FLAT_FLOAT32,
    FLAT_GRAD,
    FLAT_GRAD_FLOAT32,
    WINDOW_3X3,
    WINDOW_3X3_BWD,
    WINDOW_3X3_FLOAT32,
    WINDOW_3X3_GRAD,
    WINDOW_ANY,
    WINDOW_ANY_FLOAT32,
    WINDOW_ANY_GRAD,
    Shape,
    Shapes,
)

CHUNK_BYTES = 16
# Of a block of a norm's kernel.
THREADS = 256
WARP = 32
# Pixels that a thread has at least, where there are enough: their loads are on their way together.
IN_FLIGHT = 4
# Threads of a norm's kernels that keep a multiprocessor busy.
BUSY_THREADS = 2048
# Beside a mean of 1000 standard deviations, the means of tiles in float32 don't tell by how much these differ; the error shrinks with the
# root of the number of pixels, so that only small activations are kept in few tiles.
SMALL_ACTIVATION, SMALL_TILE = 8192, 1024


class Grid(NamedTuple):
    """Of a norm's kernel: threads of a block across channels and down pixels, and blocks that share out the pixels."""

    columns: int
    rows: int
    blocks: int


class ConvTile(NamedTuple):
    """Of a convolution: pixels, channels summed over and output channels that a block computes with at a time; blocks that share out the
    pixels; bytes."""

    pixels: int
    slab: int
    out: int
    blocks: int
    shared: int


class Axis(NamedTuple):
    """One axis of a convolution."""

    size: int
    out: int
    kernel: int
    stride: int
    padding: int
    dilation: int


class Problem(NamedTuple):
    """A convolution of n images, c channels to k, of elements of so many bytes."""

    n: int
    c: int
    k: int
    y: Axis
    x: Axis
    itemsize: int = 2

    @property
    def taps(self) -> int:
        return self.y.kernel * self.x.kernel

    @property
    def pointwise(self) -> bool:
        """Whether every output pixel reads the input pixel at its place, and no other."""
        return all((a.kernel, a.stride, a.padding) == (1, 1, 0) for a in (self.y, self.x))

    @property
    def dense_3x3(self) -> bool:
        return all((a.kernel, a.stride, a.dilation) == (3, 1, 1) for a in (self.y, self.x))


PARTS_SHARE = 4
SMALL_DWEIGHT = 4096
WIDEST_SLAB = 64
LIBRARY_CHANNELS = 128
# csrc/cuda/window.h
MOST_TAPS, MOST_PHASES = 49, 4
# Of every block's shared memory the system takes 1 KiB.
RESERVED = 1024


def bn_grid(channels: int, pixels: int, dtype: torch.dtype, tiles: int, device: Device) -> Grid:
    """tiles: those that the kernel fills, a block each; 0 if it has none."""
    chunk = CHUNK_BYTES // dtype.itemsize
    across = channels // chunk if channels % chunk == 0 else channels
    columns = min(WARP, across)
    rows = THREADS // columns
    most = device.multiprocessors * BUSY_THREADS // THREADS // _parts(across, columns)
    blocks = min(_parts(pixels, rows * IN_FLIGHT), max(1, most))
    if tiles:
        least = SMALL_TILE if pixels < SMALL_ACTIVATION else 1
        blocks = min(blocks, tiles, pixels // least)
    return Grid(columns, rows, max(1, blocks))


def materialises(p: Problem) -> bool:
    """Whether z is written once, for torch's library: wide convolutions of many taps are bound by arithmetic, which cuDNN is expected to do
    faster than mma.sync (docs/performance.md)."""
    return p.taps > 1 and min(p.c, p.k) >= LIBRARY_CHANNELS


def fwd_tile(p: Problem, tiles: int, device: Device) -> ConvTile | None:
    """Of a forward convolution, with at most `tiles` blocks along the pixels; None if no tile fits the device."""
    return flat_fwd_tile(p.n * p.y.out * p.x.out, p.c, p.k, tiles, device, p.itemsize) if p.pointwise else window_fwd_tile(p, tiles, device)


def flat_fwd_tile(pixels: int, c: int, k: int, tiles: int, device: Device, itemsize: int = 2) -> ConvTile | None:
    """Of a pointwise convolution."""
    if itemsize == 4:
        key = _key(FLAT_FLOAT32, c, k, lambda slab, out: flat_fwd_bytes(slab, out, c, 4), device)
        if key is None:
            return None
        shape = FLAT_FLOAT32[key]
        return _shared_out(shape, _parts(pixels, shape.pixels), *key, c, k, tiles, flat_fwd_bytes(*key, c, 4), device)
    slab = min(WIDEST_SLAB, max(16, _power_of_two(c)))
    outs = [out for own, out in FLAT if own == slab]
    out = next((out for out in outs if out >= k), outs[-1])
    shared = flat_fwd_bytes(slab, out, c)
    # Half as wide, if that leaves fewer multiprocessors idle, or room for a second block.
    if out > 64 and (
        _parts(pixels, FLAT[slab, out].pixels) * _parts(k, out) < device.multiprocessors or 2 * (shared + RESERVED) > device.shared_limit
    ):
        out = 64
        shared = flat_fwd_bytes(slab, out, c)
    return _shared_out(FLAT[slab, out], _parts(pixels, FLAT[slab, out].pixels), slab, out, c, k, tiles, shared, device)


def window_fwd_tile(p: Problem, tiles: int, device: Device) -> ConvTile | None:
    """Of a convolution that is not pointwise."""
    if p.taps > MOST_TAPS or p.y.stride * p.x.stride > MOST_PHASES:
        return None
    shapes = window_shapes(p)
    key = _key(shapes, p.c, p.k, partial(window_fwd_bytes, p), device)
    if key is None:
        return None
    (slab, out), shape = key, shapes[key]
    pieces = p.n * _parts(p.y.out, shape.height) * _parts(p.x.out, shape.width)
    return _shared_out(shape, pieces, slab, out, p.c, p.k, tiles, window_fwd_bytes(p, slab, out), device)


def dgrad_tile(p: Problem, tiles: int, device: Device, with_wgrad: bool = False) -> ConvTile | None:
    """Of the input's gradient, with at most `tiles` blocks along the pixels; None if no tile fits the device."""
    if p.pointwise:
        shapes, pixels = FLAT_BWD if with_wgrad else flat_grad_shapes(p.itemsize), p.n * p.y.size * p.x.size
        if not with_wgrad and 4 * _parts(pixels, FLAT_GRAD[64, 256].pixels) < 3 * device.multiprocessors:
            # A block of 256 channels reads dy once, and leaves few blocks: not where a quarter of the multiprocessors would be idle.
            shapes = {key: shape for key, shape in shapes.items() if key[1] < 256}
    elif p.taps > MOST_TAPS or p.y.stride * p.x.stride > MOST_PHASES:
        return None
    else:
        shapes = window_grad_shapes(p, with_wgrad)
    key = _key(shapes, p.k, p.c, partial(_dgrad_bytes, p, with_wgrad=with_wgrad), device)
    if key is None:
        return None
    shape = shapes[key]
    if p.pointwise:
        pieces = _parts(pixels, shape.pixels)
    else:
        pieces = p.n * _parts(_parts(p.y.size, p.y.stride), shape.height) * _parts(_parts(p.x.size, p.x.stride), shape.width)
    if with_wgrad:
        tiles = _with_parts(p, tiles, device)
    return _shared_out(shape, pieces, *key, p.k, p.c, tiles, _dgrad_bytes(p, *key, with_wgrad), device)


def _with_parts(p: Problem, tiles: int, device: Device) -> int:
    """At most so many blocks where each gives a part of dweight: what they write, and what is read again, should be little beside the
    activations."""
    activations, part = p.n * p.y.size * p.x.size * (p.c + p.k) * 2, p.c * p.k * p.taps * 4
    return min(tiles, max(device.multiprocessors, activations // PARTS_SHARE // part))


def shares_wgrad(p: Problem, emit: str, device: Device) -> bool:
    """Whether one kernel computes both gradients, of 16 bits, but for dx: of convolutions that are pointwise or 3x3 without stride and
    dilation, if dweight fits a block."""
    if p.itemsize == 4 or emit not in ("dz", "g", "sums") or not (p.pointwise or p.dense_3x3):
        return False
    shapes = FLAT_BWD if p.pointwise else WINDOW_3X3_BWD
    fitting = [(slab, out) for slab, out in shapes if _dgrad_bytes(p, slab, out, True) <= device.shared_limit]
    # In a large block that is half empty, what is multiplied in vain costs more instructions than reading once saves.
    return any(p.k <= slab and p.c <= out and (slab * out <= SMALL_DWEIGHT or 2 * p.k * p.c > slab * out) for slab, out in fitting)


def _dgrad_bytes(p: Problem, slab: int, out: int, with_wgrad: bool) -> int:
    if p.pointwise:
        return flat_dgrad_bytes(slab, out, p.k, with_wgrad, p.itemsize)
    return window_dgrad_bytes(p, slab, out, with_wgrad)


def _key(
    shapes: dict[tuple[int, int], Shape], summed: int, outputs: int, memory: Callable[[int, int], int], device: Device
) -> tuple[int, int] | None:
    """(slab, out) of those that fit the device: the narrowest that has all outputs, or the widest. memory(slab, out): what it needs."""
    there = [key for key, shape in shapes.items() if (shape.one_slab if key[0] >= summed else shape.slabs)]
    fitting = [key for key in there if memory(*key) <= device.shared_limit]
    return next((key for key in fitting if key[1] >= outputs), fitting[-1] if fitting else None)


def _shared_out(
    shape: Shape, pieces: int, slab: int, out: int, summed: int, outputs: int, tiles: int, shared: int, device: Device
) -> ConvTile | None:
    """Tiles in `pieces` for blocks that are all resident, as even as they can be."""
    if shared > device.shared_limit:
        return None
    resident = max(1, min(shape.slabs if summed > slab else shape.one_slab, device.shared_limit // (shared + RESERVED)))
    most = min(tiles, pieces, max(1, device.multiprocessors * resident // _parts(outputs, out)))
    return ConvTile(shape.pixels, slab, out, _parts(pieces, _parts(pieces, most)), shared)


def window_shapes(p: Problem) -> Shapes:
    """Of a forward convolution that is not pointwise."""
    if p.itemsize == 4:
        return WINDOW_3X3_FLOAT32 if p.dense_3x3 else WINDOW_ANY_FLOAT32
    return WINDOW_3X3 if p.dense_3x3 else WINDOW_ANY


def flat_fwd_bytes(slab: int, out: int, c: int, itemsize: int = 2) -> int:
    """Slabs of z and of the weight (two of each if there are more to come), y, sums of each warp, and vectors of the norm: scale and shift,
    and of float32 the mean."""
    shape, slabs = (FLAT_FLOAT32 if itemsize == 4 else FLAT)[slab, out], _parts(c, slab)
    vectors = 4 * (3 if itemsize == 4 else 2) * slabs * slab
    return itemsize * (min(2, slabs) * slab * (shape.pixels + out) + shape.pixels * out) + shape.warps * 8 * out + vectors


def window_fwd_bytes(p: Problem, slab: int, out: int) -> int:
    """y, sums of each warp, a slab of the weight (two if there are more to come) under all taps, and one of the window."""
    shape, row = window_shapes(p)[slab, out], _padded(slab, p.itemsize)
    weight = p.taps * _tap(out, row, slab * p.itemsize)
    window = window_side(p.y, shape.height) * window_side(p.x, shape.width) * row
    return p.itemsize * shape.pixels * out + shape.warps * 8 * out + min(2, _parts(p.c, slab)) * weight + window


def flat_grad_shapes(itemsize: int) -> Shapes:
    return FLAT_GRAD_FLOAT32 if itemsize == 4 else FLAT_GRAD


def window_grad_shapes(p: Problem, with_wgrad: bool = False) -> Shapes:
    if with_wgrad:
        return WINDOW_3X3_BWD
    if p.itemsize == 4:
        return window_shapes(p)
    return WINDOW_3X3_GRAD if p.dense_3x3 else WINDOW_ANY_GRAD


def flat_dgrad_bytes(slab: int, out: int, k: int, with_wgrad: bool, itemsize: int = 2) -> int:
    """dz, x, z if it is needed, and slabs of the weight and of dy (two of each if there are more to come)."""
    shape = (FLAT_BWD if with_wgrad else flat_grad_shapes(itemsize))[slab, out]
    slabs = min(2, _parts(k, slab)) * slab * (_summed_row(out, itemsize) + itemsize * shape.pixels)
    return (3 if with_wgrad else 2) * itemsize * shape.pixels * out + slabs


def window_dgrad_bytes(p: Problem, slab: int, out: int, with_wgrad: bool = False) -> int:
    """dz, x, z if it is needed, a slab of the weight (two if there are more to come) under all taps, and one of dy's window."""
    shape = window_grad_shapes(p, with_wgrad)[slab, out]
    weight = p.taps * _tap(slab, _summed_row(out, p.itemsize), out * p.itemsize)
    window = transposed_window_side(p.y, shape.height) * transposed_window_side(p.x, shape.width) * _padded(slab, p.itemsize)
    return (3 if with_wgrad else 2) * p.itemsize * shape.pixels * out + min(2, _parts(p.k, slab)) * weight + window


def transposed_window_side(a: Axis, inputs: int) -> int:
    """Pixels along an axis of the window of dy from which so many inputs of each phase take.

    Input i takes from outputs (i + padding - r*dilation)/stride.
    """
    reached = [
        (phase + a.padding - r * a.dilation) // a.stride
        for phase in range(a.stride)
        for r in range(a.kernel)
        if (phase + a.padding - r * a.dilation) % a.stride == 0
    ]
    return inputs + max(reached) - min(reached)


def window_side(a: Axis, outputs: int) -> int:
    """Pixels along an axis of the window that so many outputs read: those that any of them does, and what lies between."""
    sample = a.stride if a.kernel == 1 else gcd(a.stride, a.dilation)
    return (outputs - 1) * (a.stride // sample) + (a.kernel - 1) * a.dilation // sample + 1


def _padded(channels: int, itemsize: int = 2) -> int:
    """Bytes of a row of chunks, an odd number of them."""
    return (channels * itemsize // CHUNK_BYTES | 1) * CHUNK_BYTES


def _tap(rows: int, row: int, used: int) -> int:
    """Bytes of a weight's rows under one tap: `row` each, of which `used` are. Neighbouring taps begin `used` bytes beyond a whole line."""
    return rows * row if used >= 128 else -(-(rows * row - used) // 128) * 128 + used


def _summed_row(channels: int, itemsize: int) -> int:
    """Bytes of a weight's row that is summed over: of float32 two chunks more."""
    return _padded(channels) if itemsize == 2 else channels * itemsize + 2 * CHUNK_BYTES


def _parts(n: int, size: int) -> int:
    """Of so many at most, until there are n."""
    return -(-n // size)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
