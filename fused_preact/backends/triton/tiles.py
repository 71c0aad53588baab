"""The sizes of the blocks that programs work on: pure functions of shape, dtype and compute capability.

A `Tile` is BM x BN outputs a program, BK of the contracted dimension a step. Where a number below was chosen, docs/performance.md says why;
`tuning` can replace a choice by a measured one.
"""

from typing import NamedTuple

import torch

from fused_preact.backends.triton.kernels.common import Geometry

# Programs that keep a large GPU busy: a few for each of its 132 (H100, H200) or 108 (A100) multiprocessors.
PROGRAMS = 528
# tl.dot takes no smaller dimension.
DOT_MIN = 16


class Problem(NamedTuple):
    """A convolution as the kernels see it: its constants, pixels and statistics tiles on both sides, and how dots are computed."""

    geo: Geometry
    in_pixels: int
    out_pixels: int
    in_tiles: int
    out_tiles: int
    dtype: torch.dtype
    precision: str
    capability: int

    @property
    def channels(self) -> tuple[int, int]:
        """Input and output channels of a group."""
        return self.geo.C // self.geo.groups, self.geo.K // self.geo.groups

    @property
    def taps(self) -> int:
        return self.geo.R * self.geo.S

    @property
    def tcgen05(self) -> bool:
        """Tensor cores of data-centre Blackwell."""
        return 100 <= self.capability < 120

    @property
    def small_shared(self) -> bool:
        """100 KB of shared memory: consumer GPUs."""
        return self.capability in (86, 89) or self.capability >= 120

    @property
    def ieee(self) -> bool:
        """Dots on the general cores, with every operand in registers: smaller tiles."""
        return self.dtype == torch.float32 and self.precision == "ieee"


class Tile(NamedTuple):
    """BM, BN, BK; taps: those that share one program of wgrad; splits: shares of the pixels that are summed separately."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    taps: int = 1
    splits: int = 1


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def fwd_tile(p: Problem) -> Tile:
    """Outputs: pixels x K/groups. Contracted: C/groups, once a tap."""
    return _gemm(p, *p.channels, p.out_pixels)


def dgrad_tile(p: Problem) -> Tile:
    """Outputs: input pixels x C/groups. Contracted: K/groups, once a tap."""
    tile = _gemm(p, *reversed(p.channels), p.in_pixels)
    if tile.BN <= 32 or p.ieee:
        return tile
    # Its epilogue holds tiles of dz and x at once.
    return Tile(128, 64, min(32, tile.BK), 8, 3) if p.tcgen05 else tile._replace(BM=64, BN=64, num_warps=8)


def wgrad_tile(p: Problem) -> Tile:
    """Outputs: K/groups x C/groups for each tap. Contracted: pixels, in splits."""
    bn, bm = (min(64 if p.ieee else 128, _at_least_16(n)) for n in p.channels)
    # A row of taps reads dy once for all of them.
    taps = p.geo.S if p.geo.S <= 3 and bm * bn <= (1024 if p.ieee or p.capability < 90 or p.small_shared else 4096) else 1
    others = p.geo.groups * -(-p.channels[1] // bm) * -(-p.channels[0] // bn) * (p.taps // taps)
    bk = 32 if p.dtype.itemsize == 4 else 64
    splits = max(1, min(PROGRAMS // others, p.out_pixels // (4 * bk)))
    return Tile(bm, bn, bk, 8 if taps * bm * bn > 4096 else 4, 2 if taps > 1 else _stages(p, bm + bn, bk), taps, splits)


def narrow_tile(p: Problem) -> Tile | None:
    """The tile of the kernel that makes dgrad and wgrad of a 1x1 convolution at once, or None where dweight is too large for it."""
    bk, bn = _at_least_16(p.geo.K), min(64 if 90 <= p.capability < 120 else 32, _at_least_16(p.geo.C))
    most = 4096
    if p.ieee or (p.small_shared and p.dtype.itemsize == 4):
        most = 1024
    elif p.tcgen05 or p.small_shared:
        most = 2048
    if p.geo.groups > 1 or p.taps > 1 or bk > 128 or bk * bn > most:
        return None
    return Tile(64, bn, bk, 8, 2, 1, max(1, min(PROGRAMS // 2, p.in_pixels // 64, p.in_tiles)))


def materialises(p: Problem) -> bool:
    """Whether z is better written once and convolved by torch's library, which computes faster than these kernels where bytes are few."""
    return p.taps > 1 and min(p.channels) >= 128 and not p.ieee


