"""How the work of a weight's gradient is cut into blocks: pure functions of shape and device, to frozen records."""

from typing import NamedTuple

from fused_preact.backends.cuda.environment import Device
from fused_preact.backends.cuda.shapes import (
    FLAT_WGRAD,
    FLAT_WGRAD_FLOAT32,
    WINDOW_3X3_WGRAD,
    WINDOW_3X3_WGRAD_FLOAT32,
    WINDOW_ANY_WGRAD,
    WgradShape,
)
from fused_preact.backends.cuda.tiles import MOST_PHASES, MOST_TAPS, Problem, _parts, _summed_row, window_side


class WgradTile(NamedTuple):
    """Pixels at a time, output and input channels of a block; blocks that share out the pixels, a part of the gradient each; bytes."""

    pixels: int
    k: int
    c: int
    parts: int
    shared: int


# Groups that share a multiprocessor's registers.
RESIDENT_GROUPS = 2
# Elements of dweight that the warps of a group have at least between them, where they share out pixels.
LEAST_BLOCK = 4 * 16 * 16


def shared(parts: int) -> WgradTile:
    """Where each of so many blocks of the input's gradient gives a part."""
    return WgradTile(0, 0, 0, parts, 0)


def wgrad_tile(p: Problem, device: Device) -> WgradTile | None:
    """None if no tile fits the device."""
    if p.pointwise:
        shapes = FLAT_WGRAD_FLOAT32 if p.itemsize == 4 else FLAT_WGRAD
        shape = next(s for s in shapes if s.k >= min(p.k, shapes[-1].k) and s.c >= min(p.c, shapes[-1].c))
        tiles, shared = _parts(p.n * p.y.out * p.x.out, shape.pixels), flat_wgrad_bytes(shape, p.itemsize)
    else:
        shape = _window_shape(p)
        tiles, shared = p.n * _parts(p.y.out, shape.height) * _parts(p.x.out, shape.width), window_wgrad_bytes(p, shape)
        if p.taps > MOST_TAPS or p.y.stride * p.x.stride > MOST_PHASES or shared > device.shared_limit:
            return None
    return WgradTile(shape.pixels, shape.k, shape.c, _parts_of(p, shape, tiles, device), shared)


def flat_wgrad_bytes(shape: WgradShape, itemsize: int = 2) -> int:
    """dy and z of a tile."""
    return shape.pixels * (_pixel(shape.k, itemsize) + _pixel(shape.c, itemsize))


def window_wgrad_bytes(p: Problem, shape: WgradShape) -> int:
    """dy and the window of z of each tile, or later sums of half the warps, each of which has a part of the pixels or of the channels."""
    window = window_side(p.y, shape.height) * window_side(p.x, shape.width) * _summed_row(shape.c, p.itemsize)
    sums = 4 * max(shape.k * shape.c, LEAST_BLOCK) * shape.taps
    return max(shape.groups * (shape.pixels * _pixel(shape.k, p.itemsize) + window), shape.groups // 2 * sums)


def _pixel(channels: int, itemsize: int) -> int:
    """Bytes of a pixel's channels in a tile."""
    return itemsize * channels if itemsize == 2 else _summed_row(channels, itemsize)


def _window_shape(p: Problem) -> WgradShape:
    if not p.dense_3x3:
        return WINDOW_ANY_WGRAD[p.taps > 1]
    narrow, low, *high = WINDOW_3X3_WGRAD_FLOAT32 if p.itemsize == 4 else WINDOW_3X3_WGRAD
    if max(p.k, p.c) <= narrow.k:
        return narrow
    return high[0] if high and p.y.out > low.height else low


def _parts_of(p: Problem, shape: WgradShape, tiles: int, device: Device) -> int:
    """How many blocks share out the tiles.

    All that the device has at once, if their parts, which are written and read again with 4 bytes an element, stay a quarter of the
    activations. Where they don't, blocks for half the multiprocessors: more would take longer to add up than they save. So a 3x3
    convolution of 128 images on 132 multiprocessors has 128 parts of 9 KB if it is 16 to 16 channels of 32x32, 64 parts of 37 KB if it is
    32 to 32 of 16x16, and 16 parts of 147 KB, each from 4 blocks, if it is 64 to 64 of 8x8.
    """
    blocks_of_part = _parts(p.k, shape.k) * _parts(p.c, shape.c) * _parts(p.taps, shape.taps)
    part = 4 * p.k * p.taps * p.c
    activations = p.itemsize * p.n * (p.y.size * p.x.size * p.c + p.y.out * p.x.out * p.k)
    most = _parts(device.multiprocessors * RESIDENT_GROUPS // shape.groups, blocks_of_part)
    enough = _parts(max(1, device.multiprocessors // 2), blocks_of_part)
    turns = _parts(tiles, shape.groups)
    parts = min(turns, most, max(enough, activations // 4 // part))
    # As even as they can be.
    return _parts(turns, _parts(turns, parts))
