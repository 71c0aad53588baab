"""How work is cut into blocks: pure functions of shape, dtype and device, to frozen records.

Nothing here was measured on a GPU yet; docs/performance.md has what the simulator counted.
"""

from typing import NamedTuple

import torch

from fused_preact.backends.cuda.environment import Device

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
    """Of a convolution: pixels, input and output channels that a block computes with at a time; blocks that share out the pixels; bytes."""

    pixels: int
    slab: int
    out: int
    blocks: int
    shared: int


class Shape(NamedTuple):
    """Of a block of a convolution's kernel: pixels, warps, and how many share a multiprocessor's registers, if C is one slab or more."""

    pixels: int
    warps: int
    one_slab: int
    slabs: int = 0


# What csrc/cuda/bn_relu_conv2d_fwd.cu is compiled for, by input channels at a time and output channels. More of both would spill registers,
# or leave no room for a second block.
SHAPES = {
    (16, 16): Shape(128, 4, 4),
    (16, 32): Shape(128, 4, 4),
    (16, 64): Shape(128, 4, 3),
    (32, 16): Shape(128, 4, 4),
    (32, 32): Shape(128, 4, 4),
    (32, 64): Shape(128, 4, 3),
    (32, 128): Shape(128, 8, 2),
    (64, 16): Shape(128, 4, 4, 4),
    (64, 32): Shape(128, 4, 3, 3),
    (64, 64): Shape(64, 4, 3, 3),
    (64, 128): Shape(64, 4, 3, 2),
}
WIDEST_SLAB = 64
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


def conv_tile(pixels: int, c: int, k: int, tiles: int, device: Device) -> ConvTile | None:
    """Of a 1x1 convolution of 16-bit values, with at most `tiles` blocks along the pixels; None if no tile fits the device."""
    slab = min(WIDEST_SLAB, max(16, _power_of_two(c)))
    outs = [out for own, out in SHAPES if own == slab]
    out = next((out for out in outs if out >= k), outs[-1])
    shape, shared = _block(slab, out, c)
    # Half as wide, if that leaves fewer multiprocessors idle, or room for a second block.
    if out > 64 and (
        _parts(pixels, shape.pixels) * _parts(k, out) < device.multiprocessors or 2 * (shared + RESERVED) > device.shared_limit
    ):
        out = 64
        shape, shared = _block(slab, out, c)
    if shared > device.shared_limit:
        return None
    resident = max(1, min(shape.slabs if c > slab else shape.one_slab, device.shared_limit // (shared + RESERVED)))
    pieces = _parts(pixels, shape.pixels)
    most = min(tiles, pieces, max(1, device.multiprocessors * resident // _parts(k, out)))
    # As even as they can be.
    return ConvTile(shape.pixels, slab, out, _parts(pieces, _parts(pieces, most)), shared)


def _block(slab: int, out: int, c: int) -> tuple[Shape, int]:
    """The shape, and its bytes of shared memory."""
    shape = SHAPES[slab, out]
    return shape, shared_bytes(shape.pixels, slab, out, shape.warps, c)


def shared_bytes(pixels: int, slab: int, out: int, warps: int, c: int) -> int:
    """Slabs of z and of the weight (two of each if there are more to come), y, sums of each warp, scale and shift of every channel."""
    slabs = _parts(c, slab)
    return min(2, slabs) * 2 * slab * (pixels + out) + 2 * pixels * out + warps * 8 * out + 8 * slabs * slab


def _parts(n: int, size: int) -> int:
    """Of so many at most, until there are n."""
    return -(-n // size)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