def _gemm(p: Problem, contracted: int, columns: int, pixels: int) -> Tile:
    bk = min(32 if p.dtype.itemsize == 4 else 64, _at_least_16(contracted))
    if p.ieee:
        return Tile(64, min(32, _at_least_16(columns)), min(bk, 16), 4, 2)
    if p.tcgen05:
        # tcgen05 wants 128 rows, and leaves fewer registers for the epilogue.
        bn = min(64, _at_least_16(columns))
        return Tile(128, bn, min(bk, 32), 8, 2 if bn == 32 else 3)
    bn = min(64 if p.dtype.itemsize == 4 else 128, _at_least_16(columns))
    steps = p.taps * -(-contracted // bk)
    # What few steps compute is bound by memory: many small programs keep more loads in flight than a few large ones.
    # 128 x 128 would not leave registers for the statistics.
    bm = 64 if steps <= 2 or bn == 128 or pixels // 128 * -(-columns // bn) < PROGRAMS // 4 else 128
    return Tile(bm, bn, bk, 8 if bm * bn > 4096 or bm == 128 else 4, min(_stages(p, bm + bn, bk), max(3, steps)))


def _stages(p: Problem, rows: int, bk: int) -> int:
    """Steps in flight: up to 4, in half of the shared memory of a multiprocessor, so that two programs fit."""
    if p.small_shared:
        return 2
    shared = 80 * 1024 if p.capability < 90 else 110 * 1024
    return max(2, min(3 if p.tcgen05 else 4, shared // (rows * bk * p.dtype.itemsize)))


def _at_least_16(n: int) -> int:
    return max(DOT_MIN, power_of_2(n))


class BNTile(NamedTuple):
    """A pass over an activation: BM pixels by BN channels a program."""

    BM: int
    BN: int
    num_warps: int


def bn_tile(channels: int, rows: int) -> BNTile:
    """For a pass over an activation in programs of `rows` pixels or more: 16 elements a thread, whole rows of up to 256 channels."""
    bn = min(256, power_of_2(channels))
    return BNTile(min(4096 // bn, power_of_2(rows)), bn, 8)


class ChannelTile(NamedTuple):
    """What is computed once a channel, from T tiles: BT of them by BN channels at a time."""

    BT: int
    BN: int
    num_warps: int


def channel_tile(tiles: int) -> ChannelTile:
    """All loads of a program in flight at once; few channels a program, for many programs."""
    bt = min(512, power_of_2(max(1, tiles)))
    return ChannelTile(bt, max(4, min(64, 2048 // bt)), 4)


def candidates(kind: str, p: Problem) -> list[Tile]:
    """The short list of `autotune` for a kernel: the choice of this module first, and its neighbours."""
    tile = {"fwd": fwd_tile, "dgrad": dgrad_tile, "wgrad": wgrad_tile, "narrow": narrow_tile}[kind](p)
    if tile is None:
        return []
    listed = [tile, tile._replace(num_warps=12 - tile.num_warps)]
    listed += [tile._replace(num_stages=stages) for stages in (tile.num_stages - 1, tile.num_stages + 1) if stages > 0]
    if kind == "wgrad":
        listed += [tile._replace(splits=splits) for splits in (tile.splits // 2, tile.splits * 2) if splits > 0]
    else:
        listed.append(tile._replace(BM=192 - tile.BM))
    if kind != "narrow":
        listed += [tile._replace(**{side: getattr(tile, side) // 2}) for side in ("BN", "BK") if getattr(tile, side) > DOT_MIN]
    return listed


def fits(kind: str, p: Problem, tile: Tile | None) -> bool:
    """Whether a kernel computes `p` with `tile`, wherever the tile comes from."""
    if tile is None:
        return kind == "narrow"
    sides = (tile.BM, tile.BN, tile.BK)
    if any(side < DOT_MIN or side != power_of_2(side) for side in sides) or tile.BM > 128 or max(sides) > 256:
        return False
    if tile.num_warps not in (1, 2, 4, 8, 16) or tile.num_stages > 8 or p.taps % tile.taps:
        return False
    if kind != "narrow":
        return kind == "wgrad" or tile.taps == 1
    return p.taps == p.geo.groups == 1 and tile.BK >= p.geo.K and tile.splits <= p.in_tiles
